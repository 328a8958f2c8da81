"""What is sent for an `Ask`, and what becomes of its answer? One request to an endpoint, one `Record`.

A prompt of messages goes to ``/chat/completions``, a text or token ids to ``/completions``; answers are streamed.
"""

import asyncio
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from bench.load.http import Connection, Lost, Pool, Target, head
from bench.load.records import Ask, Outcome, Record

_ERROR_LENGTH = 160
_REFUSED = (429, 503)


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """How every request is made.

    With ``extensions`` a request has vLLM's ``ignore_eos`` and ``min_tokens``, so that an answer has as many tokens as
    the workload says, and ``return_token_ids``, so that each token shows even if it is no text; servers that don't know
    these may refuse them. A field of ``extra`` takes the place of one of ours; None leaves it out. With
    ``quickack`` what comes is acknowledged at once (`bench.load.http.Connection`).
    """

    url: str
    model: str
    headers: dict[str, str] = {}
    temperature: float | None = 0.0
    extensions: bool = True
    extra: dict[str, Any] = {}
    quickack: bool = False

    def body(self, ask: Ask, history: "History | None" = None) -> bytes:
        """The request's body, as JSON."""
        fields: dict[str, Any] = {"model": self.model, "max_tokens": ask.output_tokens, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        fields["temperature"] = self.temperature
        if self.extensions:
            fields |= {"ignore_eos": True, "min_tokens": ask.output_tokens, "return_token_ids": True}
        fields.update(self.extra)
        fields = {name: value for name, value in fields.items() if value is not None}
        fields["messages" if is_chat(ask) else "prompt"] = history.prompt(ask) if history else ask.prompt
        return msgspec.json.encode(fields)


class History:
    """A conversation so far: messages, a text, or token ids (whose answers are unknown, and so left out)."""

    def __init__(self) -> None:
        self._before: list[Any] | str | None = None

    def prompt(self, ask: Ask) -> list[Any] | str:
        """What to send for the next turn."""
        return ask.prompt if self._before is None else self._before + ask.prompt  # type: ignore[operator]

    def add(self, ask: Ask, answer: str) -> None:
        """Note that a turn was answered. One that was not must be left out, or roles would no longer alternate."""
        prompt = self.prompt(ask)
        if is_chat(ask):
            self._before = [*prompt, {"role": "assistant", "content": answer}]
        else:
            self._before = prompt + answer if isinstance(prompt, str) else prompt


def is_chat(ask: Ask) -> bool:
    """Whether the prompt is made of messages."""
    return isinstance(ask.prompt, list) and bool(ask.prompt) and isinstance(ask.prompt[0], dict)


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Answer:
    """An answer as it comes: server-sent events, one line of JSON each.

    How many tokens a chunk brought is read from it where it says so: by ``usage`` in each chunk (vLLM's and our
    ``continuous_usage_stats``), ``token_ids``, or ``logprobs``. Otherwise a chunk with text is one token, and what
    ``usage`` counts in the end beyond that, or short of it, is spread evenly over the chunks. Tokens that never showed
    came with the end at the latest.
    """

    def __init__(self, keep_text: bool = False) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.usage: _Usage | None = None
        self.error = ""
        self.finished = False
        self.text: list[str] | None = [] if keep_text else None
        self._rest = b""
        self._head = b""
        self._finished_at = 0.0
        self._said = -1  # what the chunk before counted, or -1 where chunks don't count

    def feed(self, data: bytes, now: float) -> None:
        """Take a piece of the body that came at ``now``."""
        if not self.times and len(self._head) < 4096:
            self._head += data
        if not self._rest and data.startswith(b"data:") and data.find(b"\n") == len(data) - 2:
            self._event(data[5:], now)  # one event and its empty line, as nearly always
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:], now)

    def _event(self, data: bytes, now: float) -> None:
        try:
            chunk = _decode(data)
        except msgspec.MsgspecError as error:
            if data.strip() == b"[DONE]":
                self.finished = True
            else:
                self.error = self.error or f"a chunk that isn't one: {error}"
            return
        if chunk.error is not None or chunk.object == "error":
            self.error = self.error or message(data)
        count = 0
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self.finished, self._finished_at = True, now
            count += self._tokens(choice)
        usage = chunk.usage
        if usage is not None:
            self.usage = usage
            if chunk.choices and (self._said >= 0 or not self.times):
                count = usage.completion_tokens - max(self._said, 0)
                self._said = usage.completion_tokens
        if count > 0:
            self.times.append(now)
            self.tokens.append(count)

    def _tokens(self, choice: _Choice) -> int:
        delta, text, other = choice.delta, choice.text, None
        if delta is not None:
            text = delta.content
            other = text or delta.reasoning_content or delta.reasoning or delta.tool_calls
        if text and self.text is not None:
            self.text.append(text)
        if choice.token_ids is not None:
            return len(choice.token_ids)
        if choice.logprobs is not None:
            return len(choice.logprobs.content or choice.logprobs.tokens or ())
        return 1 if text or other else 0

    @property
    def output_tokens(self) -> int:
        """The endpoint's own count, or else the sum of the chunks."""
        return self.usage.completion_tokens if self.usage is not None else sum(self.tokens)

    def settle(self) -> None:
        """Make the chunks' tokens add up to `output_tokens`, once the answer has ended."""
        total, chunks = self.output_tokens, len(self.tokens)
        if not chunks and total and self._finished_at:
            self.times, self.tokens = [self._finished_at], [total]
        elif sum(self.tokens) != total:
            self.tokens = [(i + 1) * total // chunks - i * total // chunks for i in range(chunks)]

    def said(self) -> str:
        """What the beginning of the body says of an error."""
        return message(self._head)


def message(body: bytes) -> str:
    """The message in an error's body, in one short line."""
    text = body.strip().decode("utf-8", "replace")
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        found = None
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    if found and not isinstance(found, dict | list):
        text = str(found)
    text = " ".join(text.split())
    return text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 1] + "…"


