"""How is ``/v1/chat/completions`` answered?"""

import logging
import time

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.generation import Generation, answer_id
from gateway.api.prompt import render
from gateway.wire import chat
from gateway.wire.generation import FinishReason, Usage
from gateway.wire.sse import ChatStream

_encode = msgspec.json.Encoder().encode
log = logging.getLogger(__name__)


class ChatForm:
    """Writes an answer as chat chunks or as one chat completion."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._id, self._created, self._model = answer_id("chatcmpl-"), int(time.time()), model
        self._events = ChatStream(self._id, self._created, model, include_usage=include_usage)
        self.begin = self._events.role
        self.text = self._events.text
        self.finish = self._events.finish
        self.usage = self._events.usage

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> bytes:
        choice = chat.ChatChoice(0, chat.AnswerMessage(text), reason)
        return _encode(chat.ChatCompletion(self._id, self._created, self._model, [choice], usage))


async def chat_completions(context: Context, exchange: Exchange) -> None:
    """``POST /v1/chat/completions``: the next message of a conversation, whole or as a stream."""
    body = await exchange.body(context.max_body)
    request = chat.decoder.decode(body)
    if log.isEnabledFor(logging.DEBUG) and (unknown := chat.decoder.unknown_fields(body)):
        log.debug("request=%s fields without meaning here: %s", exchange.request_id, ", ".join(unknown))
    request.check()
    model = context.model(request.model)
    exchange.model = model.name
    prompt = render(
        model,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        variables=request.template_variables(),
    )
    form = ChatForm(model.name, request.include_usage)
    generation = Generation(context, exchange, model, request, form, prompt_param="messages")
    await generation.answer(prompt, add_special_tokens=False)
