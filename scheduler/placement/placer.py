"""Who goes where now? The one object that a gateway asks.

Under most policies a job goes to a worker as soon as it is asked about. Under `held` it waits here, not in a worker's
queue: whenever something changes, jobs are planned against the workers in turn (priority, tenants that are owed, least
work first, and a share for whoever waits longest), and sent to those that could begin at once or nearly so. So a
worker's queue is never longer than it must be, nothing is bound to the wrong worker early, and what waits still profits
from what gets cached. A worker that reads the shortest prompt first can begin with a short one while it has a long one;
then what the long one loses is counted.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from math import exp, inf

from scheduler.placement.config import PlacementConfig
from scheduler.placement.job import Decision, Job, Placed, Refused
from scheduler.placement.policies import BY_NAME, Policy
from scheduler.placement.queue import Queue, Waiting
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
# So many comparisons of a job and a worker are made at any event; for each further one, planning rests for so many
# seconds, about three times what it takes: a long queue in front of many workers can't take a whole core.
_COMPARISONS = 512
_REST = 1e-5
# So many jobs that don't fit a worker's KV, and none behind them is tried.
_TRIES = 4


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
        self._waiting: dict[int | str, Waiting] = {}
        self._where: dict[int | str, Worker] = {}
        self._unsettled: deque[tuple[float, str, Chain, int]] = deque()
        self._turns = Turns(self.config.quantum)
        self._queue = Queue(self.config.ageing, self._turns)
        self._arrivals = 0
        self._turn = 0
        # Seconds of prefill that are owed to whoever came first.
        self._owed = 0.0
        # Something happened since the last decision; and when to decide anyway.
        self._changed = True
        self._look_at = inf
        # Comparisons in this decision, and until when they were enough.
        self._compared = 0
        self._rested = -inf
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
        worker.changed()
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
        self._arrivals += 1
        entry = self._waiting[job.uid] = Waiting(job, self._arrivals)
        self._turns.joined(job.tenant)
        if self._policy.holds:
            self._look(entry, now)
            self._queue.add(entry)
        self._changed = True

    def first_token(self, uid: int | str, now: float) -> None:
        """A job's prompt has been computed."""
        worker = self._where.get(uid)
        if worker is not None:
            worker.begun(uid, now)
            self._changed = True
            self._expect_events(worker, worker.sent[uid], now)

    def progressed(self, uid: int | str, tokens: int, now: float) -> None:
        """So many tokens of a job's answer have come, all together; as often or seldom as convenient.

        Without it the KV that a job takes is what was expected of it at first, and the tokens that a worker's steps
        read are its prompts': answers that get longer than expected then fill a cache unnoticed, and slow prefill down
        more than reckoned. It matters where workers report neither ``kv_used`` nor ``context``; once in a hundred
        tokens is enough.
        """
        worker = self._where.get(uid)
        if worker is not None:
            worker.produced(uid, tokens)

    def finished(self, uid: int | str, now: float) -> None:
        """A job has ended, was cancelled or failed, wherever it was. Unknown ones are none."""
        waiting = self._waiting.get(uid)
        if waiting is not None:
            self._leave(waiting)
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
        if not self._waiting or now < self._rested or (not self._changed and now < self._look_at):
            return []
        self._changed = False
        workers = [worker for worker in self.workers.values() if worker.ready]
        if now >= self._pooled + _POOLING:
            pool(workers)
            self._pooled = now
        if self._policy.holds:
            decisions = [*self._refuse(workers, now), *self._release(workers, now)]
            self._look_at = self._when_to_look(workers, now)
            self._rested = now + max(0, self._compared - _COMPARISONS) * _REST
            self._compared = 0
            return decisions
        decisions = []
        nothing = dict.fromkeys(self.workers, 0.0)
        for worker in workers:
            worker.reckon(self.config.step, self.config.decode, now)
        for entry in list(self._waiting.values()):
            able = self._able(entry.job, workers)
            if able:
                self._look(entry, now)
                few = self._policy.candidates(entry.job, able, entry.hits, self._turn)
                best, hit, wait = self._choose(entry, few, nothing, self.price)
                expected = wait + best.seconds(entry.job.prompt_tokens, hit)
                decisions.append(self._late(entry, now, expected) or self._send(entry, best, hit, expected, now))
        return decisions

    def next_look(self, now: float) -> float | None:
        """When to `decide` although nothing happens: a worker will have next to nothing left to do. None: never."""
        resting = self._changed and now < self._rested
        look_at = self._rested if resting else max(self._look_at, self._rested)
        return look_at if self._waiting and look_at < inf else None

    def _when_to_look(self, workers: list[Worker], now: float) -> float:
        limit = self.config.work_left
        times = [worker.busy_until - limit for worker in workers if not worker.is_free(limit, now)]
        return max(min(times, default=inf), now + _SOON)

    def _release(self, workers: list[Worker], now: float) -> Iterable[Decision]:
        """Plan those that wait, the next one first, and send those whose worker is about to have nothing to do."""
        config, price = self.config, self.price
        planned = dict.fromkeys([worker.name for worker in workers], 0.0)
        free = {worker.name: worker for worker in workers if self._is_free(worker, now)}
        full = dict.fromkeys(free, 0)
        tries = 0
        for entry in self._in_order():
            if not free or tries == config.window:
                return
            tries += 1
            able = self._able(entry.job, self._better(entry, free, workers, now))
            self._compared += len(able)
            if not able:
                continue
            best, hit, wait = self._choose(entry, able, planned, price)
            name = best.name
            seconds = best.seconds(entry.job.prompt_tokens, hit)
            if name not in free or wait >= config.work_left:
                planned[name] += seconds
            elif best.fits(entry.job.prompt_tokens - hit + entry.job.output_tokens, config.kv_share):
                yield self._send(entry, best, hit, wait + seconds, now)
                tries = 0
                if not self._is_free(best, now):
                    del free[name]
            else:
                planned[name] += seconds
                full[name] += 1
                if full[name] == _TRIES or now - entry.job.arrival > config.patience:
                    del free[name]

    def _better(self, entry: Waiting, free: dict[str, Worker], workers: list[Worker], now: float) -> list[Worker]:
        """The workers that come into question: those that are free, and others if they have more cached than these."""
        if now - entry.looked > self.config.refresh:
            self._queue.remove(entry)
            self._look(entry, now)
            self._queue.add(entry)
        hits = entry.hits
        if not hits or len(free) == len(workers):
            return list(free.values())
        most = max([hits.get(name, 0) for name in free])
        busy = [worker for name, hit in hits.items() if hit > most and name not in free and (worker := self._at(name))]
        for worker in busy:
            worker.reckon(self.config.step, self.config.decode, now)
        return [*free.values(), *busy]

    def _is_free(self, worker: Worker, now: float) -> bool:
        """Whether a worker is about to have nothing to do, or nothing that it wouldn't interrupt."""
        if worker.is_changed or worker.is_free(self.config.work_left, now):
            worker.reckon(self.config.step, self.config.decode, now)
        return worker.is_free(self.config.work_left, now)

    def _at(self, name: str) -> Worker | None:
        """The worker of that name, if it is there yet and takes requests."""
        worker = self.workers.get(name)
        return worker if worker is not None and worker.ready else None

    def _in_order(self) -> list[Waiting]:
        """Those that wait, the next one first; before all, now and then, who came first."""
        order = list(islice(self._queue.ordered(), self.config.window * (1 + len(self.workers))))
        oldest = next(iter(self._waiting.values()), None)
        if oldest is not None and order and self._owed >= oldest.work and oldest.job.priority >= order[0].job.priority:
            return [oldest, *(one for one in order if one is not oldest)]
        return order

    def _refuse(self, workers: list[Worker], now: float) -> Iterable[Decision]:
        """Those that can't be in time any more."""
        timed = [one for one in self._waiting.values() if one.job.deadline is not None]
        if not timed or not workers:
            return
        left = sum(worker.work_left(now) for worker in workers) / len(workers)
        for entry in list(self._queue.ordered()):
            left += entry.work / len(workers)
            if entry.job.deadline is not None and (late := self._late(entry, now, max(left, entry.work))):
                left -= entry.work / len(workers)
                yield late

    def _late(self, entry: Waiting, now: float, expected: float) -> Refused | None:
        job = entry.job
        late = now + expected - job.deadline if job.deadline is not None else 0.0
        if late <= 0:
            return None
        self._leave(entry)
        self.refused += 1
        return Refused(job, max(_RETRY, late))

    def _leave(self, entry: Waiting, given: float = 0.0) -> None:
        """A job waits no more: its tenant was given so many seconds, or none."""
        job = entry.job
        if self._policy.holds:
            self._queue.remove(entry)
            self._pay(entry, given)
        del self._waiting[job.uid]
        self._turns.left(job.tenant, given)

    def _pay(self, entry: Waiting, given: float) -> None:
        """Who came first is owed a share of what the others get."""
        oldest = next(iter(self._waiting.values()))
        if entry is oldest:
            self._owed = max(0.0, self._owed - given) if len(self._waiting) > 1 else 0.0
        else:
            self._owed = min(self._owed + self.config.oldest_share * given, max(oldest.work, self._owed))

    def _choose(
        self, entry: Waiting, workers: Iterable[Worker], planned: Mapping[str, float], price: float
    ) -> tuple[Worker, int, float]:
        """The best worker, as the policy sees it; how much is cached there; in how many seconds it would begin."""
        job, hits, cost = entry.job, entry.hits, self._policy.cost
        prompt = job.prompt_tokens
        best: Worker | None = None
        least = inf
        soon = 0.0
        for worker in workers:
            name = worker.info.name
            hit = hits.get(name, 0)
            seconds = worker.seconds(prompt, hit)
            wait = worker.wait(seconds) + planned[name]
            total = cost(job, worker, hit, seconds, wait, price)
            if total < least:
                best, least, soon = worker, total, wait
        assert best is not None
        return best, hits.get(best.name, 0), soon

    def _send(self, entry: Waiting, worker: Worker, hit: int, expected: float, now: float) -> Placed:
        job = entry.job
        work = worker.seconds(job.prompt_tokens, hit)
        self._leave(entry, work)
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

    def _look(self, entry: Waiting, now: float) -> None:
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
