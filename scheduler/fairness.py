"""Who is owed service, and so who prefills next?

Higher priority classes go first. Within a class tenants take turns by deficit round robin (Shreedhar and Varghese,
SIGCOMM 1995), in the form that may overdraw: a turn brings a quantum of service and ends when that is used up. What a
tenant gets is charged as it is computed, slice by slice, so one long prompt is no reason to wait for its end; cached
tokens are charged at a discount, drawn ones at a premium. Service that nobody else waited for is free.

Within a tenant's turn the longest cached prefix goes first (DLPM, Cao et al. 2025), measured in the seconds of prefill
that it saves, plus a credit for having waited, so that nobody waits for ever. A prompt whose next block is being
computed by somebody else is passed over: in a moment it will find that block in the cache.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from typing import Generic

from scheduler.blocks import BlockPool
from scheduler.config import SchedulerConfig
from scheduler.request import WAITING, R

# Tenants with nothing to offer that one step looks at before it leaves it.
_LOOKS = 32


class _Tenant(Generic[R]):
    """One tenant in one priority class. ``members`` counts its live requests; ``partial`` has begun its prefill."""

    __slots__ = ("aside", "built", "deficit", "key", "members", "moved", "partial", "waiting", "window")

    def __init__(self, key: tuple[int, str]) -> None:
        self.key = key
        self.deficit = 0.0
        self.members = 0
        self.waiting: OrderedDict[int, R] = OrderedDict()
        self.partial: R | None = None
        # The best of `waiting` in the step `built`, whether any was admitted since, and the step that set it aside.
        self.window: list[R] = []
        self.built = 0
        self.moved = False
        self.aside = 0


class Line(Generic[R]):
    """All requests that have prefill to do, and the order in which they get to do it.

    A request is `add`-ed once, `admitted` when it gets KV, `planned` with each slice, perhaps `put_back` when it loses
    its KV, and `remove`-d at its end.
    """

    __slots__ = (
        "_config",
        "_frontier",
        "_pool",
        "_rings",
        "_second_per_token",
        "_step",
        "_tenants",
        "is_open",
        "partials",
        "waiting",
    )

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool
        self._tenants: dict[tuple[int, str], _Tenant[R]] = {}
        # For each priority, the tenants that have something to offer, the one whose turn it is first.
        self._rings: dict[int, OrderedDict[tuple[int, str], _Tenant[R]]] = {}
        self._frontier: dict[bytes, int] = {}
        self._step = 0
        self._second_per_token = 0.0
        self.partials: dict[int, R] = {}
        self.waiting = 0
        self.is_open = True

    @property
    def contended(self) -> bool:
        """Whether one tenant's service is another's wait."""
        return len(self._tenants) > 1 and bool(self._rings)

    def add(self, request: R) -> None:
        """A new request joins at the end."""
        tenant = self._tenant_of(request)
        tenant.members += 1
        tenant.waiting[request.uid] = request
        self.waiting += 1
        self._join(tenant)

    def put_back(self, request: R) -> None:
        """A request that lost its KV goes back to the front of its tenant's queue."""
        tenant = self._tenant_of(request)
        self._forget_partial(tenant, request)
        tenant.waiting[request.uid] = request
        tenant.waiting.move_to_end(request.uid, last=False)
        self.waiting += 1
        self._join(tenant)

    def remove(self, request: R) -> None:
        """A request has ended, wherever it was."""
        tenant = self._tenant_of(request)
        if tenant.waiting.pop(request.uid, None) is not None:
            self.waiting -= 1
        self._forget_partial(tenant, request)
        tenant.members -= 1
        self._leave_if_idle(tenant)
        if not tenant.members:
            del self._tenants[tenant.key]

    def admitted(self, request: R, cached: int) -> None:
        """A waiting request holds its KV blocks now, and found ``cached`` tokens in them."""
        tenant = self._tenant_of(request)
        del tenant.waiting[request.uid]
        self.waiting -= 1
        tenant.moved = True
        tenant.partial = request
        self.partials[request.uid] = request
        self._watch(request)
        self._charge(tenant, self._config.cached_cost * max(0, cached - request.charged))
        request.charged = max(request.charged, cached)

    def planned(self, request: R, count: int, complete: bool) -> None:
        """A request prefills ``count`` tokens in this step; ``complete``: these are its last."""
        tenant = self._tenant_of(request)
        if complete:
            self._forget_partial(tenant, request)
        # What is computed again after a preemption was paid for the first time.
        end = request.computed + count
        self._charge(tenant, max(0, end - max(request.computed, request.charged)))
        request.charged = max(request.charged, end)
        ring = self._rings[tenant.key[0]]
        if tenant.deficit <= 0:
            ring.move_to_end(tenant.key)
        self._leave_if_idle(tenant)

    def charge_output(self, request: R) -> None:
        """A token was drawn for ``request``."""
        self._charge(self._tenant_of(request), self._config.output_cost)
        request.charged += 1

    def order(self, now: float, prefilling: Iterable[R], second_per_token: float) -> Iterator[R]:
        """Yield each request that may prefill in this step, the one that is owed most first.

        The caller tells of each one, before it asks for the next, that it was `admitted` or `planned`, or clears
        ``is_open`` because no more can be admitted: then only those that hold KV already follow.

        Args:
            prefilling: all requests that hold KV and whose prefill isn't committed.
            second_per_token: what a cached token saves.
        """
        self._step += 1
        self._second_per_token = second_per_token
        served: set[int] = set()
        offers = self._offers(prefilling, served, now)
        while self.is_open:
            request = next(offers, None)
            if request is None:
                return
            served.add(request.uid)
            yield request
        rest = [request for uid, request in self.partials.items() if uid not in served]
        yield from sorted(rest, key=self._owed, reverse=True)

    def _offers(self, prefilling: Iterable[R], served: set[int], now: float) -> Iterator[R]:
        self._frontier = {}
        for request in prefilling:
            self._watch(request)
        for priority in sorted(self._rings, reverse=True):
            yield from self._turns(self._rings[priority], served, now)

    def _turns(self, ring: OrderedDict[tuple[int, str], _Tenant[R]], served: set[int], now: float) -> Iterator[R]:
        """One priority class, tenant by tenant, until none has anything more to offer."""
        step, quantum = self._step, self._config.quantum
        aside = 0
        while aside < len(ring) and aside < _LOOKS:
            key, tenant = next(iter(ring.items()))
            if tenant.aside == step:
                ring.move_to_end(key)
                continue
            if tenant.deficit <= 0:
                tenant.deficit += quantum
                if tenant.deficit <= 0:
                    ring.move_to_end(key)
                    continue
            request = self._head(tenant, served, now)
            if request is None:
                tenant.aside = step
                aside += 1
                continue
            yield request

    def _head(self, tenant: _Tenant[R], served: set[int], now: float) -> R | None:
        """The request of a tenant that goes first."""
        if tenant.partial is not None:
            return None if tenant.partial.uid in served else tenant.partial
        if not self._config.prefix_order:
            return next(iter(tenant.waiting.values()), None)
        if tenant.built != self._step:
            tenant.built = self._step
            tenant.window = self._ranked(tenant, now)
            tenant.moved = False
        while True:
            window = tenant.window
            while window:
                request = window.pop()
                if request.state == WAITING and not self._soon_cached(request):
                    return request
            if not tenant.moved or not tenant.waiting:
                return None
            tenant.window = self._ranked(tenant, now)
            tenant.moved = False

    def _ranked(self, tenant: _Tenant[R], now: float) -> list[R]:
        """The first few of a tenant's queue, the best last."""
        ageing, saves, size, probe = (
            self._config.ageing,
            self._second_per_token,
            self._pool.block_size,
            self._pool.probe,
        )
        scored: list[tuple[float, int, R]] = []
        for place, request in enumerate(islice(tenant.waiting.values(), self._config.window)):
            if request.preemptions:
                score = inf
            else:
                score = probe(request.sought) * size * saves + ageing * (now - request.arrival)
            scored.append((score, -place, request))
        scored.sort()
        return [request for _, _, request in scored]

    def _soon_cached(self, request: R) -> bool:
        """Whether somebody no less urgent is computing the first block that ``request`` doesn't find."""
        frontier, hashes = self._frontier, request.sought
        if not frontier or not hashes:
            return False
        known = self._pool.probe(hashes)
        return known < len(hashes) and frontier.get(hashes[known], request.priority - 1) >= request.priority

    def _watch(self, request: R) -> None:
        """Remember the next block that ``request`` will make findable."""
        if request.published < len(request.hashes):
            digest = request.hashes[request.published]
            self._frontier[digest] = max(self._frontier.get(digest, request.priority), request.priority)

    def _owed(self, request: R) -> tuple[int, float]:
        return request.priority, self._tenant_of(request).deficit

    def _charge(self, tenant: _Tenant[R], cost: float) -> None:
        if len(self._tenants) > 1:
            tenant.deficit -= cost

    def _tenant_of(self, request: R) -> _Tenant[R]:
        key = (request.priority, request.tenant if self._config.fairness else "")
        tenant = self._tenants.get(key)
        if tenant is None:
            tenant = self._tenants[key] = _Tenant(key)
        return tenant

    def _forget_partial(self, tenant: _Tenant[R], request: R) -> None:
        if tenant.partial is request:
            tenant.partial = None
            del self.partials[request.uid]

    def _join(self, tenant: _Tenant[R]) -> None:
        self._rings.setdefault(tenant.key[0], OrderedDict())[tenant.key] = tenant

    def _leave_if_idle(self, tenant: _Tenant[R]) -> None:
        if tenant.waiting or tenant.partial is not None:
            return
        ring = self._rings.get(tenant.key[0])
        if ring is not None and ring.pop(tenant.key, None) is not None:
            # A turn that isn't used can't be saved up.
            tenant.deficit = min(tenant.deficit, 0.0)
            if not ring:
                del self._rings[tenant.key[0]]
