"""Items of ``/v1/responses``: what clients send, in the form in which we would have sent it."""

from typing import Any

import msgspec
import pytest

from gateway.wire.errors import ApiError
from gateway.wire.responses_items import (
    FunctionCall,
    FunctionCallOutput,
    InputText,
    Item,
    ItemReference,
    Message,
    OutputText,
    Reasoning,
    ReasoningText,
    Refusal,
    SummaryText,
    read_input,
)


def read(sent: dict[str, Any]) -> Item | ItemReference:
    (found,) = read_input([sent])
    assert found.path == "input.0"
    return found.item


def test_a_text_alone() -> None:
    ((path, item),) = read_input("hello")
    assert isinstance(item, Message)
    assert (path, item.role, item.content) == ("input", "user", [InputText("hello")])


@pytest.mark.parametrize(
    ("content", "role", "found"),
    [
        ("a", "user", [InputText("a")]),
        ("a", "developer", [InputText("a")]),
        ("a", "assistant", [OutputText("a")]),
        ([], "user", []),
        (
            [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}],
            "user",
            [InputText("a"), InputText("b")],
        ),
        (
            [{"type": "output_text", "text": "a", "annotations": [{"type": "x"}], "logprobs": None}],
            "assistant",
            [OutputText("a")],
        ),
        ([{"type": "refusal", "refusal": "no"}], "assistant", [Refusal("no")]),
    ],
)
def test_messages(content: Any, role: str, found: list[Any]) -> None:
    item = read({"role": role, "content": content})
    assert isinstance(item, Message)
    assert item.content == found
    assert item.id.startswith("msg_")


def test_other_items() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"}
    assert read(call) == FunctionCall(id="fc_1", call_id="call_1", name="f", arguments="{}")
    output = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
    found = read({**output, "id": "fco_1"})
    assert found == FunctionCallOutput(id="fco_1", call_id="call_1", output="7")
    found = read({**output, "output": [{"type": "input_text", "text": "7"}]})
    assert isinstance(found, FunctionCallOutput)
    assert found.output == [InputText("7")]
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "s"}],
        "content": [{"type": "reasoning_text", "text": "t"}],
        "encrypted_content": None,
    }
    assert read(thought) == Reasoning(id="rs_1", summary=[SummaryText("s")], content=[ReasoningText("t")])
    for sent in ({"id": "msg_1"}, {"id": "msg_1", "type": None}, {"id": "msg_1", "type": "item_reference"}):
        assert read(sent) == ItemReference("msg_1")


def test_what_was_read_can_be_read_again() -> None:
    """Items that were kept, or sent back by a client, stay as they are."""
    items = [
        read(
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}],
            }
        ),
        read({"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]}),
        read({"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}),
        read({"type": "function_call_output", "call_id": "call_1", "output": "7"}),
    ]
    sent = msgspec.json.encode(items)
    assert msgspec.json.decode(sent, type=list[Item]) == items
    assert [found.item for found in read_input(msgspec.json.decode(sent))] == items


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ({"type": "web_search_call", "id": "ws_1"}, "unsupported_parameter", "input.0.type"),
        ({"type": 7}, "unsupported_parameter", "input.0.type"),
        ({"type": ["message"]}, "unsupported_parameter", "input.0.type"),
        ({}, "missing_required_parameter", "input.0.id"),
        ({"role": "user"}, "missing_required_parameter", "input.0.content"),
        ({"role": "wizard", "content": "a"}, "invalid_value", "input.0.role"),
        ({"role": "user", "content": 7}, "invalid_type", "input.0.content"),
        ({"role": "user", "content": [{"text": "a"}]}, "missing_required_parameter", "input.0.content.0.type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "missing_required_parameter", "input.0.content.0.text"),
        ({"role": "user", "content": [{"type": "refusal"}]}, "missing_required_parameter", "input.0.content.0.refusal"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "unsupported_content", "input.0.content.0.type"),
        ({"role": "user", "content": [{"type": "wibble"}]}, "invalid_value", "input.0.content.0.type"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "missing_required_parameter", "input.0.arguments"),
        ({"type": "function_call_output", "output": "7"}, "missing_required_parameter", "input.0.call_id"),
        (
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]},
            "unsupported_content",
            "input.0.output.0.type",
        ),
        ({"type": "reasoning", "content": [{"text": 7}]}, "invalid_type", "input.0.content.0.text"),
    ],
)
def test_faults(sent: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as raised:
        read_input([sent])
    error = raised.value
    assert (error.status, error.code, error.param) == (400, code, param)
    assert f"'{param}'" in error.message
