"""Which tokens of which requests does a worker compute in its next step?

There are no phases of prefill and decode: a request has tokens whose KV is computed and tokens that are known, and a
step computes a slice of the difference for some requests. Those that lack one token (decodes) are in every step; the
rest of the step's budget goes to the others, in the order of `Line`. `schedule` reads as that algorithm; each policy
is a part of its own: `Budget` (how much), `Line` (who), `Forecast` (who may come in), `BlockPool` (where).

Step N+1 can be planned while step N runs: a decode's slice depends on its predecessor's position only, never on the
token drawn, so `computed` would move on when a slice is planned instead of when it is committed, with a placeholder
for the token in flight, which the runner fills on the device. `commit` already passes over slices of requests that
have ended since they were planned, and that is all that a slice planned past a request's end needs.
"""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Generic, NamedTuple

from scheduler.admission import Forecast, OutputLengths
from scheduler.blocks import BlockPool, IntegrityError, chain_hashes, root_hash
from scheduler.budget import Budget
from scheduler.config import SchedulerConfig
from scheduler.fairness import Line
from scheduler.request import DECODE, ENDED, PREFILL, WAITING, Plan, R, Request, Slice
from scheduler.steptime import StepTime, Work

__all__ = ["LoadReport", "Plan", "Request", "Scheduler", "SchedulerConfig", "Slice"]

_due = attrgetter("due")
_computed = attrgetter("computed")


class LoadReport(NamedTuple):
    """How busy the worker is. ``kv_*`` in tokens, ``backlog`` in seconds, ``prefill_rate`` in tokens/s.

    ``waiting_tokens`` is prefill still to be computed, ``backlog`` the predicted seconds until it has been; the
    ``*_total`` fields count from the start.
    """

    waiting: int
    running: int
    waiting_tokens: int
    kv_used: int
    kv_total: int
    backlog: float
    prefill_rate: float
    steps_total: int
    prompt_tokens_total: int
    cached_tokens_total: int
    output_tokens_total: int
    preemptions_total: int


