"""Anthropic's request: which fields are honoured, without effect or refused, and what chat request it becomes."""

import json
from typing import Any

import msgspec
import pytest

from gateway.wire import messages
from gateway.wire.chat import ChatCompletionRequest, template_messages
from gateway.wire.errors import ApiError, context_length_exceeded, invalid_value
from gateway.wire.messages import CountTokensRequest, MessagesRequest, OutputConfig, Tool
from gateway.wire.messages_chat import anthropic_path, chat_request, renamed
from gateway.wire.messages_history import ContentBlock, turns

USER = {"role": "user", "content": "x"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Looks outside.", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "rain"}


def request(*history: Any, **fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 9, "messages": history or [USER], **fields}
    return messages.decoder.decode(json.dumps(body).encode())


def converted(*history: Any, **fields: Any) -> ChatCompletionRequest:
    asked = request(*history, **fields)
    asked.check()
    chat = chat_request(asked)
    chat.check()
    return chat


def prompt(*history: Any, **fields: Any) -> list[dict[str, Any]]:
    return template_messages(converted(*history, **fields).messages)


def fault(*history: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        converted(*history, **fields)
    assert caught.value.status == 400
    return caught.value


def test_what_is_honoured() -> None:
    chat = converted(
        stop_sequences=["END"], temperature=0.5, top_p=0.9, top_k=5, metadata={"user_id": "ann"}, stream=True
    )
    assert chat.answer_limit()[1] == 9
    assert (chat.stops, chat.temperature, chat.top_p, chat.top_k) == (["END"], 0.5, 0.9, 5)
    assert (chat.user, chat.stream, chat.model) == ("ann", True, "m")
    assert chat.called_tools() is None and chat.shape() is None
    assert not chat.continue_final_message


def test_null_means_the_default() -> None:
    fields = {
        name: None for name in MessagesRequest.__struct_fields__ if name not in ("model", "messages", "max_tokens")
    }
    assert converted(**fields) == converted()


def test_the_system_prompt_and_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    assert prompt(USER, system="Be kind.") == [{"role": "system", "content": "Be kind."}, USER]
    bare = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert prompt({"role": "user", "content": parts}, system=parts) == [
        {"role": "system", "content": bare},
        {"role": "user", "content": bare},
    ]
    assert prompt(USER, system=[]) == prompt(USER, system="") == [USER]
    later = {"role": "system", "content": "Be brief."}
    assert prompt(USER, later, USER) == [USER, later, USER]


def test_successive_messages_of_a_role_are_one_turn() -> None:
    found = prompt({"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]})
    assert found == [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert [turn.role for turn in turns(request(USER, USER, {"role": "assistant", "content": "y"}, USER).messages)] == [
        "user",
        "assistant",
        "user",
    ]


def test_a_tool_is_called_and_answers() -> None:
    thought = {"type": "thinking", "thinking": "Look outside.", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    second = {**CALL, "id": "t2", "input": {}}
    failed = {
        "type": "tool_result",
        "tool_use_id": "t2",
        "content": [{"type": "text", "text": "no net"}],
        "is_error": True,
    }
    found = prompt(
        USER,
        {"role": "assistant", "content": [thought, hidden, {"type": "text", "text": "Let me see."}, CALL, second]},
        {"role": "user", "content": [RESULT, failed, {"type": "text", "text": "and?"}]},
        tools=[TOOL],
    )
    assert found == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Look outside.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
                {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no net"},
        {"role": "user", "content": "and?"},
    ]
    silent = {"type": "tool_result", "tool_use_id": "t1"}
    found = prompt(USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [silent]}, tools=[TOOL])
    assert found[1]["content"] == ""
    assert found[2] == {"role": "tool", "tool_call_id": "t1", "content": ""}
    said = {**RESULT, "content": "broken", "is_error": True}
    assert prompt(USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [said]})[2][
        "content"
    ] == ("Error: broken")


@pytest.mark.parametrize(
    ("choice", "mode", "parallel"),
    [
        (None, "auto", True),
        ({"type": "auto"}, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", True),
        ({"type": "tool", "name": "weather"}, "named", False),
    ],
)
def test_tools_and_the_choice_among_them(choice: Any, mode: str, parallel: bool) -> None:
    tools = converted(tools=[TOOL, {**TOOL, "name": "other", "type": "custom", "strict": True}], tool_choice=choice)
    called = tools.called_tools()
    assert called is not None
    assert (called.mode, called.parallel) == (mode, parallel)
    assert [function.name for function in called.shown] == ["weather", "other"]
    assert (called.shown[0].description, called.shown[0].parameters) == ("Looks outside.", SCHEMA)
    assert [function.strict for function in called.shown] == [None, True]
    assert len(called.functions) == (1 if mode == "named" else 2)


def test_no_tool_is_to_be_called() -> None:
    assert converted(tools=[TOOL], tool_choice={"type": "none"}).called_tools() is None
    assert converted(tools=[], tool_choice={"type": "none"}).called_tools() is None


def test_a_prefilled_answer_is_continued() -> None:
    chat = converted(USER, {"role": "assistant", "content": "The answer is ("})
    assert (chat.continue_final_message, chat.add_generation_prompt) == (True, False)


@pytest.mark.parametrize(
    ("thinking", "variables"),
    [
        (None, {}),
        ({"type": "disabled"}, {"enable_thinking": False}),
        ({"type": "adaptive"}, {"enable_thinking": True}),
        ({"type": "enabled", "budget_tokens": 5}, {"enable_thinking": True, "thinking_budget": 5}),
        ({"type": "enabled", "display": "omitted"}, {"enable_thinking": True}),
    ],
)
def test_thinking(thinking: Any, variables: dict[str, Any]) -> None:
    assert converted(thinking=thinking).template_variables() == variables


def test_effort_and_schema() -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    chat = converted(output_config={"effort": "max", "format": wanted})
    assert chat.template_variables() == {"reasoning_effort": "max"}
    shape = chat.shape()
    assert shape is not None
    assert (shape.kind, shape.value) == ("json_schema", SCHEMA)
    assert converted(output_format=wanted).shape() == shape
    assert fault(output_config={"format": wanted}, output_format=wanted).param == "output_format"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"temperature": 1.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"max_tokens": 0}, "unsupported_parameter", "max_tokens"),
        ({"max_tokens": -1}, "invalid_value", "max_completion_tokens"),
        ({"max_tokens": None}, "invalid_type", "max_tokens"),
        ({"top_p": 2}, "invalid_value", "top_p"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"stop_sequences": [""]}, "invalid_value", "stop.0"),
        ({"stop_sequences": "x"}, "invalid_type", "stop_sequences"),
        ({"service_tier": "flex"}, "invalid_value", "service_tier"),
        ({"wibble": 1}, "invalid_value", None),
        ({"system": [{"type": "image"}]}, "unsupported_content", "system.0.type"),
        ({"system": [{"type": "text"}]}, "missing_required_parameter", "system.0.text"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "unsupported_parameter", "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "missing_required_parameter", "tools.0.input_schema"),
        ({"tools": [{**TOOL, "input_schema": {}}]}, "invalid_value", "tools.0.input_schema.type"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "invalid_value", "tools.0.name"),
        ({"tools": [{**TOOL, "name": ""}]}, "invalid_value", "tools.0.name"),
        ({"tools": [TOOL, TOOL]}, "invalid_value", "tools.1.name"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "unsupported_parameter", "tools.0.defer_loading"),
        ({"tool_choice": {"type": "any"}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "wish"}}, "invalid_value", "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "missing_required_parameter", "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "invalid_value", "tool_choice.name"),
        ({"thinking": {"type": "between_tools"}}, "invalid_value", "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "invalid_value", "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "invalid_value", "thinking.budget_tokens"),
        ({"output_config": {"effort": "some"}}, "invalid_value", "output_config.effort"),
        ({"output_config": {"task_budget": {}}}, "unsupported_parameter", "output_config.task_budget"),
    ],
)
def test_faults(fields: dict[str, Any], code: str, param: str | None) -> None:
    error = fault(**fields)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("history", "code", "param"),
    [
        ([{"role": "tool", "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": "user"}], "missing_required_parameter", "messages.0.content"),
        ([{"role": "user", "content": []}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": ""}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "unsupported_content", "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "document"}]}], "unsupported_content", "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "missing_required_parameter", "messages.0.content.0.text"),
        ([{"role": "user", "content": [CALL]}], "invalid_value", "messages.0.content.0.type"),
        ([{"role": "user", "content": [RESULT]}], "invalid_value", "messages.0.content.0.tool_use_id"),
        ([USER, {"role": "assistant", "content": [CALL]}], "invalid_value", "messages.1.content.0.id"),
        ([USER, {"role": "assistant", "content": [CALL]}, USER], "invalid_value", "messages.1.content.0.id"),
        ([USER, {"role": "assistant", "content": [CALL, CALL]}, USER], "invalid_value", "messages.1.content.1.id"),
        (
            [USER, {"role": "assistant", "content": [CALL]}, USER, {"role": "user", "content": [RESULT]}],
            "invalid_value",
            "messages.3.content.0",
        ),
        (
            [USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT, RESULT]}],
            "invalid_value",
            "messages.2.content.1.tool_use_id",
        ),
        (
            [
                USER,
                {"role": "assistant", "content": [CALL]},
                {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]},
            ],
            "unsupported_content",
            "messages.2.content.0.content.0.type",
        ),
        (
            [USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]}],
            "missing_required_parameter",
            "messages.1.content.0.input",
        ),
        (
            [USER, {"role": "assistant", "content": [{"type": "thinking"}]}],
            "missing_required_parameter",
            "messages.1.content.0.thinking",
        ),
    ],
)
def test_conversations_that_make_no_sense(history: list[Any], code: str, param: str) -> None:
    error = fault(*history)
    assert (error.code, error.param) == (code, param)


