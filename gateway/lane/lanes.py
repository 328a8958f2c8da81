"""Which upstreams does a name lead to, and what do all requests that pass through share? Counting, and the clock."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from time import perf_counter
from typing import Final

from gateway.api.context import Context
from gateway.fleet.upstream.target import Target
from gateway.lane.exchange import Exchange
from gateway.lane.lane import Lane
from gateway.lane.routed import RoutedExchange
from gateway.record.recording import RECORDED
from gateway.telemetry.metrics import Outcome
from gateway.wire import errors

_TICK: Final = 0.25  # seconds between two looks at timeouts


class Lanes:
    """All pass-through of one gateway process. ``context`` learns of it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.loop: asyncio.AbstractEventLoop
        self._named: Mapping[str, Lane] = {}
        self._asked: Lane | None = None
        self._lanes: tuple[Lane, ...] = ()
        self._targets: Mapping[str, Lane] = {}
        self.choosing = False
        """Whether a request's model decides which way it takes: there are several."""
        self._running: dict[Exchange, None] = {}
        self._id_prefix = b"req-" + os.urandom(8).hex().encode()
        self._ids = count()
        context.upstreams = self
        context.metrics.upstreams.targets = self

    def __iter__(self) -> Iterator[Target]:
        for lane in self._lanes:
            yield from lane.targets

    def __bool__(self) -> bool:
        """Whether anything is passed through at all."""
        return bool(self._lanes)

    def lead(
        self,
        named: Mapping[str, Lane],
        asked: Lane | None = None,
        *,
        targets: Mapping[str, Lane] | None = None,
        choosing: bool = False,
    ) -> None:
        """Let names lead to lanes from now on; what is under way stays where it is.

        Args:
            named: the lane of each name that clients may say.
            asked: where all other names go, and whose upstreams are asked for theirs.
            targets: the lane of each target, for routes.
            choosing: models are served here as well, or have routes.
        """
        self.choosing = choosing
        self._targets = targets or {}
        self._named, self._asked = dict(named), asked
        lanes = [*named.values(), *self._targets.values(), *([asked] if asked is not None else [])]
        self._lanes = tuple(dict.fromkeys(lanes))

    def route(self, model: str) -> Lane:
        """The lane of ``model``.

        Raises:
            ApiError: 404, there is none.
        """
        lane = self.lane_of(model)
        if lane is None:
            raise errors.model_not_found(model, self.context.names())
        return lane

    def lane_to(self, target: str) -> Lane | None:
        """The lane to a target, if it is one that requests pass through to."""
        return self._targets.get(target)

    def lane_of(self, model: str) -> Lane | None:
        """The lane of a name that clients say, if it leads to one."""
        return self._named.get(model, self._asked)

    def pick(self, exchange: Exchange) -> Exchange | None:
        """The exchange that a request is to pass through as, once its body is complete; None: it is answered here."""
        context, model = self.context, exchange.asks_for()
        route = context.routes.get(model)
        if route is not None:
            return RoutedExchange.of(exchange, route, self._targets) if route.passes else None
        return None if model in context.models or model in context.awaited else exchange

    def busy(self, lane: Lane) -> bool:
        """Whether any request is on its way through ``lane``."""
        return any(exchange.lane is lane for exchange in self._running)

    def names(self) -> list[str]:
        """The names that clients may say, as far as they are known."""
        asked = self._asked.targets.names() if self._asked is not None else []
        return [*self._named, *(name for name in asked if name not in self._named)]

    async def tick(self) -> None:
        """Look after timeouts and unused connections, until cancelled."""
        self.loop = asyncio.get_running_loop()
        while True:
            every = [min(lane.targets.options.first_byte, lane.targets.options.idle) / 4 for lane in self._lanes]
            await asyncio.sleep(min([_TICK, *every]))
            now = perf_counter()
            for exchange in list(self._running):
                exchange.expire(now)
            for lane in self._lanes:
                lane.targets.close_unused(now)

    def interrupt_all(self, make_reason: Callable[[], errors.ApiError]) -> None:
        """End what still runs."""
        for exchange in list(self._running):
            exchange.interrupt(make_reason())

    def new_id(self) -> bytes:
        """An id for a request that came without one."""
        return b"%b%08x" % (self._id_prefix, next(self._ids))

    def began(self, exchange: Exchange) -> None:
        self._running[exchange] = None
        if exchange.inner:
            return
        self.context.in_flight += 1
        if self.context.recorder is not None and exchange.endpoint in RECORDED:
            exchange.record(self.context.recorder)

    def runs(self, exchange: Exchange) -> bool:
        """Whether a request is still under way."""
        return exchange in self._running

    def ended(self, exchange: Exchange, status: int, outcome: Outcome, seconds: float) -> None:
        """A request is over, ``seconds`` after its last byte."""
        del self._running[exchange]
        if exchange.counters is not None and not exchange.background:
            exchange.counters.duration.observe(seconds)
        if exchange.inner:
            return
        self.context.in_flight -= 1
        self.context.metrics.ended(exchange.endpoint, exchange.label, status, outcome)
