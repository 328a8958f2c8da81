"""`scheduler.background`: the foreground doesn't feel background work, and background work ends all the same."""

import random
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.background import Allowance, Tithe
from scheduler.batch import Plan, Request, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.steptime import Coefficients, StepTime, Work
from tests.scheduler.simulation import MACHINE, NO_EOS, Trace, make_request, make_scheduler, seconds_of, simulate

NONE = Work(0, 0, 0, 0)
# An H200 with Llama-3.1-8B, and a model of 0.1B on a few cores.
H200 = Coefficients(step=4.2e-3, token=2.91e-5, context=3.3e-8, pair=1.6e-9, request=1e-6)
CORES = Coefficients(step=5e-3, token=2.5e-4, context=2e-8, pair=2e-9, request=1e-4)


def run_step(scheduler: Scheduler[Request], now: float = 0.0) -> Plan[Request]:
    plan = scheduler.schedule(now)
    scheduler.check_integrity()
    scheduler.commit(plan, [NO_EOS] * sum(piece.samples for piece in plan.slices), now, plan.predicted)
    scheduler.check_integrity()
    return plan


def uids(plan: Plan[Request]) -> list[int]:
    return [piece.request.uid for piece in plan.slices]


def background(uid: int, length: int, output: int = 8, **fields: Any) -> Request:
    return make_request(uid, length, output, background=True, **fields)


# -- how much


def test_a_step_of_background_work_alone_is_short() -> None:
    fast, config = StepTime(H200), SchedulerConfig(background_step=0.01)
    assert Tithe(config, fast).allow(NONE) == pytest.approx(0.01 - 4.2e-3)
    # Where an empty step takes 10 ms, one of 10 ms would do nothing.
    assert Tithe(config, StepTime(MACHINE)).allow(NONE) == pytest.approx(0.01)


def test_the_tithe_is_saved_up_and_spent() -> None:
    tithe = Tithe(SchedulerConfig(background_share=0.05, background_step=0.02), StepTime(MACHINE))
    # 20 ms a step, of which a twentieth is saved: 10 ms after ten steps.
    given = [tithe.allow(Work(100, 0, 0, 1)) for _ in range(10)]
    assert given == [0.0] * 9 + [pytest.approx(0.01)]
    # Unused, it doesn't grow any further; overspent, it takes longer.
    assert tithe.allow(Work(100, 0, 0, 1)) == tithe.allow(Work(100, 0, 0, 1)) == pytest.approx(0.01)
    tithe.spend(0.0195)
    assert [tithe.allow(Work(100, 0, 0, 1)) > 0 for _ in range(20)] == [False] * 19 + [True]


def test_no_share_is_no_tithe() -> None:
    tithe = Tithe(SchedulerConfig(background_share=0.0), StepTime(MACHINE))
    assert not any(tithe.allow(Work(100, 0, 0, 1)) for _ in range(1000))


def decodes(*computed: int) -> dict[int, Request]:
    requests = [make_request(uid, 10) for uid in range(len(computed))]
    for request, count in zip(requests, computed, strict=True):
        request.computed = count
    return {request.uid: request for request in requests}


def test_decodes_take_turns() -> None:
    waiting = decodes(*[9] * 5)
    turns = []
    for _ in range(5):
        allowance = Allowance(SchedulerConfig(), StepTime(MACHINE), NONE, 0.00025)
        turns.append([request.uid for request in allowance.take_turns(waiting)])
        assert allowance.seconds == pytest.approx(2e-4)
    assert turns == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]


def test_a_long_context_is_not_passed_over_by_short_ones() -> None:
    waiting = decodes(9, 90_000, 9)
    machine = StepTime(MACHINE._replace(context=1e-6))
    for turn in ([0], [1], [2, 0], [1]):
        allowance = Allowance(SchedulerConfig(), machine, NONE, 5e-4)
        assert [request.uid for request in allowance.take_turns(waiting)] == turn


@pytest.mark.parametrize(
    ("foreground", "places"),
    [(Work(0, 0, 0, 0), 4), (Work(3, 9, 9, 3), 1), (Work(4, 9, 9, 4), 0), (Work(20, 9, 9, 1), 0)],
)
def test_a_step_has_so_many_places_and_tokens(foreground: Work, places: int) -> None:
    config = SchedulerConfig(max_running=4, max_batch_tokens=20, min_prefill_tokens=8)
    allowance = Allowance(config, StepTime(MACHINE), foreground, 10.0)
    assert len(allowance.take_turns(decodes(*[9] * 5))) == places
    assert allowance.grant(make_request(9, 10)) == 0
    fresh = Allowance(config, StepTime(MACHINE), foreground, 10.0)
    assert fresh.grant(make_request(9, 100)) == (20 - foreground.tokens if places else 0)


