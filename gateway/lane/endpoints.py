"""What passes through, and what differs between these endpoints: how errors look, and how a stream ends."""

from typing import Final

from gateway.api.messages_form import error_body
from gateway.lane.scan import tally
from gateway.wire import errors, sse
from gateway.wire.messages_answer import encode, event
from gateway.wire.responses_answer import Events

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
)
_RESPONSES: Final = "/v1/responses"
_ANTHROPIC: Final = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_LAST_RESPONSE: Final = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")


def fault_body(endpoint: str, error: errors.ApiError, request_id: bytes) -> bytes:
    """The body of an answer that is an error, in the shape that the endpoint's clients know."""
    return encode(error_body(error, request_id.decode())) if endpoint in _ANTHROPIC else error.body


def fault_event(endpoint: str, error: errors.ApiError, request_id: bytes) -> bytes:
    """The event that ends a stream which broke."""
    if endpoint in _ANTHROPIC:
        return event(error_body(error, request_id.decode()))
    return Events().error(error) if endpoint == _RESPONSES else sse.error_event(error)


def is_over(endpoint: str, tail: bytes) -> bool:
    """Whether a stream with this ``tail`` has come to its end, by what the endpoint says last."""
    last = tail.rstrip()
    event = last[last.rfind(b"\n\n") + 1 :]
    if endpoint in _ANTHROPIC:
        return b"event: message_stop" in event
    if endpoint == _RESPONSES:
        # The last event has the whole answer in it: if its beginning isn't in the tail, then it is that one.
        return any(name in event for name in _LAST_RESPONSE) or (event == last and tail.endswith(b"\n\n"))
    return last.endswith(b"[DONE]")


def may_end(endpoint: str, tail: bytes) -> bool:
    """Whether a stream with this ``tail`` may end there: it is over, or has said why it ended, or that it failed."""
    return is_over(endpoint, tail) or bool(tally(tail).finish_reasons) or b'"error"' in tail
