"""How does a prompt become an answer? Tokenise, submit, detokenise, look for stop strings, send.

The status of an answer is decided by its first token: until then a stream has sent nothing, so that whatever goes
wrong before is an ordinary error with its own status.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Literal, Protocol

from engine.link import Output
from gateway.api.context import Context, api_error
from gateway.api.exchange import ClientGone, Exchange
from gateway.fleet.native import OutputStream, RequestFailed, WorkerLost
from gateway.fleet.served_model import ServedModel
from gateway.telemetry.metrics import ModelMetrics
from gateway.text.stops import StopStrings
from gateway.text.tokenizer import Tokenizer
from gateway.wire import errors
from gateway.wire.generation import FinishReason, GenerationRequest, Usage
from gateway.wire.sse import DONE

log = logging.getLogger(__name__)


class Form(Protocol):
    """How an endpoint writes an answer: as events, or as one body."""

    def begin(self) -> bytes:
        """The events before the first text; may be empty."""

    def text(self, delta: str) -> bytes:
        """The event with more text."""

    def finish(self, reason: FinishReason) -> bytes:
        """The event that says why the answer ends."""

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage alone."""

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> bytes:
        """The body of an answer that isn't streamed."""


class AnswerText:
    """Turns token ids into the text that may be sent, and counts.

    ``reason`` is set once the answer is complete, be it by the worker's word or by a stop string.
    """

    __slots__ = ("_detokenizer", "_stops", "cached", "completion_tokens", "reason")

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=request.skip_special_tokens is not False)
        stops = request.stops
        self._stops = StopStrings(stops, include=bool(request.include_stop_str_in_output)) if stops else None
        self.reason: FinishReason | None = None
        self.completion_tokens = 0
        self.cached = 0

    def push(self, outputs: Sequence[Output]) -> str:
        """The text that ``outputs`` made certain."""
        text = ""
        for output in outputs:
            self.completion_tokens += len(output.tokens)
            if output.cached:
                self.cached = output.cached
            delta = self._detokenizer.push(output.tokens)
            if output.finish is not None:
                delta += self._detokenizer.flush()
                self.reason = output.finish
            if self._stops is not None:
                delta = self._stops.push(delta)
                if self._stops.matched is not None:
                    self.reason = "stop"
                elif self.reason is not None:
                    delta += self._stops.flush()
            text += delta
            if self.reason is not None:
                break
        return text


async def answer(
    context: Context,
    exchange: Exchange,
    model: ServedModel,
    request: GenerationRequest,
    prompt: str | list[int],
    form: Form,
    *,
    prompt_param: Literal["messages", "prompt"],
    add_special_tokens: bool,
    default_max_tokens: int | None = None,
) -> None:
    """Answer one prompt, streamed or whole.

    Raises:
        ApiError: whatever kept the answer from being made.
        ClientGone: the client left; its request has been aborted.
    """
    arrived = time.perf_counter()
    counters = context.metrics.model(exchange.path, model.name)
    context.enqueue(model)
    watcher: asyncio.Task[None] | None = None
    stream: OutputStream | None = None
    try:
        try:
            if isinstance(prompt, str):
                prompt = await model.tokenizer.encode_async(prompt, add_special_tokens=add_special_tokens)
            if not prompt:
                raise errors.invalid_value(prompt_param, "it has no tokens")
            sampling = request.sampling(
                prompt_tokens=len(prompt),
                max_model_len=model.max_model_len,
                vocab_size=model.vocab_size,
                defaults=model.defaults,
                prompt_param=prompt_param,
                default_max_tokens=default_max_tokens,
            )
            stream = model.worker.submit(
                prompt,
                sampling,
                priority=request.priority or 0,
                age=time.perf_counter() - arrived,
                salt=request.cache_salt or "",
            )
            watcher = asyncio.create_task(_watch(exchange, stream))
            outputs = await stream.next()
        finally:
            context.dequeue()
        counters.first_token.observe(time.perf_counter() - arrived)
        counters.prompt_tokens.inc(len(prompt))
        counters.cached_tokens.inc(outputs[0].cached)
        text = AnswerText(model.tokenizer, request)
        try:
            if request.stream:
                await _stream(exchange, stream, outputs, text, form, request.include_usage, len(prompt), counters)
            else:
                await _whole(exchange, stream, outputs, text, form, len(prompt), counters)
        finally:
            counters.output_tokens.inc(text.completion_tokens)
            counters.duration.observe(time.perf_counter() - arrived)
    except (WorkerLost, RequestFailed) as fault:
        raise api_error(fault) from fault
    finally:
        if watcher is not None:
            watcher.cancel()
        if stream is not None:
            stream.close()


async def _stream(
    exchange: Exchange,
    stream: OutputStream,
    outputs: Sequence[Output],
    text: AnswerText,
    form: Form,
    include_usage: bool,
    prompt_tokens: int,
    counters: ModelMetrics,
) -> None:
    """Send the answer as it comes: one ``send`` for all that an engine step brought."""
    observe, clock = counters.intervals.observe, time.perf_counter
    last = clock()
    await exchange.start_stream()
    delta = text.push(outputs)
    events = form.begin()
    while text.reason is None:
        if delta:
            events += form.text(delta)
        if events:
            await exchange.send(events)
        outputs = await stream.next()
        now = clock()
        observe(now - last)
        last = now
        delta = text.push(outputs)
        events = b""
    stream.close()
    if delta:
        events += form.text(delta)
    events += form.finish(text.reason)
    if include_usage:
        events += form.usage(_usage(prompt_tokens, text))
    await exchange.end(events + DONE)


async def _whole(
    exchange: Exchange,
    stream: OutputStream,
    outputs: Sequence[Output],
    text: AnswerText,
    form: Form,
    prompt_tokens: int,
    counters: ModelMetrics,
) -> None:
    """Send the answer once it is complete."""
    observe, clock = counters.intervals.observe, time.perf_counter
    last = clock()
    parts = [text.push(outputs)]
    while text.reason is None:
        outputs = await stream.next()
        now = clock()
        observe(now - last)
        last = now
        parts.append(text.push(outputs))
    stream.close()
    await exchange.reply(200, form.whole("".join(parts), text.reason, _usage(prompt_tokens, text)))


async def _watch(exchange: Exchange, stream: OutputStream) -> None:
    """Abort the request at once when its client leaves."""
    await exchange.gone()
    stream.interrupt(ClientGone())


def _usage(prompt_tokens: int, text: AnswerText) -> Usage:
    return Usage.of(prompt=prompt_tokens, completion=text.completion_tokens, cached=text.cached)


def answer_id(prefix: str) -> str:
    """A fresh id for an answer."""
    return f"{prefix}{secrets.token_hex(12)}"