def test_prefill_gets_what_the_decodes_leave_but_it_goes_on() -> None:
    allowance = Allowance(SchedulerConfig(), StepTime(MACHINE), NONE, 0.01)
    allowance.take_turns(decodes(*[9] * 40))
    assert allowance.grant(make_request(50, 500)) == 60
    assert allowance.grant(make_request(51, 500)) == 0
    assert Allowance(SchedulerConfig(), StepTime(MACHINE), NONE, 1e-9).grant(make_request(50, 500)) == 1


# -- when


def test_background_work_runs_when_nothing_else_does_in_short_steps() -> None:
    scheduler = make_scheduler(background_step=0.03)
    requests = [background(uid, 500, 20) for uid in range(5)]
    trace = simulate(scheduler, requests, after_step=lambda _: scheduler.check_integrity())
    assert all(request.finish == "length" for request in requests)
    assert max(plan.predicted for plan in trace.plans) <= 0.03 + 1e-9
    assert len(trace.plans) > 15


def test_it_pauses_and_keeps_its_kv_while_the_foreground_is_there() -> None:
    scheduler = make_scheduler(background_share=0.0)
    paused = background(1, 40)
    scheduler.add(paused, 0.0)
    run_step(scheduler)
    held, known = list(paused.blocks), list(paused.tokens)
    scheduler.add(background(2, 40), 0.0)
    scheduler.add(make_request(3, 20, output=4), 0.0)
    for _ in range(4):
        assert uids(run_step(scheduler)) == [3]
    assert paused.blocks == held and paused.tokens == known
    assert uids(run_step(scheduler)) == [1, 2]


def test_it_does_not_take_the_foregrounds_places() -> None:
    scheduler = make_scheduler(max_running=2, background_share=0.0)
    for uid in range(3):
        scheduler.add(background(uid, 10), 0.0)
    run_step(scheduler)
    for uid in range(10, 13):
        scheduler.add(make_request(uid, 10), 0.0)
    assert uids(run_step(scheduler)) == [10, 11]
    report = scheduler.load(0.0)
    assert (report.running, report.waiting) == (4, 2)


def test_its_blocks_are_recalled_before_anybody_else_loses_any() -> None:
    scheduler = make_scheduler(blocks=12, block_size=4, background_share=0.0, background_kv=1.0, lookahead=False)
    first, second = background(1, 13, priority=5), background(2, 13, priority=5)
    low = make_request(3, 13, output=30, arrival=1.0)
    scheduler.add(first, 0.0)
    scheduler.add(second, 0.0)
    run_step(scheduler)
    scheduler.add(low, 0.0)
    assert run_step(scheduler).preempted == []
    scheduler.add(make_request(4, 8, output=1, priority=1), 0.0)
    plan = run_step(scheduler)
    assert plan.preempted == [second] and uids(plan) == [3, 4]
    preempted = [request for _ in range(20) for request in run_step(scheduler).preempted]
    assert preempted == [first]
    simulate(scheduler, [])
    assert first.finish == second.finish == "length" and low.preemptions == 0


def test_it_never_takes_a_block_from_the_foreground() -> None:
    scheduler = make_scheduler(blocks=12, block_size=4, background_share=1.0, lookahead=False)
    waiter = make_request(1, 16, output=28)
    scheduler.add(waiter, 0.0)
    run_step(scheduler)
    rival = background(2, 20, output=20, priority=9)
    scheduler.add(rival, 0.0)
    while waiter.finish is None:
        run_step(scheduler)
    assert waiter.preemptions == 0 < rival.preemptions
    simulate(scheduler, [])
    assert rival.generated == 20


def test_recalled_work_does_not_keep_the_foreground_out() -> None:
    """Who has just lost its KV is not let in again in the same step; that must not hold for the foreground."""
    scheduler = make_scheduler(blocks=10, block_size=4, background_share=0.0, lookahead=False)
    grower = make_request(1, 15, output=9)
    scheduler.add(grower, 0.0)
    run_step(scheduler)
    assert len(grower.blocks) == 4
    scheduler.abort(1)
    scheduler.add(background(2, 23), 0.0)
    run_step(scheduler)
    scheduler.add(make_request(3, 16, output=9), 0.0)
    run_step(scheduler)
    scheduler.add(make_request(4, 8), 0.0)
    plan = run_step(scheduler)
    assert [request.uid for request in plan.preempted] == [2] and uids(plan) == [3, 4]


