"""Chat messages: which are read, which are refused, and what the template gets."""

import json
from typing import Any

import pytest

from gateway.wire import chat
from gateway.wire.errors import ApiError

CALL = {"id": "call_1", "type": "function", "function": {"name": "price", "arguments": '{"room": 12}'}}


def decode(*messages: Any, **fields: Any) -> chat.ChatCompletionRequest:
    request = chat.decoder.decode(json.dumps({"model": "m", "messages": messages, **fields}).encode())
    request.check()
    return request


def test_template_messages() -> None:
    request = decode(
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "user", "content": ""},
    )
    assert chat.template_messages(request.messages) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": ""},
    ]


def test_template_messages_of_tools() -> None:
    request = decode(
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "80"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    )
    assert chat.template_messages(request.messages)[1:] == [
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "80"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_values_that_make_no_sense(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode({"role": "user", "content": "x"}, **fields)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ([], "invalid_value", "messages"),
        ([{"content": "x"}], "missing_required_parameter", "messages.0.role"),
        ([{"role": "user", "content": 5}], "invalid_type", "messages.0.content"),
        ([{"role": "robot", "content": "x"}], "invalid_value", "messages.0.role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "invalid_value", "messages.1.content"),
        ([{"role": "user", "content": [{"text": "x"}]}], "missing_required_parameter", "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_value", "messages.0.content.0.text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "unsupported_content",
            "messages.0.content.0.type",
        ),
        ([{"role": "tool", "content": "x"}], "missing_required_parameter", "messages.0.tool_call_id"),
        ([{"role": "function", "content": "x"}], "unsupported_parameter", "messages.0.role"),
        ([{"role": "assistant", "tool_calls": [{}]}], "missing_required_parameter", "messages.0.tool_calls.0.id"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "invalid_value", "messages.0.tool_calls"),
        ([{"role": "assistant", "function_call": {}}], "unsupported_parameter", "messages.0.function_call"),
    ],
)
def test_refused_messages(messages: list[Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(*messages)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_template_variables() -> None:
    user = {"role": "user", "content": "x"}
    request = decode(user, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    assert request.template_variables() == {"enable_thinking": False, "reasoning_effort": "low"}
    assert decode(user).template_variables() == {}


def test_openai_reads_the_answer() -> None:
    import msgspec
    from openai.types.chat import ChatCompletion

    from gateway.wire.generation import Usage

    answer = chat.ChatCompletion(
        id="chatcmpl-1",
        created=5,
        model="m",
        choices=[chat.ChatChoice(0, chat.AnswerMessage("Hello"), "length")],
        usage=Usage.of(prompt=3, completion=1, cached=2),
    )
    parsed = ChatCompletion.model_validate_json(msgspec.json.encode(answer), strict=True)
    assert parsed.choices[0].message.content == "Hello"
    assert parsed.usage and parsed.usage.prompt_tokens_details
    assert parsed.usage.prompt_tokens_details.cached_tokens == 2
    assert not parsed.model_extra
