"""How is a request answered whose model has a route, and not all of whose targets it could pass through to?

It is assigned to a variant, and answered by its target: here, by the endpoint's handler, or through a lane. Where that
one fails before the client has heard anything, the next target follows that is meant for such a failure.

The same way is taken by requests from within that are for one target (shadows), and by lines of batches for models that
requests pass through to.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.api.context import Context
from gateway.api.exchange import ClientGone, Exchange
from gateway.lane.endpoints import ENDPOINTS
from gateway.lane.exchange import CLIENT_GONE
from gateway.lane.inside import BrokenOffError, Inside
from gateway.lane.lane import Lane
from gateway.lane.scan import skim
from gateway.telemetry.metrics import Outcome, outcome_of
from gateway.traffic.conversations import ENDPOINT as RESPONSES
from gateway.traffic.conversations import Reading, previous_response
from gateway.traffic.routes import (
    HEADER,
    ONLY,
    Assignment,
    Cause,
    Route,
    Way,
    asking,
    cause_of,
    failed_code,
    is_turned_away,
)
from gateway.traffic.watching import Watched
from gateway.wire import errors

Handler = Callable[[Context, Exchange], Awaitable[None]]
GoesOver = Callable[[Cause | None], bool]
"""Whether somebody else answers when a target fails for a cause."""

_HOP: Final = frozenset({b"transfer-encoding", b"connection"})
_ERROR: Final = 1 << 16  # bytes of an error are looked at


async def handle(context: Context, exchange: Exchange, endpoint: str, handler: Handler) -> None:
    """Have a request answered, by ``handler`` unless its model has a route.

    Raises:
        ApiError: whatever kept the answer from being made, or from being completed.
        ClientGone: the client left.
    """
    some_only = exchange.key.models is not None
    if endpoint not in ENDPOINTS or not (context.routes or exchange.background or some_only):
        await handler(context, exchange)
        return
    body = await exchange.body(context.max_body)
    if exchange.recording is not None:
        exchange.recording.asked(body, exchange.key.id)
    try:
        skimmed = skim(body)
    except errors.ApiError:
        await handler(context, exchange)  # it says what is wrong in its own words
        return
    model = skimmed.model
    exchange.key.allow(model)  # before anything is said of the rest: that differs between models that are there and not
    route = context.routes.get(model)
    if route is not None:
        await _Answering(context, exchange, endpoint, handler, route, body, streams=bool(skimmed.stream)).answer()
    elif exchange.background and model not in context.models and (lane := context.lane_of(model)) is not None:
        if exchange.recording is not None:
            exchange.recording.placed(lane.targets.group, "")
        await _pass_through(context, exchange, endpoint, lane, ONLY, lambda cause: False)
    else:
        await handler(context, exchange)


class _Answering:
    """One request of a model with a route, whose ``asked`` is the body as the client sent it."""

    def __init__(
        self,
        context: Context,
        exchange: Exchange,
        endpoint: str,
        handler: Handler,
        route: Route,
        asked: bytes,
        *,
        streams: bool,
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._endpoint = endpoint
        self._handler = handler
        self._route = route
        self._asked = asked
        self._streams = streams
        self._headers = len(exchange.headers)
        self._clock = asyncio.get_running_loop().time
        self._end: float | None = None  # on the loop's clock
        self._over = False  # and that is past
        self._limit: asyncio.Timeout | None = None
        self._watched: Watched | None = None
        self._response: Reading | None = None
        self._assignment: Assignment

    async def answer(self) -> None:
        exchange = self._exchange
        exchange.key.allow(self._route.name)
        exchange.model = exchange.only or self._route.name
        self._assignment = self._assign()
        exchange.observer = self
        status = CLIENT_GONE
        outcome: Outcome = "disconnected"
        try:
            await self._answer()
            status = exchange.status
            outcome = exchange.outcome or ("ok" if status < 400 else outcome_of(status))
        except errors.ApiError as error:
            status, outcome = error.status, outcome_of(error.status)
            if self._watched is not None and is_turned_away(error):
                self._watched.turned_away(status)
                self._watched = None
            raise
        except Exception as error:
            if not isinstance(error, ClientGone):
                status, outcome = 500, "failed"
            raise
        finally:
            if not exchange.only:
                self._context.metrics.variant_ended(self._route.name, exchange.variant.decode(), outcome)
            self._ended(status, outcome)

    # What the exchange calls

    def first(self, *, streamed: bool, token: bool) -> None:
        self._may_take_until(self._end)
        if self._watched is not None:
            self._watched.first(streamed=streamed, token=token)

    def add(self, data: bytes) -> None:
        if self._exchange.complete:
            self._may_take_until(None)  # it has only to be put on record
        if self._watched is not None:
            self._watched.add(data)
        if self._response is not None and self._exchange.status < 300:
            self._response.add(data)

    def _may_take_until(self, end: float | None) -> None:
        if self._limit is not None:
            with contextlib.suppress(RuntimeError):  # it came too late
                self._limit.reschedule(end)

    # The ways

    def _assign(self) -> Assignment:
        exchange, route, context = self._exchange, self._route, self._context
        if exchange.only:
            return route.to(exchange.only)
        wanted = next((value.decode("latin-1") for name, value in exchange.sent if name == HEADER.encode()), "")
        said = asking(route.plan.sticky, self._asked, exchange.sent, exchange.key.id, exchange.request_id)
        assignment = route.assign(said, wanted)
        if not wanted and (previous := previous_response(self._endpoint, self._asked)):
            assignment = self._where_held(assignment, previous)
        if exchange.recording is not None:
            exchange.recording.record.sticky_hash = assignment.drawn
        if context.watching is not None and not exchange.background:
            said_by = (exchange.request_id, exchange.key.id)
            self._watched = context.watching.watch(assignment, self._endpoint, self._asked, *said_by)
        if route.plan.total is not None and not exchange.background:
            self._end = self._clock() + route.plan.total
        return assignment

    def _where_held(self, assignment: Assignment, previous: str) -> Assignment:
        """Go where the response is that the request goes on from."""
        context = self._context
        if context.responses.get(previous, self._exchange.key.id) is not None:
            return self._route.where_held(assignment, lambda target: context.lane_to(target) is None)
        holder = context.conversations.target_of(previous)
        return self._route.where_held(assignment, lambda target: target == holder)

    async def _answer(self) -> None:
        place = 0
        while True:
            way = self._assignment.ways[place]
            try:
                await self._in_time(way, place)
                return
            except errors.ApiError as error:
                cause = cause_of(error.status, error.code)
                following = None if is_turned_away(error) else self._following(place, cause)
                if following is None:
                    raise
                self._context.metrics.fell_back(self._route.name, way.variant, cause or "")
                self._ended(error.status, "failed")
                place = following

    def _following(self, place: int, cause: Cause | None) -> int | None:
        """The way after the one at ``place``, if there is one for this ``cause``, and time for it."""
        if self._exchange.status or self._over or (self._end is not None and self._clock() >= self._end):
            return None
        return self._assignment.after(place, cause)

    async def _in_time(self, way: Way, place: int) -> None:
        """Have a target answer within the limits of the route."""
        first = self._to_first_token(way)
        limits = [limit for limit in (self._end, None if first is None else self._clock() + first) if limit is not None]
        try:
            async with asyncio.timeout_at(min(limits, default=None)) as self._limit:
                await self._take(way, place)
        except TimeoutError:
            if self._limit is None or not self._limit.expired():
                raise
            self._over = self._limit.when() == self._end  # the clock may not be there yet: a loop's timers are coarse
            limit, done = (self._route.plan.total, "was not complete") if self._over else (first, "did not begin")
            raise errors.upstream_timeout(f"The answer {done} within {limit:g} s.") from None

    def _to_first_token(self, way: Way) -> float | None:
        """Seconds within which an answer has to begin; of one that comes whole from elsewhere that can't be seen."""
        if self._exchange.background or not (self._streams or self._context.lane_to(way.target) is None):
            return None
        return self._route.plan.first_token

    async def _take(self, way: Way, place: int) -> None:
        context, exchange = self._context, self._exchange
        exchange.variant = way.variant.encode()
        if exchange.recording is not None:
            exchange.recording.placed(way.target, "")
        exchange.replace_body(way.edit.apply(self._endpoint, self._asked) if way.edit else self._asked)
        exchange.uncertainty = None
        del exchange.headers[self._headers :]  # an earlier target's
        lane = context.lane_to(way.target)
        reads = lane is not None and self._endpoint == RESPONSES
        self._response = Reading(context.conversations, way.target) if reads else None
        if lane is not None:
            await _pass_through(
                context,
                exchange,
                self._endpoint,
                lane,
                way.variant,
                lambda cause: self._following(place, cause) is not None,
            )
            return
        model = context.targets.get(way.target)
        if model is None:
            raise errors.unavailable("The model is still being loaded.", 1)
        if not model.fleet.ready and self._following(place, "unavailable") is not None:
            raise errors.unavailable("No worker can answer now.")  # others can: nobody has to wait for one
        exchange.served = model.named(exchange.model)
        await self._handler(context, exchange)

    def _ended(self, status: int, outcome: Outcome) -> None:
        """What becomes of the request is known, as far as its variant is concerned."""
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.uncertainty = self._exchange.uncertainty
            watched.ended(status, outcome)


