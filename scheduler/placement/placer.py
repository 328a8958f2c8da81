"""Who goes where now? The one object that a gateway asks.

Under most policies a job goes to a worker as soon as it is asked about. Under `held` it waits here, not in a worker's
queue: whenever something changes, jobs are sorted (priority, tenants that are owed, least work first, with ageing),
planned against the workers, and sent to those that have next to nothing left to do. So a worker's queue is never longer
than it must be, nothing is bound to the wrong worker early, and what waits still profits from what gets cached.
"""

from collections import deque
from collections.abc import Iterable
from math import exp, inf

from scheduler.placement.config import PlacementConfig
from scheduler.placement.job import Decision, Job, Placed, Refused
from scheduler.placement.policies import BY_NAME, Policy
from scheduler.placement.turns import Turns
from scheduler.placement.worker import Report, Sent, Worker, WorkerInfo, pool
from scheduler.prefix_index import Chain, PrefixIndex

# How many blocks are remembered of a worker whose cache's size isn't known.
_BLOCKS = 65_536
_LEAST_WEIGHT = 0.01
_RETRY = 1.0
# Seconds that are left between two looks when nothing happens.
_SOON = 5e-3
# Seconds from one look at how fast the workers are to the next.
_POOLING = 0.25
# So many jobs that don't fit a worker's KV, and none behind them is tried.
_TRIES = 4


class _Waiting:
    """A job that waits, what is cached of it where (tokens), and its least work."""

    __slots__ = ("hits", "job", "looked", "work")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.hits: dict[str, int] = {}
        self.looked = -inf
        self.work = 0.0


