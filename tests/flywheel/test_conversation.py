"""`flywheel.conversation`: however an answer passed through, the same messages come of it."""

from typing import Any

import msgspec
import pytest

from flywheel.conversation import messages

SAID = {"role": "assistant", "content": "Hello there"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}


def found(output: bytes) -> Any:
    return msgspec.json.decode(messages(output))


def stream(*chunks: Any) -> bytes:
    events = [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]
    return b": a comment\n\n" + b"".join(events) + b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": delta}]}


def test_messages_stay_what_they_are() -> None:
    assert messages(b' [{"role": "assistant"}]') == b' [{"role": "assistant"}]'


def test_a_body() -> None:
    body = {"choices": [{"index": 1, "message": CALL}, {"index": 0, "message": SAID}]}
    assert found(msgspec.json.encode(body)) == [SAID, CALL]
    assert found(b'{"choices": [{"text": "Hello there"}]}') == [SAID]


def test_a_stream() -> None:
    output = stream(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hello"}),
        chunk({"content": "Other"}, 1),
        chunk({"content": " there"}),
        {"choices": [], "usage": {"total_tokens": 3}},
    )
    assert found(output) == [SAID, {"role": "assistant", "content": "Other"}]
    assert found(output.replace(b"\n", b"\r\n")) == found(output)


def test_a_stream_of_calls() -> None:
    output = stream(
        chunk({"tool_calls": [{"index": 0, **CALL, "function": {"name": "look", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"at"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
    )
    assert found(output) == [{"role": "assistant", "content": None, "tool_calls": [CALL]}]


def test_a_stream_of_a_completion() -> None:
    assert found(stream({"choices": [{"text": "Hello"}]}, {"choices": [{"text": " there"}]})) == [SAID]


def test_a_stream_that_broke_off() -> None:
    output = stream(chunk({"content": "Hello"}), chunk({"content": " there"}), chunk({"content": ", you"}))
    assert found(output[: output.rindex(b"data: [DONE]")]) == [{**SAID, "content": "Hello there, you"}]
    assert found(output[: output.rindex(b", you")]) == [SAID]


def test_an_event_that_cannot_be_read_does_not_hide_the_others() -> None:
    output = stream(chunk({"content": "Hello"}), chunk({"content": " X there"}), {"choices": 7}, {"choices": None})
    assert found(output.replace(b"X", b"\xff")) == [{**SAID, "content": "Hello \ufffd there"}]
    assert found(output + b"data: {broken\n\ndata: {}\n") == [{**SAID, "content": "Hello X there"}]


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk({"role": "assistant", "content": None}), chunk({"content": "Hello"}), chunk({"content": " there"})],
        [chunk({"content": "b"}, 1), chunk({"content": "a"}), chunk({"content": "c"}, 1), chunk({})],
        [chunk({"role": "assistant"}), chunk({"tool_calls": None})],
        [chunk({"role": "tool", "content": "Hello"})],
        [chunk({"content": "Hello"}), {"choices": [], "usage": {}}, {"choices": [{"index": 0, "delta": None}]}],
        [chunk({"content": "data: \n\ndata: [DONE]"})],
    ],
)
def test_streams_as_most_are_are_read_as_others(pieces: list[Any]) -> None:
    """A comment, and a stream isn't as most are."""
    output = b"".join(b"data: " + msgspec.json.encode(piece) + b"\n\n" for piece in pieces) + b"data: [DONE]\n\n"
    assert messages(output) == messages(b": a comment\n\n" + output)
    assert messages(output).startswith(b'[{"role":')


def test_choices_take_turns() -> None:
    pieces = [chunk({"content": piece}, index) for piece in ("a", "b", "c") for index in (2, 0, 1)]
    assert found(stream(*pieces)) == [{"role": "assistant", "content": "abc"}] * 3


def test_other_pieces_of_a_chat() -> None:
    output = stream(
        chunk({"role": "assistant", "reasoning_content": "I", "content": None}),
        chunk({"reasoning_content": " think", "content": [{"type": "text", "text": "Hel"}]}),
        chunk({"function_call": {"name": "look"}, "content": ["lo", {"type": "x"}]}),
        chunk({"function_call": {"arguments": "{}"}, "annotations": [1]}),
        chunk({"tool_calls": [{"index": 1, "type": "custom", "custom": {"name": "run", "input": "l"}}]}),
        chunk({"tool_calls": [{"index": 1, "custom": {"input": "s"}}]}),
    )
    (message,) = found(output)
    assert (message["content"], message["reasoning_content"]) == ("Hello", "I think")
    assert message["function_call"] == {"name": "look", "arguments": "{}"}
    assert message["tool_calls"] == [{"type": "custom", "custom": {"name": "run", "input": "ls"}}]


THOUGHT = {**SAID, "reasoning_content": "Hm.", "tool_calls": [CALL]}


def test_a_response() -> None:
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "summary": [{"text": "Hm."}]},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "Hello"}, {"type": "refusal", "refusal": " there"}],
        },
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"at": 1}'},
    ]
    body = {"object": "response", "output": items}
    assert found(msgspec.json.encode(body)) == [THOUGHT]
    pieces: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"output": []}},
        {"type": "response.reasoning_summary_text.delta", "delta": "Hm."},
        {"type": "response.output_text.delta", "output_index": 1, "delta": "Hel"},
        {"type": "response.output_text.delta", "output_index": 1, "delta": "lo there"},
        {"type": "response.output_item.added", "output_index": 2, "item": {**items[2], "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"at"'},
        {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": ": 1}"},
    ]
    assert found(stream(*pieces)) == [THOUGHT]
    assert found(stream(*pieces[:3], {"type": "response.completed", "response": body})) == [THOUGHT]


def test_a_message() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Hello there"},
        {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": 1}},
    ]
    whole = {**THOUGHT, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"at":1}'}}]}
    assert found(msgspec.json.encode({"type": "message", "role": "assistant", "content": blocks})) == [whole]

    def delta(index: int, **of: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": of}

    output = stream(
        {"type": "message_start", "message": {"id": "msg_1"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        delta(0, type="thinking_delta", thinking="Hm."),
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        delta(1, type="text_delta", text="Hello th"),
        delta(1, type="text_delta", text="ere"),
        {"type": "content_block_start", "index": 2, "content_block": {**blocks[2], "input": {}}},
        delta(2, type="input_json_delta", partial_json='{"at"'),
        delta(2, type="input_json_delta", partial_json=": 1}"),
        {"type": "message_stop"},
    )
    assert found(output) == [THOUGHT]
    begun = {"type": "content_block_start", "index": 0, "content_block": blocks[2]}
    assert found(stream(begun)) == [{"role": "assistant", "content": None, "tool_calls": whole["tool_calls"]}]


@pytest.mark.parametrize(
    "output", [b"", b"something else", b'{"error": 1}', b'{"choices": [7]}', b"data: {broken", b"{"]
)
def test_what_is_nothing_of_the_kind_is_left_alone(output: bytes) -> None:
    assert messages(output) == output
