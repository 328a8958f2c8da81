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
    output = stream(chunk({"content": "Hello there"}))
    assert found(output[: output.rindex(b"data")]) == [SAID]


@pytest.mark.parametrize(
    "output", [b"", b"something else", b'{"error": 1}', b'{"choices": [7]}', b"data: {broken", b"{"]
)
def test_what_is_nothing_of_the_kind_is_left_alone(output: bytes) -> None:
    assert messages(output) == output
