"""How does a prompt become an answer? Tokenise, submit, detokenise, look for stop strings, send.

The status of an answer is decided by its first token: until then a stream has sent nothing, so that whatever goes
wrong before is an ordinary error with its own status.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Literal, Protocol

from engine.link import Output
from gateway.api.context import Context, api_error
from gateway.api.exchange import ClientGone, Exchange
from gateway.fleet.native import OutputStream, RequestFailed, WorkerLost
from gateway.fleet.served_model import ServedModel
from gateway.text.stops import StopStrings
from gateway.text.tokenizer import Tokenizer
from gateway.wire import errors
from gateway.wire.generation import FinishReason, GenerationRequest, Usage
from gateway.wire.sse import DONE


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


class Generation:
    """One prompt on its way to its answer.

    Args:
        form: how the endpoint writes the answer.
        prompt_param: the field that the prompt came in, for errors.
    """

    def __init__(
        self,
        context: Context,
        exchange: Exchange,
        model: ServedModel,
        request: GenerationRequest,
        form: Form,
        *,
        prompt_param: Literal["messages", "prompt"],
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._model = model
        self._request = request
        self._form = form
        self._prompt_param = prompt_param
        self._counters = context.metrics.model(exchange.path, model.name)
        self._text = AnswerText(model.tokenizer, request)
        self._prompt_tokens = 0
        self._arrived = time.perf_counter()

    async def answer(
        self, prompt: str | list[int], *, add_special_tokens: bool, default_max_tokens: int | None = None
    ) -> None:
        """Answer ``prompt``, streamed or whole.

        Raises:
            ApiError: whatever kept the answer from being made, or from being completed.
            ClientGone: the client left; its request has been aborted.
        """
        stream: OutputStream | None = None
        watcher: asyncio.Task[None] | None = None
        self._context.enqueue(self._model)
        queued = True
        try:
            if isinstance(prompt, str):
                tokenizer = self._model.tokenizer
                prompt = await tokenizer.encode_async(prompt, add_special_tokens=add_special_tokens)
            stream = self._submit(prompt, default_max_tokens)
            watcher = asyncio.create_task(_watch(self._exchange, stream))
            outputs = await stream.next()
            self._context.dequeue()
            queued = False
            self._count_first_token(outputs[0])
            if self._request.stream:
                await self._send_as_it_comes(stream, outputs)
            else:
                await self._send_whole(stream, outputs)
        except (WorkerLost, RequestFailed) as fault:
            raise api_error(fault) from fault
        finally:
            if queued:
                self._context.dequeue()
            else:
                self._count_end()
            if watcher is not None:
                watcher.cancel()
            if stream is not None:
                stream.close()

    def _submit(self, prompt: list[int], default_max_tokens: int | None) -> OutputStream:
        if not prompt:
            raise errors.invalid_value(self._prompt_param, "it has no tokens")
        self._prompt_tokens = len(prompt)
        model, request = self._model, self._request
        sampling = request.sampling(
            prompt_tokens=len(prompt),
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            defaults=model.defaults,
            prompt_param=self._prompt_param,
            default_max_tokens=default_max_tokens,
        )
        return model.worker.submit(
            prompt,
            sampling,
            tenant=request.user or "",
            priority=-(request.priority or 0),  # vLLM's: the lower, the earlier; on the link the higher
            age=time.perf_counter() - self._arrived,
            salt=request.cache_salt or "",
        )

    async def _send_as_it_comes(self, stream: OutputStream, outputs: Sequence[Output]) -> None:
        """Send the answer in events: one ``send`` for all that an engine step brought."""
        exchange, text, form = self._exchange, self._text, self._form
        observe, clock = self._counters.intervals.observe, time.perf_counter
        last = clock()
        await exchange.start_stream()
        events, delta = form.begin(), text.push(outputs)
        while text.reason is None:
            if delta:
                events += form.text(delta)
            if events:
                await exchange.send(events)
            outputs = await stream.next()
            now = clock()
            observe(now - last)
            last = now
            events, delta = b"", text.push(outputs)
        stream.close()
        if delta:
            events += form.text(delta)
        events += form.finish(text.reason)
        if self._request.include_usage:
            events += form.usage(self._usage())
        await exchange.end(events + DONE)

    async def _send_whole(self, stream: OutputStream, outputs: Sequence[Output]) -> None:
        """Send the answer once it is complete."""
        text = self._text
        observe, clock = self._counters.intervals.observe, time.perf_counter
        last = clock()
        parts = [text.push(outputs)]
        while text.reason is None:
            outputs = await stream.next()
            now = clock()
            observe(now - last)
            last = now
            parts.append(text.push(outputs))
        stream.close()
        await self._exchange.reply(200, self._form.whole("".join(parts), text.reason, self._usage()))

    def _usage(self) -> Usage:
        return Usage.of(prompt=self._prompt_tokens, completion=self._text.completion_tokens, cached=self._text.cached)

    def _count_first_token(self, output: Output) -> None:
        self._counters.first_token.observe(time.perf_counter() - self._arrived)
        self._counters.prompt_tokens.inc(self._prompt_tokens)
        self._counters.cached_tokens.inc(output.cached)

    def _count_end(self) -> None:
        self._counters.output_tokens.inc(self._text.completion_tokens)
        self._counters.duration.observe(time.perf_counter() - self._arrived)


async def _watch(exchange: Exchange, stream: OutputStream) -> None:
    """Abort the request at once when its client leaves."""
    await exchange.gone()
    stream.interrupt(ClientGone())


def answer_id(prefix: str) -> str:
    """A fresh id for an answer."""
    return f"{prefix}{secrets.token_hex(12)}"
