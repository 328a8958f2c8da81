"""How does a request pass through whose model has variants, fallbacks or time limits, or that goes to a given target?

A `RoutedExchange` is assigned to a variant once its body is complete, and goes over to a fallback as long as its client
has heard nothing. What a variant's rollout and shadows want to know is told to a `Watched`.
"""

from asyncio import TimerHandle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.target import Target
from gateway.lane import heads
from gateway.lane.exchange import Client, Exchange
from gateway.lane.meter import estimated_prompt, longest_answer
from gateway.lane.scan import Skimmed
from gateway.lane.stream import Seen
from gateway.telemetry.metrics import Outcome
from gateway.traffic.conversations import ENDPOINT as RESPONSES
from gateway.traffic.conversations import Reading, previous_response
from gateway.traffic.keys import Key
from gateway.traffic.limits.limit import Account
from gateway.traffic.limits.limiter import Counted, Tab
from gateway.traffic.routes import Assignment, Cause, Route, asking, cause_of, failed_code
from gateway.traffic.watching import Watched
from gateway.wire import errors

if TYPE_CHECKING:
    from gateway.lane.lane import Lane
    from gateway.lane.lanes import Lanes


class GivenExchange(Exchange):
    """A request from within, for whoever has this ``key``, that goes to a ``lane`` which was chosen already.

    ``tab`` is what the whole request has of its key's limits. It is called ``variant`` in its answer. ``background``:
    nobody waits for it; ``unseen``: no client asked for it. ``outcome`` is what has become of it, once it is over,
    ``error`` what it was answered with where that isn't a target's answer, and ``broken`` why its answer has no end.
    """

    __slots__ = ("_given", "_given_key", "_tab", "background", "broken", "error", "outcome", "unseen", "variant")

    inner = True

    def __init__(
        self,
        lanes: "Lanes",
        client: Client,
        head: heads.RequestHead,
        lane: "Lane",
        key: Key,
        tab: Tab,
        variant: str,
        *,
        background: bool,
        unseen: bool,
    ) -> None:
        super().__init__(lanes, client, head)
        self._given = lane
        self._given_key = key
        self._tab = tab
        self.variant = variant.encode()
        self.background = background
        self.unseen = unseen
        self.error: errors.ApiError | None = None
        self.broken: errors.ApiError | None = None
        self.outcome: Outcome = "failed"

    def _key(self) -> Key:
        return self._given_key

    def _enter(self, key: Key, accounts: tuple[Account, ...], skimmed: Skimmed) -> None:
        if self._tab.entered:  # by an earlier target
            self._let_in(self._tab, skimmed, estimated_prompt(skimmed), longest_answer(self.endpoint, self._body))
        else:
            super()._enter(key, accounts, skimmed)

    def _let_in(self, entry: Tab | Counted, skimmed: Skimmed, prompt: int, answer: int) -> None:
        if isinstance(entry, Counted):
            self._tab.take(entry)
        super()._let_in(self._tab, skimmed, prompt, answer)

    def _find_lane(self, key: Key) -> list[Target]:
        self._take_lane(self._given, self.body)
        return self._given.ready(self.model, self._received)

    def _break(self, error: errors.ApiError) -> None:
        self.broken = error
        super()._break(error)

    def _fail(self, error: errors.ApiError) -> None:
        self.error = error
        super()._fail(error)

    def _end(self, status: int, outcome: Outcome) -> None:
        self.outcome = outcome
        super()._end(status, outcome)


