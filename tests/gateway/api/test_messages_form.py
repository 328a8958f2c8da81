"""How answers are written in Anthropic's shape: whole or in events, the official client reads the same message."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.api.form import Answer, Delta, ToolCall
from gateway.api.messages_form import MessagesForm
from gateway.text.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallBegin
from gateway.wire.errors import invalid_value, unavailable
from gateway.wire.generation import Usage

_event: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = Usage.of(prompt=10, completion=4, cached=7)


def collected(parts: Sequence[Part], **fields: Any) -> Answer:
    """The answer that consists of ``parts``."""
    answer = Answer(0, [1], tool_calls=[], **fields)
    for part in parts:
        match part:
            case Content(text):
                answer.content += text
            case Reasoning(text):
                answer.reasoning += text
            case ToolCallBegin(_, name):
                answer.tool_calls.append(ToolCall(name, ""))
            case ToolCallArguments(index, text):
                call = answer.tool_calls[index]
                answer.tool_calls[index] = ToolCall(call.name, call.arguments + text)
    return answer


def whole(parts: Sequence[Part], *, show_thinking: bool = True, **fields: Any) -> Message:
    form = MessagesForm("m", "req-1", show_thinking=show_thinking)
    return Message.model_validate_json(form.whole([collected(parts, **fields)], USAGE))


def events(parts: Sequence[Part], *, show_thinking: bool = True, **fields: Any) -> list[Any]:
    """The data of each event of a stream; names are what they should be."""
    form = MessagesForm("m", "req-1", show_thinking=show_thinking)
    sent = form.begin(Usage.of(prompt=10, completion=0, cached=7))
    for part in parts:
        sent += form.delta(0, Delta("", [part]))
    sent += form.delta(0, Delta(""))
    sent += form.finish(collected(parts, **fields)) + form.end(USAGE)
    out = []
    for block in sent.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    return out


def streamed(parts: Sequence[Part], **fields: Any) -> Message:
    """What the client makes of the events."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    for event in events(parts, **fields):
        message = accumulate_event(event=_event.validate_python(event), current_snapshot=message, json_bufs=buffers)
    found: Message = message
    return found


def shown(message: Message) -> dict[str, Any]:
    """A message without the ids that are drawn, and without the tier, which the client forgets while it streams."""
    out = message.model_dump(exclude_none=True, exclude={"id": True, "usage": {"service_tier"}})
    for block in out["content"]:
        assert block.pop("id", "toolu_").startswith("toolu_")
    return out


CALLS: list[Part] = [
    Reasoning("Look "),
    Reasoning("outside."),
    Content("Let me see."),
    ToolCallBegin(0, "weather"),
    ToolCallArguments(0, '{"city": '),
    ToolCallArguments(0, '"Oslo"}'),
    ToolCallBegin(1, "clock"),
]


def test_a_whole_message() -> None:
    found = whole(CALLS, reason="tool_calls")
    assert [block.type for block in found.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, text, weather, clock = found.content
    assert thinking.type == "thinking" and (thinking.thinking, thinking.signature) == ("Look outside.", "")
    assert text.type == "text" and text.text == "Let me see."
    assert weather.type == "tool_use" and (weather.name, weather.input) == ("weather", {"city": "Oslo"})
    assert clock.type == "tool_use" and clock.input == {}
    assert weather.id != clock.id
    assert found.id.startswith("msg_")
    assert (found.stop_reason, found.stop_sequence) == ("tool_use", None)
    assert (found.usage.input_tokens, found.usage.cache_read_input_tokens, found.usage.output_tokens) == (3, 7, 4)


def test_the_events_of_a_stream() -> None:
    found = events(CALLS, reason="tool_calls")
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [event["delta"]["type"] for event in found if event["type"] == "content_block_delta"] == [
        *["thinking_delta"] * 2,
        "signature_delta",
        "text_delta",
        *["input_json_delta"] * 2,
    ]
    first = found[0]["message"]
    assert (first["content"], first["stop_reason"], first["usage"]["input_tokens"]) == ([], None, 3)
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 4


def test_omitted_thinking_leaves_an_empty_block() -> None:
    for found in (whole(CALLS, show_thinking=False), streamed(CALLS, show_thinking=False)):
        assert found.content[0].to_dict() == {"type": "thinking", "thinking": "", "signature": ""}
        assert len(found.content) == 4


@pytest.mark.parametrize(
    ("reason", "stop_string", "stop_reason"),
    [
        ("stop", None, "end_turn"),
        ("length", None, "max_tokens"),
        ("stop", "END", "stop_sequence"),
        ("tool_calls", None, "end_turn"),  # where no call came out whole
    ],
)
def test_why_it_stopped(reason: Any, stop_string: str | None, stop_reason: str) -> None:
    for found in (
        whole([Content("x")], reason=reason, stop_string=stop_string),
        streamed([Content("x")], reason=reason, stop_string=stop_string),
    ):
        assert (found.stop_reason, found.stop_sequence) == (stop_reason, stop_string)


@pytest.mark.parametrize("arguments", ['{"city": "Os', "[1]", "5", "{]", "[" * 100_000, '{"a": 1e999}'])
def test_a_call_that_is_no_object_becomes_text(arguments: str) -> None:
    found = whole([ToolCallBegin(0, "weather"), ToolCallArguments(0, arguments)], reason="tool_calls")
    (block,) = found.content
    assert block.type == "text" and block.text == f"weather {arguments}"
    assert found.stop_reason == "end_turn"


def test_an_answer_cut_within_a_call() -> None:
    parts: list[Part] = [ToolCallBegin(0, "weather"), ToolCallArguments(0, '{"city": "Oslo", "da')]
    assert whole(parts, reason="length").stop_reason == "max_tokens"
    found = streamed(parts, reason="length")
    assert found.stop_reason == "max_tokens"
    assert found.content[0].type == "tool_use" and found.content[0].input == {"city": "Oslo"}


def test_an_empty_answer() -> None:
    assert whole([]).content == streamed([]).content == []


def test_a_stream_that_breaks() -> None:
    sent = MessagesForm("m", "req-1").fault(unavailable("The worker died."))
    assert sent == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"The worker died."},'
        b'"request_id":"req-1"}\n\n'
    )
    assert b"'stop_sequences.0'" in MessagesForm("m", "req-1").fault(invalid_value("stop.0", "so so"))


text = st.text(min_size=1, max_size=6)
pieces = st.lists(text, min_size=1, max_size=4)


@st.composite
def answers(draw: st.DrawFn) -> list[Part]:
    """Thinking, then text, then calls, each in pieces; each of them may be missing."""
    out: list[Part] = [Reasoning(piece) for piece in draw(st.just([]) | pieces)]
    out += [Content(piece) for piece in draw(st.just([]) | pieces)]
    for index, arguments in enumerate(
        draw(st.lists(st.dictionaries(text, text | st.integers(), max_size=2), max_size=3))
    ):
        written = json.dumps(arguments)
        cuts = sorted(draw(st.sets(st.integers(1, len(written) - 1), max_size=3)))
        out.append(ToolCallBegin(index, draw(st.sampled_from(["weather", "clock"]))))
        edges = [0, *cuts, len(written)]
        out += [ToolCallArguments(index, written[a:b]) for a, b in pairwise(edges)]
    return out


@given(answers(), st.sampled_from(["stop", "length"]), st.booleans())
def test_streamed_or_whole_it_is_the_same_message(parts: list[Part], reason: Any, show_thinking: bool) -> None:
    fields = {"reason": reason, "show_thinking": show_thinking}
    assert shown(streamed(parts, **fields)) == shown(whole(parts, **fields))
