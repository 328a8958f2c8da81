"""Who can go on from a response? Whoever has it: the upstream that made it, or this gateway for its own workers.

``previous_response_id`` means nothing to anybody else. So where a model has several targets, a request that goes on
from a response is led to the target that holds it, as long as that is known: the ids of what passed through are
remembered, the latest `MOST` of them, until the gateway process ends. Those of responses that were made here need not
be: they are kept themselves (`gateway.api.response_store`), for all workers of ours alike.
"""

import re
from collections import OrderedDict
from typing import Any, Final

import msgspec

ENDPOINT: Final = "/v1/responses"
MOST: Final = 100_000
_ID: Final = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,250})"')
_BEGINNING: Final = 1 << 16  # bytes of an answer in which its id is looked for


class Conversations:
    """Which target has made which response. ``most``: so many are remembered, those used last."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._targets: OrderedDict[str, str] = OrderedDict()

    def made(self, response: str, target: str) -> None:
        """A target has made a response."""
        self._targets[response] = target
        self._targets.move_to_end(response)
        if len(self._targets) > self._most:
            self._targets.popitem(last=False)

    def target_of(self, response: str) -> str | None:
        """The target that holds a response; None where that isn't known (any more)."""
        target = self._targets.get(response)
        if target is not None:
            self._targets.move_to_end(response)
        return target


class Reading:
    """Looks for a response's id in an answer as it passes, and remembers that ``target`` has made it."""

    __slots__ = ("_conversations", "_seen", "_target")

    def __init__(self, conversations: Conversations, target: str) -> None:
        self._conversations = conversations
        self._target = target
        self._seen: bytes | None = b""

    def add(self, data: bytes) -> None:
        """More of the answer."""
        if self._seen is None:
            return
        self._seen += data[: _BEGINNING - len(self._seen)]
        found = _ID.search(self._seen)
        if found is not None:
            self._conversations.made(found[1].decode(), self._target)
        if found is not None or len(self._seen) == _BEGINNING:
            self._seen = None


class _Said(msgspec.Struct):
    previous_response_id: Any = None


_said: Final = msgspec.json.Decoder(_Said)


def previous_response(endpoint: str, body: bytes) -> str:
    """The id of the response that a request goes on from; "" where there is none, or it can't be read."""
    if endpoint != ENDPOINT or b"previous_response_id" not in body:
        return ""
    try:
        previous = _said.decode(body).previous_response_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""  # who answers says what is wrong with it
    return previous if isinstance(previous, str) else ""
