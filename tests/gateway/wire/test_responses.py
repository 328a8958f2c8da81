"""The request of ``/v1/responses``: what is honoured, refused, or without effect."""

from typing import Any

import msgspec
import pytest

from gateway.wire.errors import ApiError
from gateway.wire.responses import INCLUDES, ResponsesRequest, Tool, decoder


def request(**fields: Any) -> ResponsesRequest:
    return decoder.decode(msgspec.json.encode({"model": "m", "input": "x", **fields}))


def fault(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        request(**fields).check()
    return raised.value


# A value that each refused field refuses.
REFUSED: dict[str, Any] = {
    "background": True,
    "background_options": {"completion_window": "2h"},
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "truncation": "auto",
    "context_management": [{"type": "compaction"}],
    "moderation": {"model": "omni"},
    "access_programs": {"cyber": "standard"},
    "image": {"context_compression": "auto"},
    "prompt_cache_options": {"mode": "explicit"},
    "text.verbosity": "low",
    "reasoning.summary": "detailed",
    "reasoning.generate_summary": "concise",
    "reasoning.context": "all_turns",
    "reasoning.mode": "pro",
    "stream_options.include_obfuscation": True,
}


def nested(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.mark.parametrize("path", ResponsesRequest.refused)
def test_refused_fields(path: str) -> None:
    error = fault(stream=True, **nested(path, REFUSED[path]))
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", path)
    assert ResponsesRequest.refused[path].reason in error.message
    for neutral in ResponsesRequest.refused[path].neutral:
        request(stream=True, **nested(path, neutral)).check()


def test_what_is_declared_exists() -> None:
    for struct in (ResponsesRequest, Tool):
        fields = struct.__struct_fields__
        for path in (*struct.refused, *struct.ignored):
            assert path.partition(".")[0] in fields


def test_null_means_the_default() -> None:
    names = [name for name in ResponsesRequest.__struct_encode_fields__ if name not in ("model", "input")]
    found = request(**dict.fromkeys(names))
    found.check()
    assert found == request()


def test_fields_that_nobody_knows_are_accepted() -> None:
    request(wibble=1).check()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "invalid_type", "input"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.*"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"max_output_tokens": 1 << 63}, "invalid_value", "max_output_tokens"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"include": ["file_search_call.results"]}, "unsupported_parameter", "include.0"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
        ({"text": {"format": {"type": "grammar"}}}, "invalid_value", "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "missing_required_parameter", "text.format.name"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "missing_required_parameter",
            "text.format.schema",
        ),
        ({"tools": [{"name": "f"}]}, "missing_required_parameter", "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.name"),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}, "unsupported_parameter", "tools.1.type"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "unsupported_parameter", "tools.0.type"),
        ({"tools": [{"type": "function", "name": "f", "async": True}]}, "unsupported_parameter", "tools.0.async"),
        (
            {"tools": [{"type": "function", "name": "f", "defer_loading": True}]},
            "unsupported_parameter",
            "tools.0.defer_loading",
        ),
        ({"tool_choice": {"type": "web_search_preview"}}, "unsupported_parameter", "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "missing_required_parameter", "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "missing_required_parameter", "tool_choice.mode"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "missing_required_parameter", "tool_choice.tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
            "unsupported_parameter",
            "tool_choice.tools.0.type",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}},
            "missing_required_parameter",
            "tool_choice.tools.0.name",
        ),
    ],
)
def test_faults(fields: dict[str, Any], code: str, param: str) -> None:
    error = fault(**fields)
    assert (error.status, error.code, error.param) == (400, code, param)


def test_includes() -> None:
    found = request(include=list(INCLUDES), top_logprobs=20)
    found.check()
    assert found.wants_logprobs
    assert not request(include=["reasoning.encrypted_content"]).wants_logprobs
