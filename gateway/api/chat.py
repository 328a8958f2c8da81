"""How is ``/v1/chat/completions`` answered, and every other endpoint that is a chat in another dress?"""

from gateway.api.chat_form import ChatForm
from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.form import Form
from gateway.api.generation import Generation, Plan
from gateway.api.prompt import render_chat
from gateway.api.request import decode
from gateway.text.parts import PlainParser
from gateway.wire import chat
from gateway.wire.chat import ChatCompletionRequest


async def chat_completions(context: Context, exchange: Exchange) -> None:
    """``POST /v1/chat/completions``: the next message of a conversation, whole or as a stream."""
    request = await decode(context, exchange, chat.decoder)
    request.check()
    model = context.model(request.model)
    form = ChatForm(request, model.name, model.tokenizer)
    await answer_chat(context, exchange, request, form, parts=False)


async def answer_chat(
    context: Context, exchange: Exchange, request: ChatCompletionRequest, form: Form, *, parts: bool = True
) -> None:
    """Answer a chat request in the form of an endpoint.

    Without ``parts`` the form is told of an answer's parts only where it can have others than content.

    Raises:
        ApiError: whatever kept the answers from being made, or from being completed.
        ClientGone: the client left; its requests have been aborted.
    """
    request.check()
    model = context.model(request.model)
    exchange.model = model.name
    prompt = render_chat(model, request)
    plan = Plan(
        prompt_param="messages",
        add_special_tokens=bool(request.add_special_tokens),
        make_parser=PlainParser if parts else None,
    )
    await Generation(context, exchange, model, request, form, plan).answer([prompt])
