"""How is ``/v1/completions`` answered? One prompt a request, as text or as token ids."""

import logging
import time

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.generation import Generation, answer_id
from gateway.wire import completions, errors
from gateway.wire.generation import FinishReason, Usage
from gateway.wire.sse import CompletionStream

_encode = msgspec.json.Encoder().encode
log = logging.getLogger(__name__)


class CompletionForm:
    """Writes an answer as completion chunks or as one completion."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._id, self._created, self._model = answer_id("cmpl-"), int(time.time()), model
        self._events = CompletionStream(self._id, self._created, model, include_usage=include_usage)
        self.text = self._events.text
        self.finish = self._events.finish
        self.usage = self._events.usage

    def begin(self) -> bytes:
        return b""

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> bytes:
        choice = completions.CompletionChoice(0, text, reason)
        return _encode(completions.Completion(self._id, self._created, self._model, [choice], usage=usage))


async def text_completions(context: Context, exchange: Exchange) -> None:
    """``POST /v1/completions``: the continuation of a prompt, whole or as a stream."""
    body = await exchange.body(context.max_body)
    request = completions.decoder.decode(body)
    if log.isEnabledFor(logging.DEBUG) and (unknown := completions.decoder.unknown_fields(body)):
        log.debug("request=%s fields without meaning here: %s", exchange.request_id, ", ".join(unknown))
    request.check()
    model = context.model(request.model)
    exchange.model = model.name
    prompts = request.prompts(model.vocab_size)
    if len(prompts) > 1:
        raise errors.unsupported_parameter("prompt", "one prompt a request; send a request for each")
    form = CompletionForm(model.name, request.include_usage)
    generation = Generation(context, exchange, model, request, form, prompt_param="prompt")
    await generation.answer(
        prompts[0],
        add_special_tokens=request.add_special_tokens is not False,
        default_max_tokens=completions.DEFAULT_MAX_TOKENS,
    )