def test_a_batch_leaves_the_foreground_its_cache() -> None:
    def cached_afterwards(**settings: Any) -> int:
        scheduler = make_scheduler(blocks=200, **settings)
        prompts = [[5000 * chat + i for i in range(400)] for chat in range(4)]
        simulate(scheduler, [make_request(uid, 0, 4, tokens=list(prompt)) for uid, prompt in enumerate(prompts)])
        simulate(scheduler, [background(100 + uid, 300, 20) for uid in range(60)])
        again = [make_request(10 + uid, 0, 4, tokens=list(prompt)) for uid, prompt in enumerate(prompts)]
        simulate(scheduler, again)
        return sum(request.cached for request in again)

    # 384 tokens of each prompt's 400 are found again.
    assert cached_afterwards() == 4 * 384
    assert cached_afterwards(background_kv=1.0) < 4 * 384
    assert cached_afterwards(background=False) == 0


def test_the_switch_makes_it_work_like_any_other() -> None:
    scheduler = make_scheduler(background=False)
    scheduler.add(background(1, 100), 0.0)
    scheduler.add(make_request(2, 100), 0.0)
    assert uids(run_step(scheduler)) == [1, 2]
    assert uids(run_step(scheduler)) == [1, 2]
    assert scheduler.pool.recallable == 0


def test_nobody_waits_behind_it() -> None:
    scheduler = make_scheduler()
    scheduler.add(background(1, 4000), 0.0)
    report = scheduler.load(0.0)
    assert (report.waiting, report.waiting_tokens, report.backlog) == (1, 0, 0.0)
    alone = make_scheduler()
    for other in (scheduler, alone):
        other.add(make_request(2, 3000), 0.0)
    assert scheduler.load(0.0).backlog == alone.load(0.0).backlog > 0
    run_step(scheduler)
    assert scheduler.load(0.0).running == 1 and scheduler.busy


def test_it_rides_along_in_a_busy_foreground() -> None:
    def batch_end(share: float) -> float:
        scheduler = make_scheduler(blocks=300, background_share=share)
        batch = [background(uid, 100, 10) for uid in range(10)]
        stream = [make_request(1000 + i, 50, 40, arrival=0.3 * i) for i in range(80)]
        trace = simulate(scheduler, [*batch, *stream], after_step=lambda _: scheduler.check_integrity())
        assert all(plan.predicted == pytest.approx(seconds_of(plan.work)) for plan in trace.plans)
        return max(trace.tokens[request.uid][-1] for request in batch)

    assert batch_end(0.0) > 24.0
    assert batch_end(0.05) < 12.0


def test_what_rides_along_lengthens_steps_by_its_share() -> None:
    scheduler = make_scheduler(blocks=4000, background_share=0.1)
    batch = [background(uid, 300, 100) for uid in range(200)]
    trace = simulate(scheduler, [make_request(1000, 50, 5000), *batch], until=30.0)
    foreground = sum(0.01 + 1e-4 * sum(piece.count for piece in plan.slices if not piece.request.background)
                     for plan in trace.plans)  # fmt: skip
    assert trace.end / foreground == pytest.approx(1.1, abs=0.01)


def test_the_forecast_does_not_learn_from_it() -> None:
    """A batch of one-token answers says nothing about how long a conversation will need its blocks."""

    def admitted(batch: int, **settings: Any) -> int:
        scheduler = make_scheduler(blocks=60, prefix_cache=False, **settings)
        simulate(scheduler, [background(uid, 5, 1) for uid in range(batch)])
        for uid in range(1000, 1040):
            scheduler.add(make_request(uid, 16, 500), 0.0)
        return len(run_step(scheduler).slices)

    assert admitted(100) == admitted(0) > 0
    assert admitted(100, background=False) > admitted(0)


# -- whatever happens


class Known(StepTime):
    """A machine that is known, and about which nothing is learnt."""

    def observe(self, work: Work, seconds: float) -> None:
        """Time is what the test says."""


