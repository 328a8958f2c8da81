"""Who is owed service, and so who prefills next?

Higher priority classes go first. Within a class tenants take turns by deficit round robin (Shreedhar and Varghese,
SIGCOMM 1995), in the form that may overdraw: a turn brings a quantum of service and ends when that is used up. What a
tenant gets is charged as it is computed, slice by slice, so one long prompt is no reason to wait for its end; cached
tokens are charged at a discount, drawn ones at a premium. Service that nobody else waited for is free.

Within a tenant's turn the prompt goes first that has the least left to compute, cached prefix not counted: the most
first tokens soonest (shortest remaining processing time; Schrage and Miller 1966). One that has begun counts half, so
that only a much shorter one overtakes it, and a share of the tenant's service goes to whoever came first, so that the
longest prompt ends, too. A prompt whose next block is being computed by somebody else is passed over: in a moment it
will find that block in the cache.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from operator import attrgetter
from typing import Generic

from scheduler.blocks import BlockPool
from scheduler.config import SchedulerConfig
from scheduler.request import WAITING, R, Request
from scheduler.usage import Usage

_arrival = attrgetter("arrival")
# Tenants with nothing to offer that one step looks at before it leaves it.
_LOOKS = 32
# What is left of a prompt that has begun counts so much beside one that has not.
_BEGUN = 0.5

Seconds = Callable[[int, int], float]
"""How long it takes to compute so many tokens (second) that follow so many computed ones (first)."""


class _Tenant(Generic[R]):
    """One tenant in one priority class. ``members`` counts its live requests; ``partials`` have begun their prefill."""

    __slots__ = (
        "ahead",
        "aside",
        "built",
        "by_length",
        "deficit",
        "judged",
        "key",
        "members",
        "moved",
        "oldest_due",
        "partials",
        "waiting",
        "window",
    )

    def __init__(self, key: tuple[int, str]) -> None:
        self.key = key
        self.deficit = 0.0
        self.members = 0
        # In the order in which they came, and, as (tokens to compute, uid), the shortest first.
        self.waiting: OrderedDict[int, R] = OrderedDict()
        self.by_length: list[tuple[int, int]] = []
        self.partials: dict[int, R] = {}
        # Tokens of service that whoever came first is owed.
        self.oldest_due = 0.0
        # The best of `waiting` in the step `built`, whether any was admitted since, and the step that set it aside.
        self.window: list[tuple[float, int, R]] = []
        self.built = 0
        self.moved = False
        self.aside = 0
        # Whether it has had more than its share, as of the step `judged`.
        self.ahead = False
        self.judged = 0

    def queue(self, request: R, *, first: bool = False) -> None:
        """``request`` waits; ``first``: before all others."""
        self.waiting[request.uid] = request
        if first:
            self.waiting.move_to_end(request.uid, last=False)
        insort(self.by_length, _length(request))

    def unqueue(self, request: R) -> None:
        """``request`` waits no longer. What it owes must still be what it owed when it was queued."""
        del self.waiting[request.uid]
        del self.by_length[bisect_left(self.by_length, _length(request))]

    def oldest(self) -> R | None:
        """Who came first, of those whose prompt isn't computed."""
        came = list(self.partials.values())
        if self.waiting:
            came.append(next(iter(self.waiting.values())))
        return min(came, key=_arrival, default=None)


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
        "_seconds",
        "_step",
        "_tenants",
        "is_open",
        "partials",
        "usage",
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
        self._seconds: Seconds = _nothing
        self.partials: dict[int, R] = {}
        self.usage = Usage(config.quantum)
        self.waiting = 0
        self.is_open = True

    @property
    def contended(self) -> bool:
        """Whether one tenant's service is another's wait."""
        return len(self._tenants) > 1 and bool(self._rings)

    def add(self, request: R) -> None:
        """A new request joins at the end. What it owes must be set (`Lane.owe`)."""
        tenant = self._tenant_of(request)
        tenant.members += 1
        tenant.queue(request)
        self._note(request, 0.0)
        self.waiting += 1
        self._join(tenant)

    def put_back(self, request: R) -> None:
        """A request that lost its KV goes back to the front of its tenant's queue."""
        tenant = self._tenant_of(request)
        self._forget_partial(tenant, request)
        tenant.queue(request, first=True)
        self.waiting += 1
        self._join(tenant)

    def remove(self, request: R) -> None:
        """A request has ended, wherever it was."""
        tenant = self._tenant_of(request)
        if request.uid in tenant.waiting:
            tenant.unqueue(request)
            self.waiting -= 1
        self._forget_partial(tenant, request)
        self._note(request, self._config.output_cost * request.generated)
        tenant.members -= 1
        self._leave_if_idle(tenant)
        if not tenant.members:
            del self._tenants[tenant.key]

    def admitted(self, request: R, cached: int) -> None:
        """A waiting request holds its KV blocks now, and found ``cached`` tokens in them."""
        tenant = self._tenant_of(request)
        tenant.unqueue(request)
        self.waiting -= 1
        tenant.moved = True
        tenant.partials[request.uid] = request
        self.partials[request.uid] = request
        self._watch(request)
        self._charge(tenant, self._config.cached_cost * max(0, cached - request.charged))
        request.charged = max(request.charged, cached)

    def planned(self, request: R, count: int, complete: bool) -> None:
        """A request prefills ``count`` tokens in this step; ``complete``: these are its last."""
        tenant = self._tenant_of(request)
        if request is not tenant.oldest():
            tenant.oldest_due += count * self._config.oldest_share
        elif tenant.oldest_due > 0:
            tenant.oldest_due -= count
        if complete:
            self._forget_partial(tenant, request)
        # What is computed again after a preemption was paid for the first time.
        end = request.computed + count
        cost = max(0, end - max(request.computed, request.charged))
        self._charge(tenant, cost)
        self._note(request, cost)
        request.charged = max(request.charged, end)
        ring = self._rings[tenant.key[0]]
        if tenant.deficit <= 0:
            ring.move_to_end(tenant.key)
        self._leave_if_idle(tenant)

    def ahead(self, tenant: str) -> bool:
        """Whether a tenant has had more than its share lately: others go first, and it leaves room for them."""
        return self._config.fairness and self.usage.ahead(tenant)

    def charge_output(self, request: R) -> None:
        """A token was drawn for ``request``."""
        self._charge(self._tenant_of(request), self._config.output_cost)
        request.charged += 1

    def order(self, now: float, prefilling: Iterable[R], seconds: Seconds) -> Iterator[R]:
        """Yield each request that may prefill in this step, the one that is owed most first.

        The caller tells of each one, before it asks for the next, that it was `admitted` or `planned`, or clears
        ``is_open`` because no more can be admitted: then only those that hold KV already follow.

        Args:
            prefilling: all requests that hold KV and whose prefill isn't committed.
            seconds: how long prefill takes.
        """
        self._step += 1
        self._seconds = seconds
        self.usage.advance(now)
        served: set[int] = set()
        offers = self._offers(prefilling, served)
        while self.is_open:
            request = next(offers, None)
            if request is None:
                return
            served.add(request.uid)
            yield request
        rest = [request for uid, request in self.partials.items() if uid not in served]
        yield from sorted(rest, key=self._owed, reverse=True)

    def _offers(self, prefilling: Iterable[R], served: set[int]) -> Iterator[R]:
        self._frontier = {}
        for request in prefilling:
            self._watch(request)
        for priority in sorted(self._rings, reverse=True):
            for ahead in (False, True):
                ring = self._rings.get(priority)
                if ring is not None:
                    yield from self._turns(ring, served, ahead)

    def _turns(self, ring: OrderedDict[tuple[int, str], _Tenant[R]], served: set[int], ahead: bool) -> Iterator[R]:
        """One priority class, tenant by tenant, until none of those that are ``ahead``, or not, has more to offer."""
        mark, quantum = 2 * self._step + ahead, self._config.quantum
        aside = 0
        while aside < len(ring) and aside < _LOOKS:
            key, tenant = next(iter(ring.items()))
            if tenant.aside == mark:
                ring.move_to_end(key)
                continue
            if tenant.judged != self._step:
                tenant.judged, tenant.ahead = self._step, self.ahead(tenant.key[1])
            if tenant.ahead != ahead:
                tenant.aside = mark
                aside += 1
                continue
            if tenant.deficit <= 0:
                tenant.deficit += quantum
                if tenant.deficit <= 0:
                    ring.move_to_end(key)
                    continue
            request = self._head(tenant, served)
            if request is None:
                tenant.aside = mark
                aside += 1
                continue
            yield request

    def _head(self, tenant: _Tenant[R], served: set[int]) -> R | None:
        """The request of a tenant that goes first."""
        begun, left = self._shortest_begun(tenant, served)
        if self._config.order != "work" and tenant.partials:
            return begun
        if self._config.order == "arrival":
            return next(iter(tenant.waiting.values()), None)
        if tenant.oldest_due > 0:
            oldest = tenant.oldest()
            if oldest is not None and oldest.uid not in served and not self._soon_cached(oldest):
                return oldest
        if tenant.built != self._step:
            tenant.built = self._step
            tenant.window = self._ranked(tenant)
            tenant.moved = False
        while True:
            window = tenant.window
            while window:
                if begun is not None and left <= -window[-1][0]:
                    return begun
                request = window.pop()[2]
                if request.state == WAITING and not self._soon_cached(request):
                    return request
            if not tenant.moved or not tenant.waiting:
                return begun
            tenant.window = self._ranked(tenant)
            tenant.moved = False

    def _ranked(self, tenant: _Tenant[R]) -> list[tuple[float, int, R]]:
        """Some of a tenant's queue with their scores, the best last: those that have least left to compute first.

        The score is minus the seconds that it takes, or in the other order, the tokens that are cached.
        """
        size, probe, seconds = self._pool.block_size, self._pool.probe, self._seconds
        by_work = self._config.order == "work"
        scored: list[tuple[float, int, R]] = []
        for place, request in enumerate(self._window(tenant)):
            if request.preemptions:
                score = inf
            else:
                score = found = min(probe(request.sought) * size, request.prompt_len - 1)
                if by_work:
                    score = -seconds(found, len(request.tokens) - found)
            scored.append((score, -place, request))
        scored.sort()
        return scored

    def _window(self, tenant: _Tenant[R]) -> Iterator[R]:
        """Who of a tenant's queue is compared."""
        waiting, most = tenant.waiting, self._config.window
        if self._config.order != "work":
            return islice(waiting.values(), most)
        return (waiting[uid] for _, uid in tenant.by_length[:most])

    def _shortest_begun(self, tenant: _Tenant[R], served: set[int]) -> tuple[R | None, float]:
        """Of a tenant's prompts that have begun, the one with the least left to compute, and the seconds that count."""
        best, least = None, inf
        for uid, request in tenant.partials.items():
            if uid not in served:
                start = request.computed
                left = _BEGUN * self._seconds(start, len(request.tokens) - start) if not request.preemptions else -inf
                if best is None or left < least:
                    best, least = request, left
        return best, least

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

    def _note(self, request: R, cost: float) -> None:
        if self._config.fairness:
            self.usage.charge(request.tenant, cost)

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
        if tenant.partials.pop(request.uid, None) is not None:
            del self.partials[request.uid]

    def _join(self, tenant: _Tenant[R]) -> None:
        self._rings.setdefault(tenant.key[0], OrderedDict())[tenant.key] = tenant

    def _leave_if_idle(self, tenant: _Tenant[R]) -> None:
        if tenant.waiting or tenant.partials:
            return
        ring = self._rings.get(tenant.key[0])
        if ring is not None and ring.pop(tenant.key, None) is not None:
            # A turn that isn't used can't be saved up.
            tenant.deficit = min(tenant.deficit, 0.0)
            if not ring:
                del self._rings[tenant.key[0]]


def _length(request: Request) -> tuple[int, int]:
    """By what those that wait are sorted: the tokens to compute. Who has lost its KV comes first."""
    return 0 if request.preemptions else request.owed, request.uid


def _nothing(start: int, count: int) -> float:
    return 0.0