class RoutedExchange(Exchange):
    """A client's request for a model with a ``route`` all of whose targets have lanes."""

    __slots__ = (
        "_asked",
        "_assignment",
        "_at",
        "_by_target",
        "_final",
        "_late",
        "_over",
        "_reached",
        "_response",
        "_route",
        "_sent",
        "_watched",
        "variant",
    )  # fmt: skip

    def __init__(
        self, lanes: "Lanes", client: Client, head: heads.RequestHead, route: Route, by_target: "Mapping[str, Lane]"
    ) -> None:
        super().__init__(lanes, client, head)
        self._route = route
        self._by_target = by_target
        self._assignment: Assignment | None = None
        self._at = 0
        self._asked = b""  # the body as the client sent it
        self._reached = False  # there was a target for it
        self._sent = False  # off to some target
        self._final = False  # nothing else is tried any more
        self._watched: Watched | None = None
        self._response: Reading | None = None
        self._late: TimerHandle | None = None
        self._over: TimerHandle | None = None
        self.variant = heads.DEFAULT

    @classmethod
    def of(cls, exchange: Exchange, route: Route, by_target: "Mapping[str, Lane]") -> Self:
        """The same request, whose body is complete, now that its model is known to have a route."""
        made = cls(exchange._lanes, exchange._client, exchange.head, route, by_target)
        made.request_id, made.size, made._keep_alive = exchange.request_id, exchange.size, exchange._keep_alive
        made._body, made._skimmed = exchange.body, exchange._skimmed
        return made

    def interrupt(self, error: errors.ApiError) -> None:
        self._final = True
        super().interrupt(error)

    # The way

    def _find_lane(self, key: Key) -> list[Target]:
        route, plan, context = self._route, self._route.plan, self._lanes.context
        self._asked = self.body
        request_id = self.request_id.decode()
        user = self._skimmed.user if self._skimmed is not None else None
        said = asking(plan.sticky, self._asked, self.head.headers, key.id, request_id, user)
        self._assignment = route.assign(said, self.head.variant)
        if not self.head.variant and (previous := previous_response(self.endpoint, self._asked)):
            holder = context.conversations.target_of(previous)
            self._assignment = route.where_held(self._assignment, lambda target: target == holder)
        if self._recording is not None:
            self._recording.record.sticky_hash = self._assignment.drawn
        if context.watching is not None:
            self._watched = context.watching.watch(self._assignment, self.endpoint, self._asked, request_id, key.id)
        if plan.total is not None:
            self._over = self._lanes.loop.call_later(plan.total, self._is_over, plan.total)
        ready = self._go_to(0)
        self._reached = True
        return ready

    def _go_to(self, place: int) -> list[Target]:
        """Take the way at ``place`` of the assignment, or the next one after it that can be taken.

        Raises:
            ApiError: there is none.
        """
        assert self._assignment is not None
        context = self._lanes.context
        while True:
            way = self._assignment.ways[place]
            self._at, self.variant = place, way.variant.encode()
            lane = self._by_target[way.target]
            if self.endpoint == RESPONSES:
                self._response = Reading(context.conversations, way.target)
            self._take_lane(lane, way.edit.apply(self.endpoint, self._asked) if way.edit else self._asked)
            try:
                return lane.ready(self.model, self._received)
            except errors.ApiError as error:
                cause = cause_of(error.status, error.code)
                following = self._assignment.after(place, cause)
                if following is None:
                    raise
                self._goes_over(cause, error.status)
                place = following

    def _goes_over(self, cause: Cause | None, status: int) -> None:
        """What it was assigned to could not answer, and another target is to."""
        assert self._assignment is not None
        self._lanes.context.metrics.fell_back(self._route.name, self._assignment.ways[self._at].variant, cause or "")
        if self._watched is not None:
            self._watched.ended(status, "failed")
            self._watched = None

    def _can_fall_back(self, cause: Cause | None) -> bool:
        """Whether there is another target to go over to for this ``cause``, and time for it."""
        if self._final or not self._sent or self._assignment is None:
            return False
        return self._assignment.after(self._at, cause) is not None

    def _fall_back(self, cause: Cause | None, status: int) -> None:
        """Go over to the next target."""
        assert self._assignment is not None and self._skimmed is not None
        following = self._assignment.after(self._at, cause)
        assert following is not None
        self._close_attempts()
        self._cancel(self._late)
        if self._queued:
            self._queued = False
            self._lanes.context.queued -= 1
        self._winner = self._stream = self._kept = self._so_far = self._belief = self._hedge = None
        self._tried, self._retries = [], 0
        self._goes_over(cause, status)
        try:
            self._queue(self._skimmed, self._go_to(following))
        except errors.ApiError as error:
            self._final = True
            self._fail(error)

    def _queue(self, skimmed: Skimmed, ready: list[Target]) -> None:
        self._sent = True
        limit = self._route.plan.first_token
        if limit is not None and skimmed.stream:
            self._late = self._lanes.loop.call_later(limit, self._is_late, limit)
        super()._queue(skimmed, ready)

    # Time

    def _is_late(self, limit: float) -> None:
        self._close_attempts()
        self._fail(errors.upstream_timeout(f"The answer did not begin within {limit:g} s."))

    def _is_over(self, limit: float) -> None:
        self.interrupt(errors.upstream_timeout(f"The answer was not complete within {limit:g} s."))

    def _cancel(self, *timers: TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()

    # The answer

    def _seen(self) -> Seen | None:
        return self._see if self._watched is not None or self._response is not None else super()._seen()

    def _see(self, data: bytes) -> None:
        if self._recording is not None:
            self._recording.arrived(data)
        if self._winner is not None and self._winner.status < 300:
            if self._watched is not None:
                self._watched.add(data)
            if self._response is not None:
                self._response.add(data)

    def _win(self, connection: Connection) -> None:
        self._cancel(self._late)
        super()._win(connection)
        if self._watched is not None and connection.status < 300:
            self._watched.first(streamed=self._stream is not None and self._stream.events)

    def _answer(self, connection: Connection, data: bytes) -> None:
        status = connection.status
        if status >= 400:
            cause = cause_of(status, failed_code(status, data if self._kept is None else b"".join([*self._kept, data])))
            if self._can_fall_back(cause):
                self._drop(connection)
                self._fall_back(cause, status)
                return
        super()._answer(connection, data)

    def _fail(self, error: errors.ApiError) -> None:
        cause = cause_of(error.status, error.code)
        if self._can_fall_back(cause):
            self._fall_back(cause, error.status)
            return
        if self._watched is not None and self._reached and not self._sent:
            self._watched.turned_away(error.status)
            self._watched = None
        super()._fail(error)

    def _end(self, status: int, outcome: Outcome) -> None:
        self._cancel(self._late, self._over)
        if self._assignment is not None:
            self._lanes.context.metrics.variant_ended(self._route.name, self.variant.decode(), outcome)
        if self._watched is not None:
            self._watched.ended(status, outcome)
        super()._end(status, outcome)
