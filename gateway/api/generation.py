"""How do prompts become answers? Tokenise, submit, read each choice, let the endpoint's form write, send.

The status of an answer is decided by its first token: until then a stream has sent nothing, so that whatever goes
wrong before is an ordinary error with its own status.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from engine.link import Output, Sampling
from gateway.api.choice import Choice, Reading
from gateway.api.context import Context, api_error
from gateway.api.exchange import ClientGone, Exchange
from gateway.api.form import Answer, Form
from gateway.api.surety import Surety
from gateway.fleet.native import OutputStream, RequestFailed, WorkerLost
from gateway.fleet.served_model import ServedModel
from gateway.text.parts import AnswerParser
from gateway.traffic.limits.limiter import UNSAID
from gateway.wire import errors
from gateway.wire.generation import INT64, GenerationRequest, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an endpoint wants its prompts answered.

    ``prompt_param`` is the field that they came in, for errors. ``grammar`` is what every answer must match.
    ``make_parser`` makes what takes an answer apart; without it there are no parts. ``kept`` are special tokens that
    are part of the text all the same. ``echo`` puts the prompt before its answer. ``answered`` of the only
    prompt's last tokens are the beginning of its answer.
    """

    prompt_param: Literal["messages", "prompt"]
    add_special_tokens: bool
    default_max_tokens: int | None = None
    grammar: str = ""
    make_parser: Callable[[], AnswerParser] | None = None
    kept: frozenset[int] = frozenset()
    echo: bool = False
    answered: int = 0


