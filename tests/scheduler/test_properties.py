"""Whatever arrives and whatever is cancelled: each token is computed once, in order, on the right KV, and all ends.

The oracle is an echo: a shadow pool that remembers, for each block, which tokens (with salt and adapter, and all that
stood before) had their KV written into it. A slice may only continue what its request's own block table holds.
"""

import random
from itertools import product
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.batch import Plan, Request, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.request import PENDING
from scheduler.steptime import Coefficients, StepTime
from tests.scheduler.simulation import seconds_of

SWITCHES = ("time_budget", "deadlines", "fairness", "lookahead", "prefix_cache", "background")
# Positions of one block: what was written there, which is the token and everything that it attends to.
Written = tuple[str, str, tuple[int, ...]]


class Echo:
    """Executes plans on a shadow of the KV pool; a drawn token is a checksum of all that the request attended to.

    As a device does, it knows the token that it drew last for each request, also where the scheduler doesn't yet.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.size = block_size
        self.last: dict[int, int] = {}
        self.kv: list[list[Written | None]] = [[None] * block_size for _ in range(blocks)]

    def execute(self, plan: Plan[Request]) -> list[int]:
        """Check each slice against the pool, write it, and draw."""
        drawn = []
        assert len({piece.request.uid for piece in plan.slices}) == len(plan.slices), "two slices of one request"
        for request, start, count, samples in plan.slices:
            assert count > 0 and start == request.computed, "a slice leaves a gap or repeats"
            tokens = request.tokens.copy()
            if tokens[-1] == PENDING:
                tokens[-1] = self.last[request.uid]
            assert start + count <= len(tokens)
            assert samples == (start + count == len(tokens))
            for position in range(start + count):
                expected = (request.adapter, request.salt, tuple(tokens[: position + 1]))
                block = self.kv[request.blocks[position // self.size]]
                if position < start:
                    assert block[position % self.size] == expected, "the KV of an earlier token isn't its own"
                else:
                    block[position % self.size] = expected
            if samples:
                drawn.append(answer(tokens, request.salt, request.adapter))
                self.last[request.uid] = drawn[-1]
        return drawn


def answer(tokens: list[int], salt: str, adapter: str) -> int:
    """The token that follows: a function of all before it."""
    return (sum(tokens) * 31 + len(tokens) + len(salt) * 7 + len(adapter) * 13) % 5


def expected_tokens(request: Request, prompt: list[int]) -> list[int]:
    """What ``request`` ends with, if it had been alone."""
    tokens = prompt.copy()
    while True:
        tokens.append(answer(tokens, request.salt, request.adapter))
        drawn = len(tokens) - len(prompt)
        if (tokens[-1] in request.stop_ids and drawn >= request.min_tokens) or len(tokens) >= request.limit:
            return tokens


switches = st.fixed_dictionaries({name: st.booleans() for name in SWITCHES})


class AnythingGoes(RuleBasedStateMachine):
    """Arrivals, cancels and steps in any order on a tiny pool."""

    @initialize(
        flags=switches,
        blocks=st.integers(6, 24),
        block_size=st.integers(1, 5),
        max_running=st.integers(1, 6),
        spare=st.integers(1, 20),
        floor=st.integers(1, 6),
        window=st.integers(1, 4),
        quantum=st.integers(1, 30),
        slow=st.booleans(),
        share=st.sampled_from([0.0, 0.05, 2.0]),
        order=st.sampled_from(["work", "prefix", "arrival"]),
    )
    def begin(
        self,
        flags: dict[str, Any],
        blocks: int,
        block_size: int,
        max_running: int,
        spare: int,
        floor: int,
        window: int,
        quantum: int,
        slow: bool,
        share: float,
        order: Literal["work", "prefix", "arrival"],
    ) -> None:
        self.config = SchedulerConfig(
            order=order,
            max_running=max_running,
            max_batch_tokens=max_running + floor + spare,
            min_prefill_tokens=floor,
            token_budget=spare,
            window=window,
            quantum=quantum,
            background_share=share,
            background_kv=0.5 if slow else 1.0,
            **flags,
        )
        self.pool = BlockPool(blocks, block_size)
        self.scheduler: Scheduler[Request] = Scheduler(self.config, self.pool, StepTime())
        self.echo = Echo(blocks, block_size)
        self.machine = Coefficients(5e-3, 2e-2 if slow else 1e-4, 1e-6, 1e-7, 1e-5)
        self.now = 0.0
        self.live: dict[int, Request] = {}
        self.prompts: dict[int, list[int]] = {}
        self.count = 0
        self.pending: Plan[Request] | None = None
        self.drawn: list[int] = []

    @rule(
        prefix=st.sampled_from([(), (1,) * 4, (1,) * 9, (2, 3) * 5]),
        rest=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        max_tokens=st.integers(1, 14),
        stops=st.sampled_from([frozenset[int](), frozenset({0})]),
        min_tokens=st.integers(0, 3),
        tenant=st.sampled_from("abc"),
        priority=st.integers(0, 1),
        keys=st.sampled_from([*product(["", "s"], ["", "l"])]),
        ttft=st.sampled_from([1e-3, 0.1, 10.0]),
        reads=st.booleans(),
        background=st.booleans(),
    )
    def arrive(
        self,
        prefix: tuple[int, ...],
        rest: list[int],
        max_tokens: int,
        stops: frozenset[int],
        min_tokens: int,
        tenant: str,
        priority: int,
        keys: tuple[str, str],
        ttft: float,
        reads: bool = True,
        background: bool = False,
    ) -> None:
        prompt = [*prefix, *rest]
        request = Request(
            uid=self.count,
            tokens=prompt.copy(),
            max_tokens=max_tokens,
            max_len=30,
            ttft=ttft,
            tpot=0.02,
            arrival=self.now,
            stop_ids=stops,
            min_tokens=min_tokens,
            tenant=tenant,
            priority=priority,
            salt=keys[0],
            adapter=keys[1],
            reads_cache=reads,
            background=background,
        )
        self.count += 1
        fits = request.limit - 1 <= self.pool.num_blocks * self.pool.block_size
        try:
            self.scheduler.add(request, self.now)
        except ValueError:
            assert not fits
            return
        assert fits
        self.live[request.uid] = request
        self.prompts[request.uid] = prompt

    @rule(lengths=st.lists(st.tuples(st.integers(1, 15), st.integers(1, 14)), min_size=3, max_size=8))
    def crowd(self, lengths: list[tuple[int, int]]) -> None:
        for length, output in lengths:
            self.arrive((), [0] * length, output, frozenset(), 0, "a", 0, ("", ""), 0.1)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.live)))
        if self.pending is not None:
            event("cancel between schedule and commit")
        assert self.scheduler.abort(uid)
        del self.live[uid]

    @precondition(lambda self: self.pending is None)
    @rule()
    def schedule(self) -> None:
        plan = self.scheduler.schedule(self.now)
        assert bool(plan.slices) == bool(self.live), "live requests, and no progress"
        assert sum(piece.count for piece in plan.slices) <= self.config.max_batch_tokens
        assert len(plan.slices) <= self.config.max_running
        assert plan.predicted >= 0
        if plan.preempted:
            event("preempted")
            assert not {request.uid for request in plan.preempted} & {piece.request.uid for piece in plan.slices}
        self.drawn = self.echo.execute(plan)
        self.pending = plan

    @precondition(lambda self: self.pending is not None)
    @rule()
    def commit(self) -> None:
        assert self.pending is not None
        plan, self.pending = self.pending, None
        seconds = seconds_of(plan.work, self.machine)
        self.now += seconds
        self.scheduler.commit(plan, self.drawn, self.now, seconds)
        for uid, request in list(self.live.items()):
            if request.finish is not None:
                assert request.tokens == expected_tokens(request, self.prompts[uid])
                assert (request.finish == "stop") == (
                    request.tokens[-1] in request.stop_ids and request.generated >= request.min_tokens
                )
                assert request.first_scheduled is not None and 0 <= request.cached < request.prompt_len
                assert request.reads_cache or not request.cached
                del self.live[uid]

    @rule(lengths=st.lists(st.tuples(st.integers(1, 15), st.integers(1, 14)), min_size=3, max_size=8))
    def batch(self, lengths: list[tuple[int, int]]) -> None:
        for length, output in lengths:
            self.arrive((), [1] * length, output, frozenset(), 0, "b", 0, ("", ""), 0.1, background=True)

    @precondition(lambda self: self.pending is None)
    @rule(steps=st.integers(2, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.schedule()
            self.scheduler.check_integrity()
            self.commit()
            self.scheduler.check_integrity()

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            report = self.scheduler.load(self.now)
            assert report.waiting + report.running == len(self.live)
            assert report.backlog >= 0 and (report.waiting_tokens > 0) == (report.backlog > 0)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        if self.pending is not None:
            self.commit()
        for _ in range(20_000):
            if not self.live:
                break
            self.schedule()
            self.commit()
            self.scheduler.check_integrity()
        assert not self.live, "it doesn't end"
        assert not self.scheduler.busy
        assert self.pool.used == 0
        assert self.scheduler.load(self.now).waiting_tokens == 0


TestAnythingGoes = AnythingGoes.TestCase
TestAnythingGoes.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(flags=switches, seed=st.integers(0, 1000))
def test_the_same_arrivals_give_the_same_plans(flags: dict[str, Any], seed: int) -> None:
    def run() -> list[list[tuple[int, int, int, bool]]]:
        config = SchedulerConfig(max_running=4, max_batch_tokens=40, min_prefill_tokens=4, token_budget=20, **flags)
        scheduler: Scheduler[Request] = Scheduler(config, BlockPool(20, 4), StepTime())
        plans, now = [], 0.0
        for step in range(200):
            if step < 60:
                tokens = [(seed + step) % 3] * (1 + (seed * step) % 30)
                scheduler.add(
                    Request(uid=step, tokens=tokens, max_tokens=1 + step % 20, max_len=60, ttft=0.1, tpot=0.02,
                            arrival=now, tenant=str(step % 3)),
                    now,
                )  # fmt: skip
            plan = scheduler.schedule(now)
            seconds = seconds_of(plan.work)
            now += seconds
            scheduler.commit(plan, [9] * sum(piece.samples for piece in plan.slices), now, seconds)
            plans.append([(piece.request.uid, *piece[1:]) for piece in plan.slices])
        return plans

    assert run() == run()


@pytest.mark.parametrize("ahead", [False, True], ids=("in-turn", "ahead"))
@pytest.mark.parametrize("seed", range(40))
def test_a_crowd_on_a_tiny_pool(seed: int, ahead: bool) -> None:
    """Denser than the state machine: always more requests than fit, cancels among them, preemptions for certain.

    ``ahead``: each step is planned while the one before is under way, and some can't be executed at all.
    """
    rng = random.Random(seed)
    size = rng.choice([1, 2, 4])
    blocks = rng.randrange(40, 60) // size + 1
    flags: dict[str, Any] = {name: rng.random() < 0.7 for name in SWITCHES}
    config = SchedulerConfig(max_running=6, max_batch_tokens=40, min_prefill_tokens=2, token_budget=16, **flags)
    scheduler: Scheduler[Request] = Scheduler(config, BlockPool(blocks, size), StepTime())
    echo = Echo(blocks, size)
    requests: list[Request] = []
    prompts: list[list[int]] = []
    now, preemptions, retreats = 0.0, 0, 0
    under_way: tuple[Plan[Request], list[int]] | None = None
    for _ in range(3000):
        if len(requests) < 60 and scheduler.load(now).waiting < 8:
            prompt = [rng.randrange(3)] * rng.randrange(10) + [rng.randrange(2) for _ in range(rng.randrange(1, 14))]
            request = Request(
                uid=len(requests),
                tokens=prompt.copy(),
                max_tokens=rng.randrange(1, 25),
                max_len=40,
                ttft=rng.choice([0.001, 0.1, 5.0]),
                tpot=0.01,
                arrival=now,
                tenant=rng.choice("abc"),
                priority=rng.randrange(2),
                salt=rng.choice(["", "", "s"]),
                background=rng.random() < 0.3,
            )
            requests.append(request)
            prompts.append(prompt)
            scheduler.add(request, now)
        plan = scheduler.schedule(now)
        assert plan.slices or under_way or not scheduler.busy, "live requests, and no progress"
        if not scheduler.busy and not under_way:
            break
        scheduler.check_integrity()
        preemptions += len(plan.preempted)
        fails = ahead and rng.random() < 0.02
        drawn = [] if fails else echo.execute(plan)
        if rng.random() < 0.02:
            scheduler.abort(rng.choice(requests).uid)
        now += seconds_of(plan.work) * rng.uniform(0.8, 1.3)
        if under_way:
            scheduler.commit(*under_way, now, 0.01)
            scheduler.check_integrity()
            under_way = None
        if fails:
            before = scheduler.load(now).preemptions_total
            scheduler.retreat(plan)
            retreats += scheduler.load(now).preemptions_total - before
        elif ahead and plan.slices:
            scheduler.advance(plan)
            under_way = (plan, drawn)
        else:
            scheduler.commit(plan, drawn, now, 0.01)
        scheduler.check_integrity()
    assert not scheduler.busy and len(requests) == 60
    assert scheduler.pool.used == 0
    finished = [(request, prompt) for request, prompt in zip(requests, prompts, strict=True) if request.finish]
    assert len(finished) > 40
    for request, prompt in finished:
        assert request.tokens == expected_tokens(request, prompt)
    assert preemptions + retreats == scheduler.load(now).preemptions_total > 0
    assert all(PENDING not in request.tokens for request in requests)
