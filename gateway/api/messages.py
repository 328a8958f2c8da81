"""How is Anthropic's ``/v1/messages`` answered? As a chat request, whose answer is written in Anthropic's shape."""

from gateway.api.chat import answer_chat
from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.messages_form import MessagesForm, error_body
from gateway.api.prompt import render_chat
from gateway.api.request import decode
from gateway.wire import messages
from gateway.wire.messages_answer import TokenCount, encode, event
from gateway.wire.messages_chat import chat_request


async def create_message(context: Context, exchange: Exchange) -> None:
    """``POST /v1/messages``: the next message of a conversation, whole or as a stream."""
    request = await decode(context, exchange, messages.decoder)
    request.check()
    thinking = request.thinking
    shown = thinking is None or thinking.display != "omitted"
    form = MessagesForm(request.model, exchange.request_id, show_thinking=shown)
    chat = chat_request(request)
    chat.check()
    # As at Anthropic, a limit that the context has no room for ends the answer where the context does.
    limit, chat.max_completion_tokens = chat.max_completion_tokens, None
    await answer_chat(context, exchange, chat, form, default_max_tokens=limit)


async def count_tokens(context: Context, exchange: Exchange) -> None:
    """``POST /v1/messages/count_tokens``: how many tokens the prompt of a message would have."""
    request = await decode(context, exchange, messages.count_decoder)
    request.check()
    chat = chat_request(request)
    chat.check()
    model = context.model(chat.model, exchange)
    exchange.model = model.name
    ids = await model.tokenizer.encode_async(render_chat(model, chat), add_special_tokens=False)
    await exchange.reply(200, encode(TokenCount(len(ids))))


def speak_anthropic(exchange: Exchange) -> None:
    """Make errors look as Anthropic's do, and name the request as there. Even those before a handler is called."""
    id = exchange.request_id
    exchange.headers.append((b"request-id", id.encode()))
    exchange.fault_body = lambda error: encode(error_body(error, id))
    exchange.fault_events = lambda error: event(error_body(error, id))
