"""Copies of requests: what they keep, and what they must not do a second time."""

import json
from typing import Any

import pytest

from gateway.traffic.answers import CHAT, COMPLETIONS, ENDPOINTS, MESSAGES, RESPONSES
from gateway.traffic.shadow.request import shadow_body
from gateway.wire import chat, completions, messages, responses

FUNCTION = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "price", "parameters": {"type": "object"}}
OURS = {"name": "price", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search"}
CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
THEIRS = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def copied(endpoint: str, **fields: Any) -> dict[str, Any]:
    body = shadow_body(endpoint, json.dumps(fields).encode())
    assert body is not None
    found: dict[str, Any] = json.loads(body)
    return found


def test_numbers_and_texts_stay_as_they_came() -> None:
    kept = b'"temperature":0.70000000000000001,"seed":18446744073709551616,"user":"\\u00e9"}'
    assert shadow_body(CHAT, b'{"stream": true, ' + kept) == b"{" + kept


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_nothing_is_streamed_stored_or_left_running(endpoint: str) -> None:
    found = copied(endpoint, model="x", stream=True, store=True, background=True, temperature=0)
    assert not found.get("stream") and found["temperature"] == 0
    if endpoint == RESPONSES:
        assert found["store"] is False and "background" not in found
    elif endpoint == CHAT:
        assert "store" not in found


def test_what_is_copied_is_a_request_of_its_endpoint() -> None:
    """As this gateway's own decoders see it."""
    said: dict[str, Any] = {"model": "x", "stream": True}
    history = [{"role": "user", "content": "hi"}]
    options = {"stream_options": {"include_usage": True}, "n": 3}
    asked: list[tuple[str, Any, dict[str, Any]]] = [
        (CHAT, chat.decoder, {"messages": history, **options, "tools": [FUNCTION], "tool_choice": "required"}),
        (COMPLETIONS, completions.decoder, {"prompt": "hi", **options}),
        (RESPONSES, responses.decoder, {"input": "hi", "tools": [FLAT, SEARCH], "tool_choice": "required"}),
        (MESSAGES, messages.decoder, {"messages": history, "max_tokens": 9, "tools": [OURS, THEIRS]}),
    ]
    for endpoint, decoder, fields in asked:
        body = shadow_body(endpoint, json.dumps(said | fields).encode())
        request = decoder.decode(body)
        request.check()
        assert not request.stream


def test_functions_stay_where_nothing_else_is() -> None:
    tools = [FUNCTION, {"type": "custom", "custom": {"name": "sql"}}]
    found = copied(CHAT, tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert found == {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    assert copied(MESSAGES, tools=[OURS]) == {"tools": [OURS]}
    assert copied(CHAT, tools=None) == {"tools": None}


@pytest.mark.parametrize(
    ("endpoint", "mine", "servers"),
    [(RESPONSES, FLAT, SEARCH), (RESPONSES, FLAT, CODE), (RESPONSES, FLAT, {"type": "mcp"}), (MESSAGES, OURS, THEIRS)],
)
def test_what_a_server_would_run_is_taken_out(endpoint: str, mine: dict[str, Any], servers: dict[str, Any]) -> None:
    assert copied(endpoint, tools=[servers, mine])["tools"] == [mine]
    alone = copied(endpoint, tools=[servers], tool_choice={"type": servers["type"]}, parallel_tool_calls=True)
    assert not alone.keys() & {"tools", "tool_choice", "parallel_tool_calls"}


@pytest.mark.parametrize(
    ("choice", "stays"),
    [
        ("auto", True),
        ("required", True),
        (None, True),
        ({"type": "any"}, True),
        ({"type": "function", "name": "price"}, True),
        ({"type": "function", "function": {"name": "price"}}, True),
        ({"type": "tool", "name": "web_search"}, False),
        ({"type": "web_search"}, False),
        ({"type": "allowed_tools", "mode": "auto", "tools": [SEARCH]}, False),
    ],
)
def test_what_is_gone_is_not_chosen(choice: Any, stays: bool) -> None:
    found = copied(RESPONSES, tools=[FLAT, SEARCH], tool_choice=choice)
    assert found.get("tool_choice", "gone") == (choice if stays else "gone")


def test_searches_that_are_no_tools() -> None:
    assert copied(CHAT, web_search_options={}) == {}
    assert copied(MESSAGES, mcp_servers=[{"type": "url"}], container="c") == {}


def test_what_would_change_something_has_no_copy() -> None:
    assert shadow_body(RESPONSES, b'{"conversation": "conv_1"}') is None
    assert copied(RESPONSES, conversation=None, input="x")["input"] == "x"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"tools": 3}', b'{"tools": [3]}', b"\xff"])
def test_what_is_no_request_has_no_copy(body: bytes) -> None:
    assert shadow_body(CHAT, body) is None