def test_no_messages() -> None:
    assert fault(messages=[]).param == "messages"


@pytest.mark.parametrize("field", sorted(MessagesRequest.refused))
def test_refused_fields(field: str) -> None:
    refusal = MessagesRequest.refused[field]
    for neutral in refusal.neutral:
        converted(**{field: neutral})
    given = {
        "speed": "fast",
        "inference_geo": "eu",
        "fallback_credit_token": "t",
        "mcp_servers": [{}],
        "fallbacks": [1],
    }
    error = fault(**{field: given.get(field, {"id": "x"})})
    assert (error.code, error.param) == ("unsupported_parameter", field)
    assert refusal.reason in error.message


@pytest.mark.parametrize("struct", [CountTokensRequest, MessagesRequest, Tool, ContentBlock, OutputConfig])
def test_what_is_declared_exists(struct: type[msgspec.Struct]) -> None:
    declared = {*getattr(struct, "refused", ()), *getattr(struct, "ignored", ())}
    assert declared
    assert declared <= set(struct.__struct_fields__)


def test_counting_needs_no_limit() -> None:
    body = {"model": "m", "messages": [USER], "thinking": {"type": "enabled", "budget_tokens": 2000}}
    asked = messages.count_decoder.decode(json.dumps(body).encode())
    asked.check()
    assert chat_request(asked).answer_limit()[1] is None
    with pytest.raises(ApiError):
        messages.count_decoder.decode(json.dumps({**body, "max_tokens": 1}).encode())


@pytest.mark.parametrize(
    ("chat", "ours"),
    [
        ("messages", "messages"),
        ("max_tokens", "max_tokens"),
        ("max_completion_tokens", "max_tokens"),
        ("stop.3", "stop_sequences.3"),
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("response_format", "output_config.format"),
        ("tools.2.function.parameters.properties.x", "tools.2.input_schema.properties.x"),
        ("tools.2.function.name", "tools.2.name"),
        ("tool_choice.function.name", "tool_choice.name"),
    ],
)
def test_errors_name_the_fields_of_this_request(chat: str, ours: str) -> None:
    assert anthropic_path(chat) == ours
    assert renamed(invalid_value(chat, "so so")) == f"Invalid value for '{ours}': so so."


def test_errors_without_a_field_stay_as_they_are() -> None:
    error = context_length_exceeded(max_model_len=5, prompt_tokens=4, max_tokens=3)
    assert renamed(error) == error.message
    assert renamed(ApiError(500, "x", code="internal_error")) == "x"
