"""Every failure has OpenAI's error object, a fitting status and a documented code."""

import inspect
import json
from typing import Any

import msgspec
import pytest

from gateway.wire import errors
from gateway.wire.errors import ERROR_CODES, ApiError

ALL: list[tuple[ApiError, int, str, str | None]] = [
    (errors.invalid_json("it is empty."), 400, "invalid_json", None),
    (errors.invalid_value("top_p", "2 is too much"), 400, "invalid_value", "top_p"),
    (errors.unsupported_parameter("n", "one answer"), 400, "unsupported_parameter", "n"),
    (
        errors.unsupported_content("messages.0.content.1.type", "image_url"),
        400,
        "unsupported_content",
        "messages.0.content.1.type",
    ),
    (errors.invalid_messages("Roles must alternate"), 400, "invalid_messages", "messages"),
    (errors.context_length_exceeded(max_model_len=8, prompt_tokens=9), 400, "context_length_exceeded", "messages"),
    (errors.request_too_large(10, 20), 413, "request_too_large", None),
    (errors.model_not_found("x", ["y"]), 404, "model_not_found", "model"),
    (errors.not_found("GET", "/x"), 404, "not_found", None),
    (errors.unknown_id("Response", "resp_1", "response_id"), 404, "not_found", "response_id"),
    (
        errors.previous_response_not_found("resp_1"),
        400,
        "previous_response_not_found",
        "previous_response_id",
    ),
    (errors.conflict("It has ended."), 409, "conflict", None),
    (errors.method_not_allowed("GET", "/x", ["POST"]), 405, "method_not_allowed", None),
    (errors.overloaded(1.2), 429, "overloaded", None),
    (errors.unavailable("starting"), 503, "unavailable", None),
    (errors.internal_error(), 500, "internal_error", None),
    (errors.invalid_key("No API key was sent."), 401, "invalid_api_key", None),
    (errors.model_not_allowed("x"), 403, "model_not_allowed", "model"),
    (errors.not_allowed("create batches"), 403, "not_allowed", None),
    (errors.rate_limit_exceeded("tokens", "Limit 8.", {}), 429, "rate_limit_exceeded", None),
    (errors.insufficient_quota("Limit 8.", {}), 429, "insufficient_quota", None),
    (errors.invalid_configuration("it is no YAML"), 422, "invalid_configuration", None),
    (errors.bad_upstream("It broke off."), 502, "bad_upstream", None),
    (errors.upstream_timeout("It fell silent."), 504, "upstream_timeout", None),
]


@pytest.mark.parametrize(("error", "status", "code", "param"), ALL, ids=[item[2] for item in ALL])
def test_shape(error: ApiError, status: int, code: str, param: str | None) -> None:
    body = json.loads(error.body)
    assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}
    assert (error.status, body["error"]["code"], body["error"]["param"]) == (status, code, param)
    assert (error.code, error.param, error.message) == (code, param, str(error)) and error.message
    other = {429: "rate_limit_error"} | dict.fromkeys((500, 502, 503, 504), "server_error")
    limits = {"rate_limit_exceeded": "tokens", "insufficient_quota": "insufficient_quota"}  # OpenAI's own types
    assert body["error"]["type"] == limits.get(code, other.get(status, "invalid_request_error"))
    assert error.body is error.body  # encoded once


def test_codes_are_listed() -> None:
    """Each code that the functions use is in the table, and the table has no others."""
    used = {code for _, _, code, _ in ALL} | {"invalid_type", "missing_required_parameter"}
    assert used == set(ERROR_CODES)
    source = inspect.getsource(errors)
    assert all(f'code="{code}"' in source for code in ERROR_CODES)


def test_both_numbers() -> None:
    too_long = errors.context_length_exceeded(max_model_len=4096, prompt_tokens=5000)
    assert "4096 tokens" in too_long.message and "5000 tokens" in too_long.message
    too_much = errors.context_length_exceeded(
        max_model_len=4096, prompt_tokens=1000, max_tokens=4000, param="max_tokens"
    )
    assert all(number in too_much.message for number in ("4096", "5000", "1000", "4000"))
    assert too_much.param == "max_tokens"


def test_too_large() -> None:
    assert "20 bytes" in errors.request_too_large(10, 20).message
    assert "accepts 10 bytes" in errors.request_too_large(10).message


def test_model_names() -> None:
    assert errors.model_not_found("x", ["a", "b"]).message == "The model 'x' does not exist. Served here: 'a', 'b'."
    assert errors.model_not_found("x").message == "The model 'x' does not exist."


@pytest.mark.parametrize(
    ("backlog", "seconds"), [(0.0, "1"), (1.2, "2"), (30.0, "30"), (float("inf"), "60"), (float("nan"), "60")]
)
def test_retry_after(backlog: float, seconds: str) -> None:
    assert errors.overloaded(backlog).headers == {"retry-after": seconds}
    assert errors.unavailable("x", 2.5).headers == {"retry-after": "3"}


def test_allow() -> None:
    assert errors.method_not_allowed("PUT", "/x", ["POST", "GET"]).headers == {"allow": "GET, POST"}


class Inner(msgspec.Struct):
    number: int


class Outer(msgspec.Struct):
    name: str
    items: list[Inner] = []
    table: dict[str, int] | None = None
    kind: int | str | None = None


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        ({}, "missing_required_parameter", "name", "Missing required field 'name'."),
        ({"name": 1}, "invalid_type", "name", "Invalid type for 'name': expected a string, but got an integer."),
        ({"name": "x", "items": [{}]}, "missing_required_parameter", "items.0.number", "Missing"),
        (
            {"name": "x", "items": [{"number": 1}, {"number": "x"}]},
            "invalid_type",
            "items.1.number",
            "an integer, but got a string",
        ),
        ({"name": "x", "table": {"a": None}}, "invalid_type", "table.*", "Invalid type for 'table.*'"),
        (
            {"name": "x", "kind": 1.5},
            "invalid_type",
            "kind",
            "expected an integer or a string or null, but got a number",
        ),
        ([], "invalid_type", None, "Invalid type for the body: expected an object, but got an array."),
    ],
)
def test_field_paths(body: Any, code: str, param: str | None, message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(json.dumps(body), type=Outer)
    error = errors.invalid_field(caught.value)
    assert (error.status, error.code, error.param) == (400, code, param)
    assert message in error.message


def test_other_validation_errors() -> None:
    error = errors.invalid_field(msgspec.ValidationError("Number out of range - at `$.top_p`"))
    assert (error.code, error.param) == ("invalid_value", "top_p")
    assert error.message == "Invalid value for 'top_p': Number out of range."
