"""What of its key's limits does a request take that passes through? What it may use at most, and what it did use.

Bodies aren't tokenised here, so a prompt is taken for its bytes / 4 until the answer says how many tokens it has. Of a
stream that says nothing of its usage (because the request has no ``stream_options.include_usage``, or its client has
left) the events are counted: servers send about one a token. A client that leaves before it has an answer that is no
stream is counted with all that it reserved, since nobody can say how far the answer was: leaving must not be free.
"""

from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.lane.placing import BYTES_PER_TOKEN
from gateway.lane.scan import Skimmed, Tally
from gateway.telemetry.metrics import Outcome
from gateway.traffic.limits.limiter import UNSAID, Counted, Tab

if TYPE_CHECKING:
    from gateway.lane.exchange import Client

_OTHER_EVENTS: Final = 2
"""Of a stream's events have no token: the role's, and the last one."""
_NO_ANSWER: Final = frozenset({"/v1/embeddings", "/v1/messages/count_tokens"})
_EVENT: Final = b"data: "


class _Asked(msgspec.Struct):
    """How long the answer may become; whatever is no number is the target's to refuse."""

    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None


_asked: Final = msgspec.json.Decoder(_Asked)


def estimated_prompt(skimmed: Skimmed) -> int:
    """About how many tokens a prompt has."""
    parts = (skimmed.system, skimmed.instructions, skimmed.messages, skimmed.prompt, skimmed.input)
    return sum(len(memoryview(part)) for part in parts) // BYTES_PER_TOKEN + 1


def longest_answer(endpoint: str, body: bytes) -> int:
    """How many tokens an answer has at most, as far as the request says so."""
    if endpoint in _NO_ANSWER:
        return 0
    asked = _asked.decode(body)
    limits = (asked.max_completion_tokens, asked.max_tokens, asked.max_output_tokens)
    most = next((limit for limit in limits if _is_count(limit)), UNSAID)
    return most * (asked.n if _is_count(asked.n) else 1)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class Meter:
    """Stands before the client of a request that was let in: puts the limits into the answer's head, and counts events.

    Args:
        client: where the answer goes.
        counted: the request, as it was let in.
        prompt: about how many tokens its prompt has.
        answer: how many its answer may have, where that is no stream; else 0.
    """

    __slots__ = ("_answer", "_client", "_counted", "_events", "_headers", "_prompt", "_size", "tally")

    def __init__(self, client: "Client", counted: Counted | Tab, prompt: int, answer: int) -> None:
        self._client = client
        self.tally: Tally | None = None
        """What the answer says of itself."""
        self._counted = counted
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in counted.headers.items()).encode()
        self._prompt = prompt
        self._answer = answer
        self._events = self._size = 0

    def write(self, data: bytes) -> None:
        """See `Client`."""
        if headers := self._headers:
            self._headers = b""
            status, _, rest = data.partition(b"\r\n")
            data = b"%b\r\n%b%b" % (status, headers, rest)
        self._events += data.count(_EVENT)
        self._size += len(data)
        self._client.write(data)

    def done(self, close: bool) -> None:
        """See `Client`."""
        self._client.done(close)

    def abort(self) -> None:
        """See `Client`."""
        self._client.abort()

    def settle(self, outcome: Outcome, status: int, *, sent: bool) -> None:
        """The request is over; ``sent``: a target had it."""
        self._counted.settle(self._used(outcome, status) if sent else 0)

    def _used(self, outcome: Outcome, status: int) -> int:
        tally = self.tally
        if tally is not None and tally.prompt_tokens:
            return tally.prompt_tokens + tally.output_tokens
        if self._events:
            return self._prompt + max(0, self._events - _OTHER_EVENTS)
        if outcome == "disconnected":
            return self._prompt + self._answer
        return self._prompt + self._size // BYTES_PER_TOKEN if status < 400 else 0
