"""What ``/v1/messages`` sends, held against the official client's own types."""

import json

import pytest
from anthropic.types import Message as ClientMessage
from anthropic.types import MessageDeltaUsage, MessageTokensCount

from gateway.wire.generation import Usage
from gateway.wire.messages_answer import (
    ContentBlockDelta,
    ErrorBody,
    Message,
    MessageStop,
    MessageUsage,
    TextBlock,
    TextDelta,
    TokenCount,
    encode,
    event,
)

USAGE = Usage.of(prompt=10, completion=4, cached=7, reasoning=3)


def test_a_message_is_what_the_client_reads() -> None:
    sent = Message("msg_1", "m", [TextBlock("hi")], MessageUsage.of(USAGE, "standard"), "stop_sequence", "END")
    found = ClientMessage.model_validate_json(encode(sent))
    assert (found.id, found.model, found.role, found.type) == ("msg_1", "m", "assistant", "message")
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", "END")
    assert found.content[0].type == "text"
    assert found.usage.service_tier == "standard"


def test_cached_tokens_are_counted_apart() -> None:
    found = MessageDeltaUsage.model_validate_json(encode(MessageUsage.of(USAGE)))
    assert (found.input_tokens, found.cache_read_input_tokens, found.cache_creation_input_tokens) == (3, 7, 0)
    assert found.output_tokens == 4
    assert found.output_tokens_details is not None
    assert found.output_tokens_details.thinking_tokens == 3
    bare = json.loads(encode(MessageUsage.of(Usage.of(prompt=1, completion=0, cached=0))))
    assert bare == {
        "input_tokens": 1,
        "output_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def test_events_are_named_and_stay_on_one_line() -> None:
    assert event(MessageStop()) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    text = "a\u2028b\u0085c\n"
    sent = event(ContentBlockDelta(2, TextDelta(text))).decode()
    assert len(sent.splitlines()) == 3
    assert json.loads(sent.splitlines()[1].removeprefix("data: ")) == {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "text_delta", "text": text},
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors(status: int, kind: str) -> None:
    assert json.loads(encode(ErrorBody.of(status, "no", "req-1"))) == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req-1",
    }


def test_the_client_is_told_that_threads_are_not_kept() -> None:
    found = json.loads(encode(ErrorBody.of(400, "no", "req-1", "thread")))
    assert found["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in json.loads(encode(ErrorBody.of(400, "no", "req-1", "speed")))["error"]


def test_a_count() -> None:
    assert MessageTokensCount.model_validate_json(encode(TokenCount(5))).input_tokens == 5
