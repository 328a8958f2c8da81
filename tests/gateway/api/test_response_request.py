"""From a request of ``/v1/responses`` to a chat request, and back for errors."""

from typing import Any

import msgspec
import pytest

from gateway.api.response_request import Conversation, chat_request, own_fault, read_conversation
from gateway.api.response_store import ResponseStore
from gateway.wire import errors
from gateway.wire.chat import ChatCompletionRequest, ChatMessage, template_messages
from gateway.wire.errors import ApiError
from gateway.wire.responses import ResponsesRequest, decoder

CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}


def request(input: Any = "x", **fields: Any) -> ResponsesRequest:
    found = decoder.decode(msgspec.json.encode({"model": "m", "input": input, **fields}))
    found.check()
    return found


def conversation(*input: Any, **fields: Any) -> Conversation:
    return read_conversation(request(list(input), **fields), ResponseStore())


def shown(*input: Any, **fields: Any) -> list[dict[str, Any]]:
    """What a chat template is shown."""
    return template_messages(conversation(*input, **fields).messages)


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def converted(**fields: Any) -> ChatCompletionRequest:
    found = chat_request(request(**fields), [ChatMessage(role="user", content="x")])
    found.check()
    return found


def test_messages() -> None:
    parts = [{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]
    assert shown(says("developer", "a"), says("user", parts), says("user", []), instructions="i") == [
        says("system", "i"),
        says("system", "a"),
        says("user", [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]),
        says("user", ""),
    ]


def test_a_turn_of_the_assistants_is_one_message() -> None:
    other = {**CALL, "call_id": "call_2", "name": "g"}
    found = shown(THOUGHT, says("assistant", "a"), CALL, other, OUTPUT, {**OUTPUT, "call_id": "call_2"})
    assert [message["role"] for message in found] == ["assistant", "tool", "tool"]
    assert (found[0]["reasoning_content"], found[0]["content"]) == ("hm", "a")
    assert [call["id"] for call in found[0]["tool_calls"]] == ["call_1", "call_2"]
    assert [message["tool_call_id"] for message in found[1:]] == ["call_1", "call_2"]


def test_turns_of_the_assistants_stay_apart() -> None:
    assert shown(says("assistant", "a"), says("assistant", "b")) == [says("assistant", "a"), says("assistant", "b")]
    found = shown(says("assistant", "a"), THOUGHT, THOUGHT, says("assistant", "b"))
    assert [message["content"] for message in found] == ["a", "b"]
    assert found[1]["reasoning_content"] == "hmhm"
    assert [message["content"] for message in shown(CALL, says("assistant", "b"))] == ["", "b"]


def test_reasoning_that_nobody_can_read_is_left_out() -> None:
    assert shown({"type": "reasoning", "encrypted_content": "…", "summary": []}, says("user", "a")) == [
        says("user", "a")
    ]
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}
    assert shown(summary)[0]["reasoning_content"] == "s"


def test_an_output_without_its_call() -> None:
    with pytest.raises(ApiError) as raised:
        conversation(OUTPUT, CALL)
    assert (raised.value.code, raised.value.param) == ("invalid_value", "input.0.call_id")
    assert "call_1" in raised.value.message


def test_where_messages_came_from() -> None:
    found = conversation(says("user", "a"), THOUGHT, CALL, OUTPUT, instructions="i")
    assert found.paths == ["instructions", "input.0", "input.1", "input.3"]
    assert [item.id[:2] for item in found.input] == ["ms", "rs", "fc", "fc"]


def test_fields() -> None:
    found = converted(
        max_output_tokens=5,
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        temperature=0.5,
        stream=True,
        parallel_tool_calls=False,
        chat_template_kwargs={"enable_thinking": False},
        structured_outputs={"regex": "a+"},
    )
    assert found.answer_limit() == ("max_completion_tokens", 5)
    assert found.template_variables() == {"enable_thinking": False, "reasoning_effort": "low"}
    assert (found.top_logprobs_wanted, found.temperature, found.stream) == (3, 0.5, True)
    shape = found.shape()
    assert shape is not None and shape.kind == "regex"
    assert converted().top_logprobs_wanted is None
    assert converted(text={"format": {"type": "text"}}).shape() is None
    shape = converted(text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}).shape()
    assert shape is not None and (shape.kind, shape.value) == ("json_schema", {"type": "object"})


def test_tools() -> None:
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]
    called = converted(tools=tools, tool_choice={"type": "function", "name": "g"}).called_tools()
    assert called is not None
    assert ([it.name for it in called.shown], [it.name for it in called.functions]) == (["f", "g"], ["g"])
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    called = converted(tools=tools, tool_choice=choice, parallel_tool_calls=False).called_tools()
    assert called is not None
    assert (called.mode, [it.name for it in called.functions], called.parallel) == ("required", ["f"], False)
    assert converted(tools=tools, tool_choice="none").called_tools() is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("messages", "input"),
        ("messages.1.content.0.type", "input.4"),
        ("messages.0", "instructions"),
        ("max_completion_tokens", "max_output_tokens"),
        ("max_tokens", "max_output_tokens"),
        ("reasoning_effort", "reasoning.effort"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tools.3.function.parameters", "tools.3.parameters"),
        ("tools", "tools"),
        ("tools.3.function.parameters.properties.function.type", "tools.3.parameters.properties.function.type"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("tool_choice.allowed_tools.tools.2.function.name", "tool_choice.tools.2.name"),
        ("temperature", "temperature"),
    ],
)
def test_errors_name_the_fields_of_this_endpoint(theirs: str, ours: str) -> None:
    error = own_fault(errors.invalid_value(theirs, "no"), ["instructions", "input.4"])
    assert (error.status, error.code, error.param) == (400, "invalid_value", ours)
    assert error.message == f"Invalid value for '{ours}': no."


def test_errors_of_no_field_stay_as_they_are() -> None:
    error = errors.overloaded(3)
    assert own_fault(error, []) is error
    long = errors.context_length_exceeded(max_model_len=8, prompt_tokens=4, max_tokens=9, param="max_completion_tokens")
    found = own_fault(long, [])
    assert (found.param, found.code) == ("max_output_tokens", "context_length_exceeded")
    assert found.message.endswith("lower max_output_tokens.")


def test_a_shape_that_is_said_twice() -> None:
    asked = request(structured_outputs={"regex": "a"}, text={"format": {"type": "json_object"}})
    with pytest.raises(ApiError) as raised:
        chat_request(asked, [ChatMessage(role="user", content="x")]).check()
    error = own_fault(raised.value, ["input"])
    assert "'text.format'" in error.message and "'structured_outputs.regex'" in error.message
    assert "response_format" not in error.message