class Answered(NamedTuple):
    """A record, and what was said (empty unless it was to be kept)."""

    record: Record
    text: str


class Client:
    """Asks one endpoint. ``zero`` is the run's beginning on the monotonic clock; ``timeout`` in seconds."""

    def __init__(self, api: Api, target: Target, timeout: float = 600.0) -> None:
        self.zero = time.monotonic()
        self._api = api
        self._timeout = timeout
        self._pool = Pool(target, api.quickack)
        self._answers: set[Answer] = set()
        headers = {"content-type": "application/json", "accept": "text/event-stream", **api.headers}
        self._chat = head(target, "POST", "/chat/completions", headers)
        self._completions = head(target, "POST", "/completions", headers)

    def now(self) -> float:
        """Seconds since the run's beginning."""
        return time.monotonic() - self.zero

    @property
    def waiting(self) -> int:
        """How many requests have no token yet."""
        return sum(not answer.times for answer in self._answers)

    async def ask(self, ask: Ask, at: float, history: History | None = None) -> Answered:
        """Send a request, due at ``at``, and wait for the end of its answer. It raises nothing: a record tells all."""
        started = self.now()
        body = self._api.body(ask, history)
        request = b"%bcontent-length: %d\r\n\r\n%b" % (
            self._chat if is_chat(ask) else self._completions,
            len(body),
            body,
        )
        exchange = _Exchange(self._pool, request, Answer(keep_text=history is not None))
        self._answers.add(exchange.answer)
        try:
            async with asyncio.timeout(max(0.0, at + self._timeout - started)):
                await exchange.run()
        except TimeoutError:
            exchange.outcome, exchange.error = "timeout", f"no end after {self._timeout:g} s"
        finally:
            exchange.release()
            self._answers.discard(exchange.answer)
        record = self._record(ask, at, started, exchange)
        return Answered(record, "".join(exchange.answer.text or ()))

    def _record(self, ask: Ask, at: float, started: float, exchange: "_Exchange") -> Record:
        answer, zero = exchange.answer, self.zero
        answer.settle()
        times, usage = answer.times, answer.usage
        details = usage.prompt_tokens_details if usage is not None else None
        return Record(
            index=ask.index,
            at=round(at, 6),
            started=round(started, 6),
            outcome=exchange.outcome,
            end=round(self.now(), 6),
            sent=round(exchange.sent - zero, 6) if exchange.sent is not None else None,
            first=round(times[0] - zero, 6) if times else None,
            last=round(times[-1] - zero, 6) if times else None,
            gaps=[int((b - a) * 1e6 + 0.5) / 1e6 for a, b in pairwise(times)],
            gap_tokens=answer.tokens[1:],
            prompt_tokens=usage.prompt_tokens if usage is not None else ask.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            output_tokens=answer.output_tokens,
            asked_tokens=ask.output_tokens,
            status=exchange.status,
            error=exchange.error,
            session=ask.session,
            group=ask.group,
        )

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET below the endpoint's prefix.

        Raises:
            Lost: no answer came.
            TimeoutError: nor within 30 s.
        """
        pieces: list[bytes] = []
        connection = await self._pool.connect()
        try:
            async with asyncio.timeout(30):
                request = head(self._pool.target, "GET", path, self._api.headers) + b"\r\n"
                reply = await connection.send(request, lambda data, now: pieces.append(data))
        finally:
            connection.close()
        return reply.status, b"".join(pieces)

    def close(self) -> None:
        """Close what connections are idle."""
        self._pool.close()


class _Exchange:
    """One request's way through a connection, and how it ended."""

    def __init__(self, pool: Pool, request: bytes, answer: Answer) -> None:
        self.answer = answer
        self.outcome: Outcome = "disconnected"
        self.error = ""
        self.status = 0
        self.sent: float | None = None
        self._pool = pool
        self._request = request
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Until the answer has ended. A kept connection that the other end had closed meanwhile gets one retry."""
        try:
            connection = self._connection = await self._pool.take()
            reply = connection.send(self._request, self.answer.feed)
            self.sent = time.monotonic()
            try:
                status, content_type, whole = await reply
            except Lost:
                if not connection.used:
                    raise
                connection = self._connection = await self._pool.connect()
                reply = connection.send(self._request, self.answer.feed)
                self.sent = time.monotonic()
                status, content_type, whole = await reply
        except Lost as error:
            self.error = str(error)
            return
        self.status = status
        answer = self.answer
        if status != 200:
            self.outcome = "refused" if status in _REFUSED else "failed"
            self.error = f"HTTP {status}: {answer.said()}"
        elif answer.error:
            self.outcome, self.error = "failed", answer.error
        elif "event-stream" not in content_type:
            self.outcome, self.error = "failed", f"no event stream, but {content_type or 'nothing'}: {answer.said()}"
        elif answer.finished:
            self.outcome = "ok"
        else:
            self.error = "the stream ended early" if whole else "the connection ended within the stream"

    def release(self) -> None:
        """Give the connection back, or drop it if an answer is still under way."""
        if self._connection is None:
            return
        if self.status and self._connection.open:
            self._pool.give(self._connection)
        else:
            self._connection.close()


def parse_headers(lines: list[str]) -> dict[str, str]:
    """Headers of lines such as ``X-Tenant: a``.

    Raises:
        ValueError: a line is none.
    """
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{line!r} is no header: write NAME: VALUE")
        headers[name.strip()] = value.strip()
    return headers


def with_key(headers: Mapping[str, str], key: str | None) -> dict[str, str]:
    """Headers, and the one with the API key if there is one."""
    return {**headers, **({"Authorization": f"Bearer {key}"} if key else {})}
