"""What comes out of ``/v1/messages``? Anthropic's message, the events of a streamed one, and its error object."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from gateway.wire import sse
from gateway.wire.generation import Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

ERROR_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
"""The type of an error by its status; other statuses below 500 count as 400, others above as 500."""


class TextBlock(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text of the answer."""

    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """What the model thought. The signature is empty: nobody asks who thought it when it comes back."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call of a tool; ``input`` is the JSON object that the model wrote."""

    id: str
    name: str
    input: msgspec.Raw


Block = TextBlock | ThinkingBlock | ToolUseBlock


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """``thinking_tokens``: how many tokens of the answer went into thinking, markers included."""

    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many tokens went in and came out: ``input_tokens`` are those of the prompt that weren't cached."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens_details: OutputTokensDetails | None = None
    service_tier: str | None = None

    @classmethod
    def of(cls, usage: Usage, service_tier: str | None = None) -> "MessageUsage":
        """The same counts as ``usage``, in Anthropic's arrangement. Nothing is charged for filling the cache."""
        cached = usage.prompt_tokens_details.cached_tokens
        details = usage.completion_tokens_details
        return cls(
            input_tokens=usage.prompt_tokens - cached,
            output_tokens=usage.completion_tokens,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=cached,
            output_tokens_details=None if details is None else OutputTokensDetails(details.reasoning_tokens),
            service_tier=service_tier,
        )


class Message(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """An answer. In the event that begins a stream it has no content yet and no reason to have stopped."""

    id: str
    model: str
    content: list[Block]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """The first event of a stream."""

    message: Message


class ContentBlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins; it is still empty."""

    index: int
    content_block: Block


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More of a block of text."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """More of a block of thinking."""

    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag_field="type", tag="signature_delta"):
    """The end of a block of thinking."""

    signature: str = ""


class InputJsonDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of the JSON of a call's input."""

    partial_json: str


class ContentBlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """A block grows."""

    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class StopDelta(msgspec.Struct, frozen=True):
    """Why the answer ends, and by which of the stop sequences if it was one."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """What is known of the message now that it is complete. The usage is that of the whole."""

    delta: StopDelta
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """The last event of a stream."""


class ErrorCode(msgspec.Struct, frozen=True):
    """What Anthropic's client looks at to help itself: without ``thread`` it sends the whole conversation."""

    error_code: Literal["thread_unsupported_request"]


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong; the path of the field at fault is in the message."""

    type: str
    message: str
    details: ErrorCode | None = None


class ErrorBody(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The body of every answer that is an error, and the event that ends a stream which broke."""

    error: ErrorDetail
    request_id: str

    @classmethod
    def of(cls, status: int, message: str, request_id: str, field: str | None = None) -> "ErrorBody":
        """The error for an HTTP status; ``field`` is the one at fault."""
        type = ERROR_TYPES.get(status) or ERROR_TYPES[400 if status < 500 else 500]
        details = ErrorCode("thread_unsupported_request") if field == "thread" else None
        return cls(ErrorDetail(type, message, details), request_id)


class TokenCount(msgspec.Struct, frozen=True):
    """What ``/v1/messages/count_tokens`` answers."""

    input_tokens: int


Event = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop | ErrorBody

encode = msgspec.json.Encoder().encode


def event(event: Event) -> bytes:
    """A server-sent event, named by its type as Anthropic's clients want it."""
    name: Any = type(event).__struct_config__.tag
    return b"event: %s\n%s" % (name.encode(), sse.event(encode(event)))


_MARK: Final = "\x00penstock\x00"
_DELTA: Final = b"event: content_block_delta\n"


class BlockDeltas:
    """Makes the events with which block ``index`` grows by text: all around the text is encoded once, as in `sse`.

    0.4 µs an event instead of 0.9 for the whole struct (one core of a small cloud machine).
    """

    __slots__ = ("_after", "_before")

    def __init__(self, index: int, kind: type[TextDelta] | type[ThinkingDelta] | type[InputJsonDelta]) -> None:
        self._before, _, self._after = encode(ContentBlockDelta(index, kind(_MARK))).rpartition(encode(_MARK))

    def event(self, text: str) -> bytes:
        """The block has ``text`` more."""
        return _DELTA + sse.event(self._before + encode(text) + self._after)
