"""How does a streamed answer become bytes? Server-sent events, built around what all chunks of a stream share.

A chunk's JSON differs from its neighbour's in the text alone, so each stream encodes the rest once and only the text
for each chunk: 0.15 µs instead of 0.65 µs for the whole struct (one core of a small cloud machine).
"""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from gateway.wire.chat import ChatCompletionChunk, ChunkChoice, Delta
from gateway.wire.completions import Completion, CompletionChoice
from gateway.wire.errors import ApiError
from gateway.wire.generation import FinishReason, Usage

DONE: Final = b"data: [DONE]\n\n"

ChunkT = TypeVar("ChunkT", ChatCompletionChunk, Completion)

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


class _ChunkStream(Generic[ChunkT]):
    """What the streams of both endpoints share: all events are made from one chunk of the ``_kind``, without choices.

    ``include_usage`` is what the request asked for: `usage` may be called only then. ``created`` is Unix time in
    seconds.
    """

    __slots__ = ("_around", "_chunk")
    _kind: Callable[..., ChunkT]

    def __init__(
        self,
        id: str,
        created: int,
        model: str,
        *,
        include_usage: bool = False,
        fingerprint: str | None = None,
        service_tier: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        usage = None if include_usage else msgspec.UNSET
        self._chunk: ChunkT = self._kind(
            id, created, model, [], system_fingerprint=fingerprint, service_tier=service_tier, usage=usage
        )
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def text(self, delta: str, index: int = 0) -> bytes:
        """More of answer ``index``."""
        around = self._around.get(index)
        if around is None:
            before, _, after = self.event(self._text_choice(index, _MARK)).rpartition(_MARK_JSON)
            around = self._around[index] = before, after
        return around[0] + _one_line(_encoder.encode(delta)) + around[1]

    def event(self, *choices: ChunkChoice | CompletionChoice, **more: object) -> bytes:
        """The event with these choices; ``more`` are fields of the chunk, such as ``usage``."""
        return event(_encoder.encode(msgspec.structs.replace(self._chunk, choices=list(choices), **more)))

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage and no choices."""
        return self.event(usage=usage)

    def _text_choice(self, index: int, text: str) -> ChunkChoice | CompletionChoice:
        raise NotImplementedError


class ChatStream(_ChunkStream[ChatCompletionChunk]):
    """Makes the events of a streamed chat answer: `role`, then `text`s, then `finish`, then `usage`, then `DONE`.

    What is more than text goes through `event`.
    """

    __slots__ = ()
    _kind = ChatCompletionChunk

    def role(self, index: int = 0) -> bytes:
        """The first event of an answer: whose message it is."""
        return self.event(ChunkChoice(index, Delta(role="assistant", content="")))

    def finish(self, reason: FinishReason, index: int = 0) -> bytes:
        """An answer is complete, and why."""
        return self.event(ChunkChoice(index, Delta(), reason))

    def _text_choice(self, index: int, text: str) -> ChunkChoice:
        return ChunkChoice(index, Delta(content=text))


class CompletionStream(_ChunkStream[Completion]):
    """Makes the events of a streamed completion: `text`s, `finish` for each choice, then `usage`, then `DONE`."""

    __slots__ = ()
    _kind = Completion

    def finish(self, reason: FinishReason, index: int = 0) -> bytes:
        """Answer ``index`` is complete, and why."""
        return self.event(CompletionChoice(index, "", reason))

    def _text_choice(self, index: int, text: str) -> CompletionChoice:
        return CompletionChoice(index, text)