arrival = st.tuples(
    st.integers(0, 50),
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from("ab"),
    st.integers(0, 1),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    arrivals=st.lists(arrival, max_size=24),
    blocks=st.integers(12, 40),
    share=st.sampled_from([0.0, 0.1, 3.0]),
    lookahead=st.booleans(),
    order=st.sampled_from(["work", "prefix", "arrival"]),
    cancelled=st.sets(st.integers(0, 23), max_size=4),
)
def test_the_foreground_is_planned_as_if_it_were_alone(
    arrivals: list[tuple[int, int, int, str, int, bool]],
    blocks: int,
    share: float,
    lookahead: bool,
    order: Literal["work", "prefix", "arrival"],
    cancelled: set[int],
) -> None:
    def plans(only_foreground: bool) -> list[Any]:
        config = SchedulerConfig(
            max_running=3, max_batch_tokens=40, min_prefill_tokens=4, quantum=20, prefix_cache=False,
            background_share=share, lookahead=lookahead, order=order,
        )  # fmt: skip
        scheduler: Scheduler[Request] = Scheduler(config, BlockPool(blocks, 4), Known(MACHINE))
        made = []
        for step in range(400):
            now = 0.02 * step
            for uid, (when, length, output, tenant, priority, back) in enumerate(arrivals):
                if when == step and not (only_foreground and back):
                    scheduler.add(
                        make_request(uid, length, output, tenant=tenant, priority=priority, background=back,
                                     arrival=now, ttft=0.1), now,
                    )  # fmt: skip
                if when + 3 == step and uid in cancelled:
                    scheduler.abort(uid)
            plan = run_step(scheduler, now)
            foreground = [(piece.request.uid, *piece[1:]) for piece in plan.slices if not piece.request.background]
            made.append((foreground, [request.uid for request in plan.preempted if not request.background]))
        assert not scheduler.busy, "somebody starves"
        return made

    assert plans(True) == plans(False)


def test_turns_are_fair() -> None:
    """Of decodes that don't all fit a step any more, none gets two tokens more than another."""
    scheduler: Scheduler[Request] = Scheduler(
        SchedulerConfig(background_step=0.02), BlockPool(4000, 16), Known(MACHINE._replace(context=1e-6))
    )
    batch = [background(uid, 10, 1000) for uid in range(60)]
    for request in batch:
        scheduler.add(request, 0.0)
    while min(request.generated for request in batch) < 150:
        run_step(scheduler)
    before = [request.generated for request in batch]
    for step in range(100):
        if step % 7 == 0:
            scheduler.add(make_request(1000 + step, 30, 2), 0.0)
        assert len(run_step(scheduler).slices) < 60
    gained = [request.generated - start for request, start in zip(batch, before, strict=True)]
    assert min(gained) > 10 and max(gained) - min(gained) <= 1


# -- the goal


def stream(rate: float, seconds: float, prompt: int, answer: int) -> list[Request]:
    """Poisson arrivals with exponential lengths."""
    rng = random.Random(7)
    now = rng.expovariate(rate)
    requests: list[Request] = []
    while now < seconds:
        lengths = [1 + int(rng.expovariate(1 / mean)) for mean in (prompt, answer)]
        requests.append(make_request(len(requests), *lengths, arrival=now))
        now += rng.expovariate(rate)
    return requests


def refill(scheduler: Scheduler[Request], prompt: int, answer: int) -> Callable[[Plan[Request]], None]:
    """A batch that never ends: always somebody waits. To be called after each step."""
    rng = random.Random(8)
    count = 10**6

    def after_step(_: Plan[Request]) -> None:
        nonlocal count
        while scheduler.load(0.0).waiting < 40:
            lengths = [1 + int(rng.expovariate(1 / mean)) for mean in (prompt, answer)]
            scheduler.add(background(count, *lengths), 0.0)
            count += 1

    return after_step


def percentile(trace: Trace, requests: list[Request], share: float) -> float:
    """Of the TTFTs."""
    times = sorted(trace.ttft(request) for request in requests if request.uid in trace.tokens)
    return times[int(share * len(times))]


@pytest.mark.parametrize(
    ("machine", "rate", "prompt", "answer"), [(H200, 1.6, 1000, 100), (CORES, 4.0, 200, 30)], ids=["H200", "cores"]
)
def test_a_saturating_batch_moves_the_p99_ttft_by_less_than_a_tenth(
    machine: Coefficients, rate: float, prompt: int, answer: int
) -> None:
    seconds = 150.0

    def run(batch: bool) -> tuple[float, float, float]:
        config = SchedulerConfig()
        scheduler: Scheduler[Request] = Scheduler(config, BlockPool(8000, 16), StepTime(machine))
        requests = stream(rate, seconds, prompt, answer)
        keep_full = refill(scheduler, prompt, answer)
        trace = simulate(scheduler, requests, machine=machine, until=seconds, after_step=keep_full if batch else None)
        busy, done = 0.0, 0
        for plan in trace.plans:
            if any(not piece.request.background for piece in plan.slices):
                busy += seconds_of(plan.work, machine)
            done += sum(piece.count for piece in plan.slices if piece.request.background)
        return percentile(trace, requests, 0.99), busy / seconds, done / seconds

    alone, utilisation, _ = run(False)
    beside, _, tokens = run(True)
    assert 0.45 < utilisation < 0.65
    assert beside < 1.1 * alone
    # Of what the machine computes in the idle time, in steps as long as they like, at least a third.
    assert tokens > (1 - utilisation) * StepTime(machine).prefill_rate / 3