class Generation:
    """The prompts of one request on their way to their answers: ``n`` choices for each prompt."""

    def __init__(
        self,
        context: Context,
        exchange: Exchange,
        model: ServedModel,
        request: GenerationRequest,
        form: Form,
        plan: Plan,
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._model = model
        self._request = request
        self._form = form
        self._plan = plan
        self._counters = context.metrics.model(exchange.path, model.name)
        # Of work that nobody waits for, latencies say nothing.
        self._observe = _unobserved if exchange.background else self._counters.intervals.observe
        self._choices: dict[int, Choice] = {}
        self._prompt_tokens = 0
        self._arrived = time.perf_counter()
        self._first = True

    async def answer(self, prompts: Sequence[str | list[int]]) -> None:
        """Answer ``prompts``, streamed or whole.

        Raises:
            ApiError: whatever kept the answers from being made, or from being completed.
            ClientGone: the client left; its requests have been aborted.
        """
        stream: OutputStream | None = None
        watcher: asyncio.Task[None] | None = None
        seat = self._context.seat(self._model, len(prompts) * (self._request.n or 1), self._exchange.background)
        self._exchange.fault_events = self._form.fault
        entered = gone = False
        try:
            ids = [await self._encode(prompt) for prompt in prompts]
            samplings = self._samplings(ids)
            await self._enter(samplings)
            entered = True
            if self._exchange.recording is not None:
                self._exchange.recording.begin(self._model.name, self._model.target)
            stream = self._model.fleet.open()
            self._submit(stream, prompts, ids, samplings)
            watcher = asyncio.create_task(abort_when_gone(self._exchange, stream))
            outputs = await stream.next()
            seat.leave()
            self._count_first_token()
            if self._request.stream:
                await self._send_as_it_comes(stream, outputs)
            else:
                await self._send_whole(stream, outputs)
        except (WorkerLost, RequestFailed) as fault:
            raise api_error(fault) from fault
        except ClientGone:
            gone = True
            raise
        finally:
            seat.leave()
            if not self._first:
                self._count_end()
            self._note(stream)
            if entered:
                self._exchange.tab.settle(self._used(gone))
            if watcher is not None:
                watcher.cancel()
            if stream is not None:
                stream.close()

    async def _encode(self, prompt: str | list[int]) -> list[int]:
        """The token ids of a prompt, cut to its last ones where the request says so."""
        if isinstance(prompt, str):
            tokenizer = self._model.tokenizer
            prompt = await tokenizer.encode_async(prompt, add_special_tokens=self._plan.add_special_tokens)
        most = self._request.truncate_prompt_tokens
        if most == -1:
            _, limit = self._request.answer_limit()
            most = max(1, self._model.max_model_len - (limit or self._plan.default_max_tokens or 1))
        return prompt if most is None else prompt[-most:]

    def _samplings(self, ids: Sequence[list[int]]) -> list[Sampling]:
        """How each prompt is to be answered.

        Raises:
            ApiError: 400, a prompt is empty, or the context has no room for it and its answer.
        """
        model, request, plan = self._model, self._request, self._plan
        self._prompt_tokens = sum(map(len, ids)) - plan.answered
        bad_words = [word for text in request.bad_words or () for word in model.tokenizer.word_tokens(text)]
        return [
            request.sampling(
                prompt_tokens=len(prompt) - plan.answered,
                max_model_len=model.max_model_len,
                vocab_size=model.vocab_size,
                defaults=model.defaults,
                prompt_param=plan.prompt_param,
                default_max_tokens=plan.default_max_tokens,
                bad_words=bad_words,
                grammar=plan.grammar,
            )
            for prompt in ids
            if self._has_tokens(prompt)
        ]

    async def _enter(self, samplings: Sequence[Sampling]) -> None:
        """Have the request counted for its key: with its prompts, and the longest answers that it asks for.

        Raises:
            ApiError: 429 or 503, see `Limiter.enter`.
        """
        exchange = self._exchange
        _, limit = self._request.answer_limit()
        if limit is None:
            limit = self._plan.default_max_tokens
        most = [
            sampling.max_tokens if limit is not None else min(UNSAID, sampling.max_tokens) for sampling in samplings
        ]
        tokens = self._prompt_tokens + sum(most) * (self._request.n or 1)
        await exchange.tab.enter(self._context.limits, exchange.key, self._model.name, tokens)
        exchange.headers += [(name.encode(), value.encode()) for name, value in exchange.tab.headers.items()]

    def _used(self, gone: bool) -> int:
        """The tokens that count for the client's key: where the server has failed before it had said anything, none.

        A client that was ``gone`` before that has had its prompt computed all the same.
        """
        if self._first:
            return self._prompt_tokens if gone else 0
        return self._prompt_tokens + sum(choice.completion_tokens for choice in self._choices.values())

    def _submit(
        self,
        stream: OutputStream,
        prompts: Sequence[str | list[int]],
        ids: Sequence[list[int]],
        samplings: Sequence[Sampling],
    ) -> None:
        """Submit every choice of every prompt; those of one prompt share its blocks through the prefix cache."""
        model, request, plan, key = self._model, self._request, self._plan, self._exchange.key
        mute = request.answer_limit()[1] == 0
        choices = request.n or 1
        for number, (prompt, tokens, sampling) in enumerate(zip(prompts, ids, samplings, strict=True)):
            text = self._echoed(prompt, tokens) if plan.echo else ""
            split = len(tokens) - plan.answered
            prompt_ids, answer = (tokens[:split], tokens[split:]) if plan.answered else (tokens, [])
            for choice in range(choices):
                id = stream.submit(
                    prompt_ids,
                    sampling if choice == 0 else _reseeded(sampling, choice),
                    answer,
                    tenant=request.user or key.id,
                    priority=key.rank(request.priority),
                    age=time.perf_counter() - self._arrived,
                    salt=request.cache_salt or "",
                    background=self._exchange.background,
                    # A record has room for one.
                    sketch=self._exchange.recording is not None and not self._choices,
                )
                reading = Reading(
                    model.tokenizer, request, plan.make_parser() if plan.make_parser else None, plan.kept, plan.echo
                )
                made = Choice(number * choices + choice, prompt_ids, reading, prompt_text=text, mute=mute)
                if answer:
                    made.resume(answer)
                self._choices[id] = made

    def _has_tokens(self, prompt: list[int]) -> bool:
        if not prompt:
            raise errors.invalid_value(self._plan.prompt_param, "it has no tokens")
        return True

    def _echoed(self, prompt: str | list[int], tokens: list[int]) -> str:
        if isinstance(prompt, str) and self._request.truncate_prompt_tokens is None:
            return prompt
        skip = self._request.skip_special_tokens is not False
        return self._model.tokenizer.decode(tokens, skip_special_tokens=skip)

    async def _send_as_it_comes(self, stream: OutputStream, outputs: Sequence[Output]) -> None:
        """Send the answers in events: one ``send`` for all that an engine step brought."""
        exchange, form = self._exchange, self._form
        observe, clock = self._observe, time.perf_counter
        last = clock()
        await exchange.start_stream()
        open = len(self._choices)
        usage = Usage.of(prompt=self._prompt_tokens, completion=0, cached=outputs[0].cached)
        recording = exchange.recording
        events = form.begin(usage, [choice.answer.prompt for choice in self._choices.values()])
        while True:
            for output in outputs:
                choice = self._choices[output.id]
                if choice.complete():
                    continue
                events += form.delta(choice.answer.index, choice.push(output))
                if choice.complete():
                    stream.abort(output.id)
                    events += form.finish(choice.answer)
                    open -= 1
            if recording is not None:
                recording.tokens()
            if not open:
                break
            if events:
                await exchange.send(events)
            outputs = await stream.next()
            now = clock()
            observe(now - last)
            last = now
            events = b""
        self._note(stream)
        await exchange.end(events + form.end(self._usage()))

    async def _send_whole(self, stream: OutputStream, outputs: Sequence[Output]) -> None:
        """Send the answers once they are all complete."""
        observe, clock = self._observe, time.perf_counter
        last = clock()
        answers: list[Answer] = []
        recording = self._exchange.recording
        while True:
            if recording is not None:
                recording.tokens()
            for output in outputs:
                choice = self._choices[output.id]
                if choice.complete():
                    continue
                choice.push(output)
                if choice.complete():
                    stream.abort(output.id)
                    answers.append(choice.answer)
            if len(answers) == len(self._choices):
                break
            outputs = await stream.next()
            now = clock()
            observe(now - last)
            last = now
        answers.sort(key=lambda answer: answer.index)
        self._note(stream)
        await self._exchange.reply(200, self._form.whole(answers, self._usage()))

    def _usage(self) -> Usage:
        choices = list(self._choices.values())
        several = self._request.n or 1
        # Of a prompt's choices the first one to run found the least in the cache: the others found what it had left.
        cached = sum(
            min((choice.cached for choice in choices[start : start + several] if choice.started), default=0)
            for start in range(0, len(choices), several)
        )
        thinks = [choice.reasoning_tokens for choice in choices if choice.reasoning_tokens is not None]
        return Usage.of(
            prompt=self._prompt_tokens,
            completion=sum(choice.completion_tokens for choice in choices),
            cached=cached,
            reasoning=sum(thinks) if thinks else None,
        )

    def _note(self, stream: OutputStream | None) -> None:
        """Note for others how the answers have come about, as far as they have."""
        surety = Surety.of(choice.surety for choice in self._choices.values())
        self._exchange.uncertainty = surety.surprisal
        recording = self._exchange.recording
        if recording is None or recording.over:
            return
        recording.record.uncertainty = surety.record
        recording.record.embedding = next((choice.sketch for choice in self._choices.values() if choice.sketch), None)
        recording.record.adapter = stream.adapter if stream is not None else ""
        if stream is not None and stream.worker:
            recording.record.worker = stream.worker
        if stream is not None and stream.placed is not None:
            recording.reached(stream.placed, stream.placements)
        if not self._first:
            usage = self._usage()
            recording.counted(
                prompt=usage.prompt_tokens,
                cached=usage.prompt_tokens_details.cached_tokens,
                output=usage.completion_tokens,
                reasoning=usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None,
                finish_reasons=tuple(choice.reason or "" for choice in self._choices.values()),
            )

    def _count_first_token(self) -> None:
        self._first = False
        self._exchange.first(streamed=bool(self._request.stream), token=True)
        if not self._exchange.background:
            self._counters.first_token.observe(time.perf_counter() - self._arrived)
        self._counters.prompt_tokens.inc(self._prompt_tokens)

    def _count_end(self) -> None:
        usage = self._usage()
        self._counters.cached_tokens.inc(usage.prompt_tokens_details.cached_tokens)
        self._counters.output_tokens.inc(usage.completion_tokens)
        if not self._exchange.background:
            self._counters.duration.observe(time.perf_counter() - self._arrived)


def _unobserved(seconds: float) -> None:
    """What a histogram does with what isn't to be in it."""


async def abort_when_gone(exchange: Exchange, stream: OutputStream) -> None:
    """Abort the requests at once when their client leaves."""
    await exchange.gone()
    stream.interrupt(ClientGone())


def _reseeded(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of a prompt's further choice: another seed, where one was given."""
    if sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + choice + INT64) % (2 * INT64) - INT64)


def answer_id(prefix: str) -> str:
    """A fresh id for an answer."""
    return f"{prefix}{secrets.token_hex(12)}"