class Scheduler(Generic[R]):
    """Plans one worker's steps. Each plan is to be executed and then given to `commit`, before the next is made."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, steptime: StepTime) -> None:
        """Nothing waits. ``pool`` and ``steptime`` are used by this scheduler alone from here on."""
        self.config = config
        self.pool = pool
        self.steptime = steptime
        self._line: Line[R] = Line(config, pool)
        self._lengths = OutputLengths()
        self._live: dict[int, R] = {}
        self._prefilling: dict[int, R] = {}
        self._decoding: dict[int, R] = {}
        # Decodes whose blocks are full, since the last step.
        self._needy: list[R] = []
        # No request was admitted when last tried, and none has let go of anything since; and the priority tried.
        self._shut = False
        self._shut_priority = 0
        self._admissions = 0
        # Prefill that everybody together still has to compute: tokens, and (query, key) pairs.
        self._owed_tokens = 0
        self._owed_pairs = 0
        self._steps = self._prompt_tokens = self._cached_tokens = self._output_tokens = self._preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._live)

    def add(self, request: R, now: float) -> None:
        """Queue a request. Its prompt's blocks are hashed here, once.

        Raises:
            ValueError: its ``uid`` is live already, or the whole pool couldn't hold it.
        """
        if request.uid in self._live:
            raise ValueError(f"request {request.uid} is here already")
        size = self.pool.block_size
        # The last token drawn needs no KV.
        most = request.limit - 1
        if most > self.pool.num_blocks * size:
            raise ValueError(
                f"request {request.uid} may need the KV of {most} tokens (prompt {request.prompt_len},"
                f" max_tokens {request.max_tokens}); the pool holds {self.pool.num_blocks * size}"
            )
        if self.config.prefix_cache and not request.hashes:
            request.hashes = chain_hashes(request.tokens, size, root_hash(request.adapter, request.salt))
        self._live[request.uid] = request
        self._owe(request, len(request.tokens) - min(self.pool.probe(request.sought) * size, request.prompt_len - 1))
        self._line.add(request)
        if request.priority > self._shut_priority:
            self._shut = False

    def abort(self, uid: int) -> bool:
        """Forget a request, wherever it is, and free its blocks. False if there is none of that ``uid``.

        A slice of it that was planned but not committed still takes its place in ``sampled``; the token is dropped.
        """
        request = self._live.get(uid)
        if request is None:
            return False
        self._end(request)
        return True

    def schedule(self, now: float) -> Plan[R]:
        """Plan the next step; its slices are empty when there is nothing to do.

        Decodes come first in the plan, then prefill, in the order in which it was granted.
        """
        preempted: list[R] = []
        self._grow(preempted)
        decodes = self._decode_work()
        tightest = min(map(_due, self._decoding.values()), default=now)
        budget = Budget(self.config, self.steptime, decodes, tightest, now)
        prefills = self._prefill(budget, now, preempted) if self._line.waiting or self._line.partials else []
        new = tuple.__new__
        # 0.12 us a slice instead of 0.3 through the constructor (2-core EPYC).
        slices: list[Slice[R]] = [
            new(Slice, (request, request.computed, 1, True)) for request in self._decoding.values()
        ]
        if preempted:
            decodes = self._decode_work()
        tokens, context, pairs, requests = decodes
        for _, start, count, _ in prefills:
            tokens += count
            context += start + count
            pairs += _pairs(start, count)
        slices += prefills
        work = Work(tokens, context, pairs, requests + len(prefills))
        return Plan(slices, self.steptime.predict(work), preempted, work)

    def commit(self, plan: Plan[R], sampled: Sequence[int], now: float, seconds: float) -> None:
        """Take in what a step brought: tokens are appended, full blocks published, finished requests' blocks freed.

        Args:
            plan: what `schedule` returned last.
            sampled: one token for each slice that samples, in the plan's order.
            now: when the step ended.
            seconds: how long it took; `StepTime` learns from it.

        Raises:
            ValueError: ``sampled`` doesn't fit the plan; nothing was taken in.
        """
        expected = sum([piece[3] for piece in plan.slices])
        if len(sampled) != expected:
            raise ValueError(f"{len(sampled)} tokens were sampled, the plan has {expected} slices that sample")
        size = self.pool.block_size
        charging = self._line.contended and self.config.fairness
        drawn = iter(sampled)
        for request, start, count, samples in plan.slices:
            token = next(drawn) if samples else 0
            state = request.state
            if state != DECODE and state != PREFILL:
                continue
            computed = request.computed = start + count
            if state == PREFILL:
                self._owe(request, request.owed - count)
            if count > 1 or not computed % size:
                self._filled(request)
            if not samples:
                continue
            if state == PREFILL:
                self._begin_decode(request, now)
            tokens = request.tokens
            tokens.append(token)
            request.due += request.tpot
            self._output_tokens += 1
            if charging:
                self._line.charge_output(request)
            if token in request.stop_ids and len(tokens) - request.prompt_len >= request.min_tokens:
                request.finish = "stop"
                self._end(request)
            elif len(tokens) >= request.limit:
                request.finish = "length"
                self._end(request)
        if plan.slices:
            self._steps += 1
            self.steptime.observe(plan.work, seconds)

    def load(self, now: float) -> LoadReport:
        """How busy the worker is. ``now`` is the caller's clock, as everywhere."""
        size = self.pool.block_size
        decode_seconds = self.steptime.predict(self._decode_work()) if self._decoding else 0.0
        backlog = 0.0
        if self._owed_tokens:
            waiting = self._line.waiting + len(self._prefilling)
            work = Work(self._owed_tokens, self._owed_tokens, self._owed_pairs, waiting)
            # Decodes take their share of every step until then.
            share = min(decode_seconds / max(self.config.tpot, 1.25 * decode_seconds), 0.8)
            backlog = self.steptime.predict(work) / (1 - share)
        return LoadReport(
            waiting=self._line.waiting,
            running=len(self._prefilling) + len(self._decoding),
            waiting_tokens=self._owed_tokens,
            kv_used=self.pool.used * size,
            kv_total=self.pool.num_blocks * size,
            backlog=backlog,
            prefill_rate=self.steptime.prefill_rate,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            cached_tokens_total=self._cached_tokens,
            output_tokens_total=self._output_tokens,
            preemptions_total=self._preemptions,
        )

    def check_integrity(self) -> None:
        """Look for contradictions among requests, queues and pool, in O(everything).

        Raises:
            IntegrityError: saying what is wrong.
        """
        running = [*self._prefilling.values(), *self._decoding.values()]
        self.pool.check_integrity([request.blocks for request in running])
        if len(running) + self._line.waiting != len(self._live):
            raise IntegrityError(f"{len(running)} run, {self._line.waiting} wait, and {len(self._live)} are live")
        if len(running) > self.config.max_running:
            raise IntegrityError(f"{len(running)} run, at most {self.config.max_running} may")
        owed = 0
        for request in self._live.values():
            owed += request.owed
            if request.state == WAITING and (request.blocks or request.computed):
                raise IntegrityError(f"{request} waits and holds {len(request.blocks)} blocks")
            if request.computed > len(request.blocks) * self.pool.block_size:
                raise IntegrityError(f"{request} has only {len(request.blocks)} blocks")
            if request.state == DECODE and request.computed != len(request.tokens) - 1:
                raise IntegrityError(f"{request} decodes, and lacks more than one token")
        if owed != self._owed_tokens:
            raise IntegrityError(f"requests owe {owed} tokens of prefill, {self._owed_tokens} are counted")

    def _decode_work(self) -> Work:
        count = len(self._decoding)
        context = sum(map(_computed, self._decoding.values())) + count
        return Work(count, context, context, count)

    def _grow(self, preempted: list[R]) -> None:
        """Give a block to each decode whose blocks are full, at others' expense if there is no other way."""
        if not self._needy:
            return
        needy, self._needy = self._needy, []
        pool = self.pool
        for request in needy:
            while request.state == DECODE and not pool.free:
                victim = self._victim()
                if victim is None:
                    raise IntegrityError(f"no block is free and nobody holds any, with {request} in need of one")
                self._preempt(victim, preempted)
            if request.state == DECODE:
                request.blocks += pool.allocate(1)

    def _prefill(self, budget: Budget, now: float, preempted: list[R]) -> list[Slice[R]]:
        """Fill the budget with slices of prefill, of requests that run already or can be admitted."""
        line = self._line
        # Whoever has just lost its KV must not get it back at once.
        line.is_open = line.waiting > 0 and not self._shut and not preempted
        forecast: Forecast | None = None
        slices: list[Slice[R]] = []
        for request in line.order(now, self._prefilling.values(), 1 / self.steptime.prefill_rate):
            if request.state == WAITING:
                if forecast is None and self.config.lookahead:
                    forecast = self._forecast()
                if not self._admit(request, forecast, preempted):
                    line.is_open = False
                    continue
                if preempted:
                    forecast = None
            start = request.computed
            count = budget.grant(request)
            if count == 0:
                break
            if request.first_scheduled is None:
                request.first_scheduled = now
            complete = start + count == len(request.tokens)
            line.planned(request, count, complete)
            slices.append(Slice(request, start, count, complete))
            if not complete:
                break
        return slices

    def _forecast(self) -> Forecast:
        running = chain(self._prefilling.values(), self._decoding.values())
        return Forecast(running, self._lengths, self.config.quantile, self.pool.block_size)

    def _admit(self, request: R, forecast: Forecast | None, preempted: list[R]) -> bool:
        """Give a waiting request its blocks, if there is room; less urgent ones make room for it."""
        if request in preempted:
            return False
        pool, size = self.pool, self.pool.block_size
        length = len(request.tokens)
        # Of a prompt that is cached in full, the last token is still computed: its logits are wanted.
        found = pool.match(request.sought, (length - 1) // size)
        held = pool.acquire(request.hashes[:found])
        need = -(-length // size) - found
        while not self._has_room(request, need, forecast):
            victim = self._victim(below=request.priority)
            if victim is None:
                pool.release(held)
                self._shut = True
                self._shut_priority = request.priority
                return False
            self._preempt(victim, preempted)
            if forecast is not None:
                forecast = self._forecast()
        request.blocks = held + pool.allocate(need)
        request.computed = found * size
        request.published = request.shared = found
        self._admissions += 1
        request.admitted = self._admissions
        request.state = PREFILL
        self._prefilling[request.uid] = request
        self._owe(request, length - found * size)
        if not request.preemptions:
            request.cached = found * size
            self._prompt_tokens += request.prompt_len
            self._cached_tokens += found * size
        self._line.admitted(request, found * size)
        return True

    def _has_room(self, request: R, need: int, forecast: Forecast | None) -> bool:
        pool = self.pool
        running = len(self._prefilling) + len(self._decoding)
        if running >= self.config.max_running or need > pool.free:
            return False
        return not running or forecast is None or forecast.admit(request, need, pool.used + need, pool.num_blocks)

    def _victim(self, below: int | None = None) -> R | None:
        """Of the least urgent requests that run (less so than ``below``), the one admitted last."""
        running = chain(self._prefilling.values(), self._decoding.values())
        victim = min(running, key=lambda request: (request.priority, -request.admitted), default=None)
        return None if victim is None or (below is not None and victim.priority >= below) else victim

    def _preempt(self, request: R, preempted: list[R]) -> None:
        """Take a request's KV away. Its tokens stay, and what is published may still be found when it comes back."""
        self._let_go(request)
        request.computed = 0
        request.preemptions += 1
        request.state = WAITING
        self._preemptions += 1
        self._owe(request, len(request.tokens))
        self._line.put_back(request)
        preempted.append(request)

    def _begin_decode(self, request: R, now: float) -> None:
        """A request's prefill is done. A first token that comes late moves the deadlines of all that follow."""
        request.state = DECODE
        del self._prefilling[request.uid]
        self._decoding[request.uid] = request
        if len(request.tokens) == request.prompt_len and now > request.due:
            request.due = now

    def _filled(self, request: R) -> None:
        """Publish the blocks that have become full, and note if there is none to go on with."""
        size = self.pool.block_size
        computed, published = request.computed, request.published
        full = computed // size
        if full > published and self.config.prefix_cache:
            hashes = request.hashes
            if len(hashes) < full:
                parent = hashes[-1] if hashes else root_hash(request.adapter, request.salt)
                hashes += chain_hashes(request.tokens[len(hashes) * size : full * size], size, parent)
            self.pool.publish(request.blocks, hashes, published, full, request.tokens, request.adapter)
            request.published = full
        if computed == len(request.blocks) * size:
            self._needy.append(request)

    def _end(self, request: R) -> None:
        """A request is over: answered, or aborted (then it has no ``finish``)."""
        if request.state != WAITING:
            self._let_go(request)
        self._owe(request, 0)
        self._line.remove(request)
        self._shut = False
        del self._live[request.uid]
        request.state = ENDED
        if request.finish is not None:
            self._lengths.observe(request.generated)

    def _let_go(self, request: R) -> None:
        """Free the blocks of a request that runs."""
        self.pool.release(request.blocks)
        request.blocks = []
        del (self._prefilling if request.state == PREFILL else self._decoding)[request.uid]
        self._shut = False

    def _owe(self, request: R, tokens: int) -> None:
        """Set how much prefill the backlog counts for a request: its last ``tokens``."""
        length = len(request.tokens)
        old = request.owed
        self._owed_tokens += tokens - old
        self._owed_pairs += _pairs(length - tokens, tokens) - _pairs(length - old, old)
        request.owed = tokens


def _pairs(start: int, count: int) -> int:
    """How many tokens the ``count`` tokens after ``start`` attend to, all together."""
    return count * start + count * (count + 1) // 2
