"""How does a simulated worker speak HTTP? As vLLM's server does, as far as gateways and load tests look at it.

A bare asyncio protocol, so that four workers, a gateway and a client have room on two cores: a streamed token costs a
worker about 10 us beside the scheduler's share. A client that goes away ends its request between two steps.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast

import httptools
import msgspec

from bench.workers.live import LiveRequest, LiveWorker
from bench.workers.page import page
from bench.workers.tokens import Word
from bench.workers.wire import Answer, ChatRequest, CompletionRequest, usage
from gateway.wire import errors

T = TypeVar("T")

_CHAT: Final = msgspec.json.Decoder(ChatRequest)
_COMPLETION: Final = msgspec.json.Decoder(CompletionRequest)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_REASONS: Final = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed"}
_JSON: Final = "application/json"


class Call(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    body: bytes


class Reply(NamedTuple):
    """An answer in one piece."""

    body: bytes
    kind: str = _JSON
    status: int = 200


class Service:
    """What a worker of one model answers. ``connections`` are those that are open."""

    def __init__(self, worker: LiveWorker, model: str) -> None:
        self.worker = worker
        self.model = model
        self.connections: set[Connection] = set()
        self._pages: dict[tuple[str, str], Callable[[], Reply]] = {
            ("GET", "/health"): lambda: Reply(b"", "text/plain"),
            ("GET", "/ping"): lambda: Reply(b"", "text/plain"),
            ("GET", "/metrics"): lambda: Reply(page(worker, model), "text/plain; version=0.0.4; charset=utf-8"),
            ("GET", "/v1/models"): self._models,
            ("GET", "/get_model_info"): self._info,
            ("GET", "/model_info"): self._info,
        }
        self._generating: dict[str, Callable[[bytes, Connection], Reply | None]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/chat/completions/render": self._render,
            "/v1/completions/render": self._render_completion,
        }

    def answer(self, call: Call, connection: "Connection") -> Reply | None:
        """The answer, or None where it will come word by word.

        Raises:
            ApiError: there is none.
        """
        if call.method == "POST" and (generate := self._generating.get(call.path)) is not None:
            return generate(call.body, connection)
        if (made := self._pages.get((call.method, call.path))) is not None:
            return made()
        if call.path in self._generating or any(path == call.path for _, path in self._pages):
            raise errors.ApiError(405, f"{call.path} isn't asked by {call.method}", code="method_not_allowed")
        raise errors.ApiError(404, f"there is no {call.path} here", code="not_found")

    def _models(self) -> Reply:
        entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "penstock"}
        return _json({"object": "list", "data": [{**entry, "max_model_len": self.worker.max_len}]})

    def _info(self) -> Reply:
        return _json({"model_path": self.model, "tokenizer_path": self.model, "is_generation": True})

    def _chat(self, body: bytes, connection: "Connection") -> None:
        asked = _decoded(_CHAT, body)
        self._generate(asked, self._tokens(asked), connection, "chatcmpl")

    def _completion(self, body: bytes, connection: "Connection") -> None:
        asked = _decoded(_COMPLETION, body)
        tokens = self._prompt(asked)
        if not 0 <= asked.answered < max(1, min(len(tokens), asked.wanted)):
            raise errors.invalid_value("answered", "it leaves no prompt, or nothing of the answer to go on with")
        self._generate(asked, tokens, connection, "cmpl", asked.answered)

    def _render(self, body: bytes, connection: "Connection") -> Reply:
        asked = _decoded(_CHAT, body)
        self._check(asked)
        return _json(self._rendered("chatcmpl", asked, self._tokens(asked)))

    def _render_completion(self, body: bytes, connection: "Connection") -> Reply:
        asked = _decoded(_COMPLETION, body)
        self._check(asked)
        return _json([self._rendered("cmpl", asked, self._prompt(asked))])

    def _rendered(self, kind: str, asked: ChatRequest | CompletionRequest, tokens: list[int]) -> dict[str, Any]:
        sampling = {"max_tokens": asked.wanted}
        shown = {"request_id": _new_id(kind), "token_ids": tokens, "sampling_params": sampling}
        return {**shown, "model": self.model, "stream": bool(asked.stream)}

    def _prompt(self, asked: CompletionRequest) -> list[int]:
        return self.worker.codec.encode(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt

    def _tokens(self, asked: ChatRequest) -> list[int]:
        return self.worker.codec.chat([message.plain() for message in asked.messages])

    def _check(self, asked: ChatRequest | CompletionRequest) -> None:
        if asked.model not in (None, self.model):
            raise errors.ApiError(404, f"no model {asked.model!r} here: {self.model}", code="model_not_found")
        if asked.n not in (None, 1):
            raise errors.ApiError(400, "a simulated worker gives one choice", code="invalid_value", param="n")

    def _generate(
        self,
        asked: ChatRequest | CompletionRequest,
        tokens: list[int],
        connection: "Connection",
        kind: str,
        answered: int = 0,
    ) -> None:
        self._check(asked)
        stream = bool(asked.stream)
        answer = Answer(
            _new_id(kind),
            self.model,
            chat=kind == "chatcmpl",
            stream=stream,
            prompt_ids=tokens[: len(tokens) - answered] if asked.return_token_ids else None,
        )
        counted = asked.stream_options is not None and asked.stream_options.include_usage
        exchange = _Streaming(connection, answer, counted) if stream else _Collecting(connection, answer)
        exchange.answered = answered
        try:
            exchange.request = self.worker.submit(tokens, asked.wanted - answered, exchange.take, asked.priority or 0)
        except ValueError as error:
            code = "context_length_exceeded" if asked.wanted > 0 else "invalid_value"
            raise errors.ApiError(400, str(error), code=code) from None
        connection.under_way = exchange.request
        if stream:
            connection.write(_STREAM_HEAD)


class _Exchange:
    """An answer under way, to which the worker gives words."""

    request: LiveRequest
    answered = 0

    def __init__(self, connection: "Connection", answer: Answer) -> None:
        self._connection = connection
        self._answer = answer

    def take(self, word: Word, finish: str | None) -> None:
        """The next word; the last one has ``finish``."""
        raise NotImplementedError

    def _usage(self) -> dict[str, Any]:
        request = self.request
        prompt = request.prompt_len - self.answered
        return usage(prompt, min(request.cached, prompt), request.generated + self.answered)


class _Streaming(_Exchange):
    def __init__(self, connection: "Connection", answer: Answer, counted: bool) -> None:
        super().__init__(connection, answer)
        self._counted = counted

    def take(self, word: Word, finish: str | None) -> None:
        data = _chunk(self._answer.event(word, finish))
        if finish is None:
            self._connection.write(data)
            return
        if self._counted:
            data += _chunk(self._answer.usage_event(self._usage()))
        self._connection.write(data + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self._connection.done()


class _Collecting(_Exchange):
    def __init__(self, connection: "Connection", answer: Answer) -> None:
        super().__init__(connection, answer)
        self._words: list[Word] = []

    def take(self, word: Word, finish: str | None) -> None:
        self._words.append(word)
        if finish is not None:
            self._connection.reply(Reply(self._answer.whole(self._words, self._usage())))


class Connection(asyncio.Protocol):
    """A client's connection: one request at a time, those that follow wait."""

    def __init__(self, service: Service) -> None:
        self.under_way: LiveRequest | None = None
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._calls: deque[tuple[Call, bool]] = deque()
        self._busy = False
        self._keep = True

    # What answers call

    def write(self, data: bytes) -> None:
        """Send bytes of the answer under way, if somebody is still there."""
        if self._transport is not None:
            self._transport.write(data)

    def reply(self, reply: Reply) -> None:
        """Send an answer in one piece, and take the next request."""
        body, kind, status = reply
        head = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n" % (status, _REASONS.get(status, b"Error"), kind.encode())
        close = b"" if self._keep else b"connection: close\r\n"
        self.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (head, close, len(body), body))
        self.done()

    def done(self) -> None:
        """The answer is complete."""
        self.under_way, self._busy = None, False
        if not self._keep and self._transport is not None:
            self._transport.close()
        elif self._calls:
            self._next()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._service.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._keep = False
            self._fail(errors.ApiError(400, f"not HTTP: {error}", code="invalid_value"))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._calls.clear()
        self._service.connections.discard(self)
        if self.under_way is not None:
            self._service.worker.abort(self.under_way)
            self.under_way = None

    # httptools

    def on_message_begin(self) -> None:
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue" and not self._busy:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.partition(b"?")[0].decode("latin-1")
        call = Call(self._parser.get_method().decode(), path, b"".join(self._body))
        self._body = []
        self._calls.append((call, bool(self._parser.should_keep_alive())))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        call, self._keep = self._calls.popleft()
        self._busy = True
        try:
            reply = self._service.answer(call, self)
        except errors.ApiError as error:
            self._fail(error)
            return
        if reply is not None:
            self.reply(reply)

    def _fail(self, error: errors.ApiError) -> None:
        self.reply(Reply(error.body, _JSON, error.status))


async def listen(service: Service, host: str, port: int) -> asyncio.Server:
    """Answer at ``host`` and ``port``; 0 takes a free one.

    Raises:
        OSError: the address can't be had.
    """
    loop = asyncio.get_running_loop()
    return await loop.create_server(partial(Connection, service), host, port, backlog=1024)


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise errors.invalid_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.invalid_json(str(error)) from None


def _json(value: Any) -> Reply:
    return Reply(msgspec.json.encode(value))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _new_id(kind: str) -> str:
    return f"{kind}-{os.urandom(12).hex()}"
