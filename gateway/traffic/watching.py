"""What becomes of a request whose rollout or shadows want to know? Both ways that a request can take tell a `Watched`.

Of a request that goes elsewhere because its variant could not answer, the variant's failure is what became of it.
"""

from collections.abc import Sequence
from itertools import count
from time import perf_counter
from typing import Final

from gateway.careful import careful
from gateway.lane.scan import TAIL, tally, tally_whole
from gateway.telemetry.metrics import Outcome
from gateway.traffic.answers import Collector, Said
from gateway.traffic.ending import Ending
from gateway.traffic.rollout.service import Rollouts
from gateway.traffic.routes import Assignment
from gateway.traffic.shadow.sampling import ShadowPlan
from gateway.traffic.shadow.service import Copies, Shadows

_NO_ANSWER: Final = frozenset({"/v1/messages/count_tokens"})
"""What is asked for there is no answer of a model."""
_EVENT: Final = b"data: "
_OTHER_EVENTS: Final = 2
"""Of a stream's events have no token: the role's, and the last one."""


class Watching:
    """Where requests are reported to. ``rollouts`` and ``shadows`` are those of one gateway process."""

    def __init__(self, rollouts: Rollouts, shadows: Shadows) -> None:
        self.rollouts = rollouts
        self.shadows = shadows
        self._uids = count()

    def watch(
        self, assignment: Assignment, endpoint: str, body: bytes, request_id: str, key: str = ""
    ) -> "Watched | None":
        """Begin to watch a request; None where nobody wants to know what becomes of it.

        ``body`` is what its shadows get, as the client sent it; ``key`` the id of its API key.
        """
        with careful:
            return self._watch(assignment, endpoint, body, request_id, key)
        return None

    def _watch(self, assignment: Assignment, endpoint: str, body: bytes, request_id: str, key: str) -> "Watched | None":
        route = assignment.route
        plan = route.plan
        if endpoint in _NO_ANSWER:
            return None
        uid = None
        if plan.rollout is not None and assignment.by_chance and self.rollouts.weight(route.name) is not None:
            uid = next(self._uids)
            self.rollouts.came(route.name, uid, assignment.variant == route.canary, assignment.unit)
        shadows = self.shadows.wants(route.name, request_id) if plan.shadows else ()
        if uid is None and not shadows:
            return None
        reads = uid is not None and self.rollouts.reads_answers(route.name)
        body = body if shadows else b""
        return Watched(self, route.name, endpoint, uid, shadows, body, request_id, key, reads=reads)


class Watched:
    """A request that is being watched, from its last byte on."""

    __slots__ = (
        "_body", "_came", "_collector", "_copies", "_endpoint", "_events", "_first", "_id", "_idle", "_key", "_model",
        "_reads", "_shadows", "_streamed", "_tail", "_timed", "_uid", "_watching", "uncertainty",
    )  # fmt: skip

    def __init__(
        self,
        watching: Watching,
        model: str,
        endpoint: str,
        uid: int | None,
        shadows: Sequence[ShadowPlan],
        body: bytes,
        request_id: str,
        key: str,
        *,
        reads: bool,
    ) -> None:
        self._watching = watching
        self._model = model
        self._endpoint = endpoint
        self._uid = uid
        self._shadows = shadows
        self._body = body
        self._id = request_id
        self._key = key
        self._reads = reads
        self._collector = Collector() if reads or shadows else None
        self._came = perf_counter()
        self._first: float | None = None
        self._streamed = self._timed = False
        self._idle = False  # nobody wants to know any more
        self._copies: Copies | None = None
        self._events = 0
        self._tail = b""
        self.uncertainty: float | None = None
        """Mean surprisal of the answer's tokens, where it is known."""

    def first(self, *, streamed: bool, token: bool = False) -> None:
        """The first byte of the answer is there, or (``token``) its first token, which clients may not have got yet."""
        if self._first is not None:
            return
        self._first = perf_counter()
        self._streamed = streamed
        self._timed = streamed or token
        watching = self._watching
        with careful:
            if self._uid is not None and self._timed:
                watching.rollouts.began(self._model, self._uid, self._first - self._came)
            if self._shadows:
                self._copies = watching.shadows.copy(
                    self._model, self._endpoint, self._body, self._shadows, self._id, self._key
                )
        if self._shadows:
            self._body = b""
            if self._copies is None or not self._copies.wanted:  # all were dropped
                self._copies = None
                self._idle = self._uid is None
                if not self._reads:
                    self._collector = None

    def add(self, data: bytes) -> None:
        """More of the answer."""
        if self._idle:
            return
        self._events += data.count(_EVENT)
        self._tail = data if len(data) >= TAIL else (self._tail + data)[-TAIL:]
        if self._collector is not None:
            self._collector.add(data)

    def turned_away(self, status: int) -> None:
        """It is over before any variant had to do with it (`is_turned_away`). To be called once."""
        self.ended(status, "invalid")

    def ended(self, status: int, outcome: Outcome) -> None:
        """The request is over. To be called once."""
        if self._idle:
            return
        ending = Ending(status, outcome)
        with careful:
            ending = self._ending(status, outcome)
        if self._uid is not None:
            with careful:
                self._watching.rollouts.ended(self._model, self._uid, ending, self._id)
        if self._copies is not None:
            with careful:
                self._copies.primary(ending, self._said())

    def _said(self) -> Said | None:
        found = self._collector
        return found.said(self._endpoint, streamed=self._streamed) if found is not None else None

    def _ending(self, status: int, outcome: Outcome) -> Ending:
        now = perf_counter()
        streamed = self._streamed
        said = tally(self._tail) if streamed or len(self._tail) == TAIL else tally_whole(self._tail)
        tokens = said.output_tokens or (max(0, self._events - _OTHER_EVENTS) if streamed else 0)
        first = self._first
        itl = None
        if self._timed and first is not None and tokens > 1 and outcome == "ok":
            itl = (now - first) / (tokens - 1)
        answer = None
        if self._reads and self._collector is not None and status < 400 and first is not None:
            answer = self._collector.answer(self._endpoint, streamed=streamed)
        ttft = first - self._came if first is not None and self._timed else None
        return Ending(status, outcome, ttft, itl, now - self._came, tokens, self.uncertainty, answer)
