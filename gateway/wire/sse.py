"""How does a streamed answer become bytes? Server-sent events, built around what all chunks of a stream share.

A chunk's JSON differs from its neighbour's in the text alone, so each stream encodes the rest once and only the text
for each chunk: 0.15 µs instead of 0.65 µs for the whole struct (one core of a small cloud machine).
"""

from typing import Final

import msgspec

from gateway.wire.chat import ChatCompletionChunk, ChunkChoice, Delta
from gateway.wire.completions import Completion, CompletionChoice
from gateway.wire.errors import ApiError
from gateway.wire.generation import FinishReason, Usage

DONE: Final = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()
_LINE_BREAKS: Final = (
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
    (b"\xc2\x85", b"\\u0085"),
)
_MARK: Final = "\x00penstock\x00"
_MARK_JSON: Final = _encoder.encode(_MARK)


def event(body: bytes) -> bytes:
    """One event that carries ``body``, which is JSON and so has no line break."""
    return b"data: " + _one_line(body) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which broke: OpenAI's error object, in an event named ``error``."""
    return b"event: error\n" + event(error.body)


def _one_line(body: bytes) -> bytes:
    """JSON with Unicode's other line breaks escaped: some clients split events with ``str.splitlines``."""
    if body.isascii():
        return body
    for line_break, escape in _LINE_BREAKS:
        body = body.replace(line_break, escape)
    return body


def _around(chunk: ChatCompletionChunk | Completion) -> tuple[bytes, bytes]:
    """The bytes before and after the text of ``chunk``, which has `_MARK` for its text."""
    before, _, after = event(_encoder.encode(chunk)).rpartition(_MARK_JSON)
    return before, after


class ChatStream:
    """Makes the events of one streamed chat answer: `role`, then `text`s, then `finish`, then `usage`, then `DONE`.

    ``include_usage`` is what the request asked for: `usage` may be called only then. ``created`` is Unix time in
    seconds.
    """

    __slots__ = ("_after", "_before", "_created", "_fingerprint", "_id", "_model", "_usage")

    def __init__(
        self, id: str, created: int, model: str, *, include_usage: bool = False, fingerprint: str | None = None
    ) -> None:
        self._id, self._created, self._model, self._fingerprint = id, created, model, fingerprint
        self._usage: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET
        self._before, self._after = _around(self._chunk(ChunkChoice(0, Delta(content=_MARK))))

    def _chunk(self, *choices: ChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            system_fingerprint=self._fingerprint,
            usage=self._usage,
        )

    def role(self) -> bytes:
        """The first event: whose message it is."""
        return event(_encoder.encode(self._chunk(ChunkChoice(0, Delta(role="assistant", content="")))))

    def text(self, delta: str) -> bytes:
        """More of the answer."""
        return self._before + _one_line(_encoder.encode(delta)) + self._after

    def finish(self, reason: FinishReason) -> bytes:
        """The answer is complete, and why."""
        return event(_encoder.encode(self._chunk(ChunkChoice(0, Delta(), reason))))

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage and no choices."""
        chunk = msgspec.structs.replace(self._chunk(), usage=usage)
        return event(_encoder.encode(chunk))


class CompletionStream:
    """Makes the events of one streamed completion: `text`s, `finish` for each choice, then `usage`, then `DONE`.

    Takes the same arguments as `ChatStream`. With several prompts, ``index`` says which one is continued.
    """

    __slots__ = ("_around", "_created", "_fingerprint", "_id", "_model", "_usage")

    def __init__(
        self, id: str, created: int, model: str, *, include_usage: bool = False, fingerprint: str | None = None
    ) -> None:
        self._id, self._created, self._model, self._fingerprint = id, created, model, fingerprint
        self._usage: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def _chunk(self, *choices: CompletionChoice) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            system_fingerprint=self._fingerprint,
            usage=self._usage,
        )

    def text(self, delta: str, index: int = 0) -> bytes:
        """More of the answer to prompt ``index``."""
        around = self._around.get(index)
        if around is None:
            around = self._around[index] = _around(self._chunk(CompletionChoice(index, _MARK)))
        return around[0] + _one_line(_encoder.encode(delta)) + around[1]

    def finish(self, reason: FinishReason, index: int = 0) -> bytes:
        """The answer to prompt ``index`` is complete, and why."""
        return event(_encoder.encode(self._chunk(CompletionChoice(index, "", reason))))

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage and no choices."""
        chunk = msgspec.structs.replace(self._chunk(), usage=usage)
        return event(_encoder.encode(chunk))
