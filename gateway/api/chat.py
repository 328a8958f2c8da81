"""How is ``/v1/chat/completions`` answered, and every other endpoint that is a chat in another dress?"""

from dataclasses import replace
from functools import partial

from gateway.api.chat_form import ChatForm
from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.form import Form
from gateway.api.generation import Generation, Plan
from gateway.api.prompt import grammar_of, render_chat
from gateway.api.request import decode
from gateway.fleet.served_model import ServedModel
from gateway.wire import chat
from gateway.wire.chat import ChatCompletionRequest


async def chat_completions(context: Context, exchange: Exchange) -> None:
    """``POST /v1/chat/completions``: the next message of a conversation, whole or as a stream."""
    request = await decode(context, exchange, chat.decoder)
    request.check()
    model = context.model(request.model, exchange)
    form = ChatForm(request, model.name, model.tokenizer)
    await answer_chat(context, exchange, request, form, parts=False)


async def answer_chat(
    context: Context,
    exchange: Exchange,
    request: ChatCompletionRequest,
    form: Form,
    *,
    parts: bool = True,
    default_max_tokens: int | None = None,
) -> None:
    """Answer a chat request in the form of an endpoint.

    Without ``parts`` the form is told of an answer's parts only where it can have others than content. An answer that
    the request sets no limit to has ``default_max_tokens``, or what the context has room for.

    Raises:
        ApiError: whatever kept the answers from being made, or from being completed.
        ClientGone: the client left; its requests have been aborted.
    """
    request.check()
    model = context.model(request.model, exchange)
    exchange.model = model.name
    prompt = render_chat(model, request)
    plan = await _plan(model, request, prompt, parts)
    plan = replace(plan, default_max_tokens=default_max_tokens)
    await Generation(context, exchange, model, request, form, plan).answer([prompt])


async def _plan(model: ServedModel, request: ChatCompletionRequest, prompt: str, parts: bool) -> Plan:
    """How the answer is made and read: what the model's dialect has for tools and reasoning is taken apart."""
    dialect = model.dialect
    tools = request.called_tools()
    in_reasoning = dialect.opens_reasoning(prompt)
    takes_apart = tools is not None or dialect.reasoning != "none" or parts
    return Plan(
        prompt_param="messages",
        add_special_tokens=bool(request.add_special_tokens),
        grammar=await grammar_of(model, request.shape(), tools, dialect=dialect, in_reasoning=in_reasoning),
        make_parser=partial(dialect.parser, tools=tools is not None, reasoning=True, in_reasoning=in_reasoning)
        if takes_apart
        else None,
        kept=dialect.kept_tokens(tools=tools is not None, reasoning=True),
    )
