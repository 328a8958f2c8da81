"""How is an answer written in Anthropic's shape? As blocks of a message, whole or in the events of a stream."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from gateway.api.form import Answer, Delta, ToolCall
from gateway.api.generation import answer_id
from gateway.text.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallBegin
from gateway.wire.errors import ApiError
from gateway.wire.generation import Usage
from gateway.wire.messages_answer import (
    Block,
    BlockDeltas,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    ErrorBody,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    SignatureDelta,
    StopDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    encode,
    event,
)
from gateway.wire.messages_chat import renamed

_TIER: Final = "standard"
_Kind = Literal["text", "thinking", "tool_use"]
_DELTAS: Final[Mapping[_Kind, type[TextDelta] | type[ThinkingDelta] | type[InputJsonDelta]]] = {
    "text": TextDelta,
    "thinking": ThinkingDelta,
    "tool_use": InputJsonDelta,
}
_NOTHING: Final = msgspec.Raw(b"{}")
_object: Final = msgspec.json.Decoder(dict[str, Any])


class MessagesForm:
    """Writes an answer as Anthropic's events or as one message.

    ``show_thinking`` is false where the request wants it ``omitted``: then a block stands for it, but it is empty.
    """

    def __init__(self, model: str, request_id: str, *, show_thinking: bool = True) -> None:
        self._id = answer_id("msg_")
        self._model = model
        self._request_id = request_id
        self._show_thinking = show_thinking
        self._index = -1
        self._open: _Kind | None = None
        self._deltas = BlockDeltas(0, TextDelta)
        self._called = False
        self._stop = StopDelta("end_turn", None)

    def begin(self, usage: Usage, prompts: Sequence[Sequence[int]] = ()) -> bytes:
        return event(MessageStart(Message(self._id, self._model, [], MessageUsage.of(usage, _TIER))))

    def delta(self, index: int, delta: Delta) -> bytes:
        return b"".join([self._part(part) for part in delta.parts or ()])

    def finish(self, answer: Answer) -> bytes:
        self._stop = _stop(answer, self._called)
        return self._close()

    def end(self, usage: Usage) -> bytes:
        return event(MessageDelta(self._stop, MessageUsage.of(usage))) + event(MessageStop())

    def whole(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        (answer,) = answers
        blocks: list[Block] = []
        if answer.reasoning:
            blocks.append(ThinkingBlock(answer.reasoning if self._show_thinking else ""))
        if answer.content:
            blocks.append(TextBlock(answer.content))
        blocks += [_called(call) for call in answer.tool_calls]
        stop = _stop(answer, any(isinstance(block, ToolUseBlock) for block in blocks))
        usage_here = MessageUsage.of(usage, _TIER)
        return encode(Message(self._id, self._model, blocks, usage_here, stop.stop_reason, stop.stop_sequence))

    def fault(self, error: ApiError) -> bytes:
        return event(error_body(error, self._request_id))

    def _part(self, part: Part) -> bytes:
        match part:
            case Content(text):
                begun = b"" if self._open == "text" else self._begin("text", TextBlock(""))
                return begun + self._deltas.event(text)
            case Reasoning(text):
                begun = b"" if self._open == "thinking" else self._begin("thinking", ThinkingBlock(""))
                return begun + self._deltas.event(text) if self._show_thinking else begun
            case ToolCallBegin(_, name):
                self._called = True
                return self._begin("tool_use", ToolUseBlock(answer_id("toolu_"), name, _NOTHING))
            case ToolCallArguments(_, text):
                return self._deltas.event(text)

    def _begin(self, kind: _Kind, block: Block) -> bytes:
        """A block begins, and the one before it ends."""
        closed = self._close()
        self._open = kind
        self._index += 1
        self._deltas = BlockDeltas(self._index, _DELTAS[kind])
        return closed + event(ContentBlockStart(self._index, block))

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = event(ContentBlockDelta(self._index, SignatureDelta())) if self._open == "thinking" else b""
        self._open = None
        return signed + event(ContentBlockStop(self._index))


def error_body(error: ApiError, request_id: str) -> ErrorBody:
    """``error`` in Anthropic's shape, with the path that its field has there."""
    return ErrorBody.of(error.status, renamed(error), request_id, error.param)


def _called(call: ToolCall) -> Block:
    """A call as a block; as text where its arguments are no JSON object, as when the answer was cut within them."""
    arguments = call.arguments.strip() or "{}"
    try:
        _object.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return TextBlock(f"{call.name} {call.arguments}")
    return ToolUseBlock(answer_id("toolu_"), call.name, msgspec.Raw(arguments.encode()))


def _stop(answer: Answer, called: bool) -> StopDelta:
    if answer.stop_string is not None:
        return StopDelta("stop_sequence", answer.stop_string)
    reason: StopReason = "end_turn"
    if answer.reason == "length":
        reason = "max_tokens"
    elif called:
        reason = "tool_use"
    return StopDelta(reason, None)