class Placer:
    """Places jobs on workers. Times are seconds by the caller's clock, and never go back."""

    def __init__(
        self, config: PlacementConfig | None = None, *, policy: Policy | None = None, fast: bool = False
    ) -> None:
        """No workers yet.

        Args:
            config: the settings.
            policy: one that has no name; default: the one that the settings name.
            fast: the index's loops are compiled, see `scheduler.prefix_table.compiled`.
        """
        self.config = config or PlacementConfig()
        self.workers: dict[str, Worker] = {}
        self.refused = 0
        self._fast = fast
        self._policy = policy or BY_NAME[self.config.policy]
        self._indexes: dict[tuple[str, bool], PrefixIndex] = {}
        self._waiting: dict[int | str, _Waiting] = {}
        self._where: dict[int | str, Worker] = {}
        self._unsettled: deque[tuple[float, str, Chain, int]] = deque()
        self._turns = Turns(self.config.quantum)
        self._turn = 0
        # Something happened since the last decision; and when to decide anyway.
        self._changed = True
        self._look_at = inf
        self._pooled = -inf
        self._use = 0.0
        self._used_at = 0.0

    @property
    def waiting(self) -> int:
        """Jobs that arrived and were not placed yet."""
        return len(self._waiting)

    @property
    def price(self) -> float:
        """What a second of work is worth, in seconds of waiting: about 1 / (1 - use)."""
        return 1 / max(1 - self.use, 1 / self.config.dearest)

    @property
    def use(self) -> float:
        """How much of the fleet's time the prefill placed lately takes; may be more than 1."""
        capacity = sum(worker.weight for worker in self.workers.values() if worker.ready)
        return self._use / capacity if capacity else 1.0

    # Workers come and go.

    def worker_up(self, info: WorkerInfo, now: float) -> None:
        """A worker comes with an empty cache, ready for requests.

        Raises:
            ValueError: there is one of that name.
        """
        if info.name in self.workers:
            raise ValueError(f"there is a worker {info.name!r} already")
        key = (info.chain, info.exact)
        index = self._indexes.get(key)
        if index is None:
            index = self._indexes[key] = PrefixIndex(exact=info.exact, fast=self._fast)
        index.add(info.name, max(1, info.kv_tokens // info.block_tokens) if info.kv_tokens else _BLOCKS)
        self.workers[info.name] = Worker(info, now)
        self._changed = True

    def worker_down(self, name: str, now: float) -> list[Job]:
        """A worker has gone. The jobs that it had: they are forgotten, and may arrive again."""
        worker = self.workers.pop(name)
        self._index(worker).drop(name)
        self._changed = True
        for uid in worker.sent:
            del self._where[uid]
        return [sent.job for sent in worker.sent.values()]

    def allow(self, name: str, ready: bool, weight: float = 1.0) -> None:
        """Whether a worker gets requests, and in a slow start how fast it counts as (a share of its speed)."""
        worker = self.workers[name]
        worker.ready = ready
        worker.weight = min(max(weight, _LEAST_WEIGHT), 1.0)
        self._changed = True

    def report(self, name: str, report: Report, now: float) -> None:
        """A worker says how busy it is."""
        self.workers[name].report(report, now)
        self._changed = True

    # What workers cache.

    def stored(self, name: str, blocks: Chain) -> bool:
        """An exact worker stored blocks. False: more than it can hold, so that nothing is believed of it now."""
        return self._index(self.workers[name]).stored(name, blocks)

    def removed(self, name: str, blocks: Chain) -> None:
        """An exact worker removed blocks."""
        self._index(self.workers[name]).removed(name, blocks)

    def cleared(self, name: str) -> None:
        """A worker's cache is empty, or nothing is known of it any more."""
        self._index(self.workers[name]).clear(name)

    # What becomes of jobs.

    def arrived(self, job: Job, now: float) -> None:
        """A job wants to be placed; `decide` says where.

        Raises:
            ValueError: there is one of that uid.
        """
        if job.uid in self._waiting or job.uid in self._where:
            raise ValueError(f"there is a job {job.uid!r} already")
        self._waiting[job.uid] = _Waiting(job)
        self._turns.joined(job.tenant)
        self._changed = True

    def first_token(self, uid: int | str, now: float) -> None:
        """A job's prompt has been computed."""
        worker = self._where.get(uid)
        if worker is not None:
            worker.begun(uid, now)
            self._changed = True
            self._expect_events(worker, worker.sent[uid], now)

    def progressed(self, uid: int | str, tokens: int, now: float) -> None:
        """So many tokens of a job's answer have come, all together; as often or seldom as convenient."""
        worker = self._where.get(uid)
        if worker is not None:
            worker.produced(uid, tokens)

    def finished(self, uid: int | str, now: float) -> None:
        """A job has ended, was cancelled or failed, wherever it was. Unknown ones are none."""
        waiting = self._waiting.pop(uid, None)
        if waiting is not None:
            self._turns.left(waiting.job.tenant)
        worker = self._where.pop(uid, None)
        if worker is not None:
            sent = worker.ended(uid, now)
            self._changed = True
            if not sent.begun:
                self._expect_events(worker, sent, now)

    # Decisions.

    def decide(self, now: float) -> list[Decision]:
        """Which of the jobs that arrived go where, now. To be asked after whatever has happened, and at `next_look`."""
        if self._unsettled:
            self._settle(now)
        if not self._waiting or (not self._changed and now < self._look_at):
            return []
        self._changed = False
        workers = [worker for worker in self.workers.values() if worker.ready]
        if now >= self._pooled + _POOLING:
            pool(workers)
            self._pooled = now
        for worker in workers:
            worker.reckon(self.config.step, self.config.decode)
        if self._policy.holds:
            decisions = [*self._refuse(workers, now), *self._release(workers, now)]
            self._look_at = self._when_to_look(workers, now)
            return decisions
        decisions = []
        for entry in list(self._waiting.values()):
            able = self._able(entry.job, workers)
            if able:
                self._look(entry, now)
                few = self._policy.candidates(entry.job, able, entry.hits, self._turn)
                left = {worker.name: worker.work_left(now) for worker in few}
                best, hit, expected = self._choose(entry, few, left, self.price)
                decisions.append(self._late(entry.job, now, expected) or self._send(entry, best, hit, expected, now))
        return decisions

    def next_look(self, now: float) -> float | None:
        """When to `decide` although nothing happens: a worker will have next to nothing left to do. None: never."""
        return self._look_at if self._waiting and self._look_at < inf else None

    def _when_to_look(self, workers: list[Worker], now: float) -> float:
        limit = self.config.work_left
        times = [left - limit for worker in workers if (left := worker.work_left(now)) >= limit]
        return now + max(min(times, default=inf), _SOON)

    def _release(self, workers: list[Worker], now: float) -> Iterable[Decision]:
        """Plan those that wait, the next one first, and send those whose worker is about to have nothing to do."""
        config, price = self.config, self.price
        left = {worker.name: worker.work_left(now) for worker in workers}
        free = {name for name, seconds in left.items() if seconds < config.work_left}
        full = dict.fromkeys(free, 0)
        if not free:
            return
        for entry in self._in_order(now)[: config.window * len(workers)]:
            able = self._able(entry.job, workers)
            if not able:
                continue
            if now - entry.looked > config.refresh:
                self._look(entry, now)
            best, hit, expected = self._choose(entry, able, left, price)
            name = best.name
            left[name] = expected
            if name not in free:
                continue
            if best.fits(entry.job.prompt_tokens - hit + entry.job.output_tokens, config.kv_share):
                yield self._send(entry, best, hit, expected, now)
                if expected >= config.work_left:
                    free.discard(name)
            else:
                full[name] += 1
                if full[name] == _TRIES or now - entry.job.arrival > config.patience:
                    free.discard(name)
            if not free:
                return

    def _in_order(self, now: float) -> list[_Waiting]:
        """Those that wait, the next one first."""
        ageing, turns = self.config.ageing, self._turns
        least = turns.least()

        def key(one: _Waiting) -> tuple[int, int, float]:
            job = one.job
            if one.looked == -inf:
                self._look(one, now)
            return -job.priority, turns.ahead(job.tenant, least), one.work - ageing * (now - job.arrival)

        return sorted(self._waiting.values(), key=key)

    def _refuse(self, workers: list[Worker], now: float) -> Iterable[Decision]:
        """Those that can't be in time any more."""
        timed = [one for one in self._waiting.values() if one.job.deadline is not None]
        if not timed or not workers:
            return
        left = sum(worker.work_left(now) for worker in workers) / len(workers)
        queue = self._in_order(now)
        for entry in queue:
            left += entry.work / len(workers)
            if entry.job.deadline is not None and (late := self._late(entry.job, now, max(left, entry.work))):
                left -= entry.work / len(workers)
                yield late

    def _late(self, job: Job, now: float, expected: float) -> Refused | None:
        late = now + expected - job.deadline if job.deadline is not None else 0.0
        if late <= 0:
            return None
        del self._waiting[job.uid]
        self._turns.left(job.tenant)
        self.refused += 1
        return Refused(job, max(_RETRY, late))

    def _choose(
        self, entry: _Waiting, workers: Iterable[Worker], left: dict[str, float], price: float
    ) -> tuple[Worker, int, float]:
        """The best worker, as the policy sees it; how much is cached there; in how many seconds the prompt is read."""
        job, hits, cost = entry.job, entry.hits, self._policy.cost
        best: Worker | None = None
        least = inf
        for worker in workers:
            name = worker.info.name
            seconds = cost(job, worker, hits.get(name, 0), left[name], price)
            if seconds < least:
                best, least = worker, seconds
        assert best is not None
        hit = hits.get(best.name, 0)
        return best, hit, left[best.name] + best.seconds(job.prompt_tokens, hit)

    def _send(self, entry: _Waiting, worker: Worker, hit: int, expected: float, now: float) -> Placed:
        job = entry.job
        work = worker.seconds(job.prompt_tokens, hit)
        del self._waiting[job.uid]
        self._turns.left(job.tenant, work)
        self._turn += 1
        self._where[job.uid] = worker
        worker.take(Sent(job, hit, work * worker.weight, now))
        blocks = job.chains.get(worker.info.chain)
        if blocks is not None:
            self._index(worker).placed(worker.name, blocks, hit // worker.info.block_tokens)
        self._note_use(work, now)
        return Placed(job, worker.name, hit, expected)

    def _note_use(self, seconds: float, now: float) -> None:
        horizon = self.config.horizon
        self._use = self._use * exp(-(now - self._used_at) / horizon) + seconds / horizon
        self._used_at = now

    def _look(self, entry: _Waiting, now: float) -> None:
        """What is cached where of a job."""
        job = entry.job
        entry.looked = now
        entry.hits = hits = {}
        for (name, _), index in self._indexes.items():
            blocks = job.chains.get(name)
            if blocks is not None:
                for worker, count in index.match(blocks).items():
                    hits[worker] = min(count * self.workers[worker].info.block_tokens, job.prompt_tokens)
        if self._policy.holds:
            workers = self.workers.values()
            entry.work = min((one.work(job.prompt_tokens, hits.get(one.info.name, 0)) for one in workers), default=0.0)

    def _able(self, job: Job, workers: list[Worker]) -> list[Worker]:
        return [worker for worker in workers if worker.name not in job.excluded] if job.excluded else workers

    def _index(self, worker: Worker) -> PrefixIndex:
        return self._indexes[worker.info.chain, worker.info.exact]

    def _expect_events(self, worker: Worker, sent: Sent, now: float) -> None:
        """What the job was expected to leave in the cache must be confirmed within a moment."""
        blocks = sent.job.chains.get(worker.info.chain)
        if worker.info.exact and blocks is not None:
            hit = sent.hit // worker.info.block_tokens
            self._unsettled.append((now + self.config.settle, worker.name, blocks, hit))

    def _settle(self, now: float) -> None:
        unsettled = self._unsettled
        while unsettled and unsettled[0][0] <= now:
            _, name, blocks, hit = unsettled.popleft()
            if name in self.workers:
                self._index(self.workers[name]).settled(name, blocks, hit)