async def _pass_through(
    context: Context, exchange: Exchange, endpoint: str, lane: Lane, variant: str, goes_over: GoesOver
) -> None:
    """Have a request answered by a lane.

    Raises:
        ApiError: it failed, and somebody else can answer.
        ClientGone: the client left.
    """
    assert context.upstreams is not None
    recorder, sent = context.recorder, exchange.sent
    if exchange.recording is not None and recorder is not None and recorder.telemetry is not None:
        sent = exchange.recording.trace.onto(sent)
    inside = Inside(
        context.upstreams,
        lane,
        endpoint=endpoint,
        sent=sent,
        body=await exchange.body(context.max_body),
        key=exchange.key,
        tab=exchange.tab,
        variant=variant,
        request_id=exchange.request_id,
        background=exchange.background,
        unseen=bool(exchange.only),
    )
    exchange.model = exchange.model or inside.label
    if exchange.recording is not None:
        exchange.recording.begin(exchange.model)
    leaving = asyncio.create_task(_leave_with(exchange, inside))
    try:
        try:
            status = await inside.head()
        finally:
            if exchange.recording is not None and (target := inside.target) is not None:
                exchange.recording.sent_on(target.name, target.provider, inside.attempts)
        if inside.error is not None:
            exchange.headers += [(name.encode(), value.encode()) for name, value in exchange.tab.headers.items()]
            raise inside.error
        kept: list[bytes] = []
        if status >= 400:
            kept = [await inside.beginning(_ERROR)]
            code = failed_code(status, kept[0])
            if goes_over(cause_of(status, code)):
                raise errors.ApiError(status, "The target could not answer.", code=code or "bad_upstream")
            if exchange.recording is not None:
                exchange.recording.refused(kept[0])
        await exchange.relay(status, [header for header in inside.headers if header[0] not in _HOP])
        for part in kept:
            await exchange.send(part)
        async for part in inside.parts():
            if exchange.recording is not None:
                exchange.recording.tokens()
            await exchange.send(part)
        if exchange.recording is not None and inside.broken is not None:
            exchange.recording.failed(inside.broken)
        await exchange.end(b"", inside.outcome)
    except BrokenOffError:
        raise errors.bad_upstream("The upstream broke off its answer.") from None
    finally:
        leaving.cancel()
        inside.leave()


async def _leave_with(exchange: Exchange, inside: Inside) -> None:
    """Let the answer go at once when its client leaves."""
    await exchange.gone()
    inside.leave(ClientGone())
