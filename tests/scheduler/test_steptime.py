"""`scheduler.steptime`: it finds known coefficients under noise, and its predictions can be turned round."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.steptime import PRIOR, Coefficients, StepTime, Work
from tests.scheduler.simulation import seconds_of

MACHINES = {
    "H200, 8B": Coefficients(4.2e-3, 2.9e-5, 3.3e-8, 2e-10, 1e-5),
    "two cores, 0.1B": Coefficients(2e-3, 1.2e-4, 1e-7, 1e-8, 5e-5),
    "two cores, 7B": Coefficients(0.3, 1.6e-2, 1e-6, 1e-7, 1e-3),
}
TYPICAL = (Work(1, 1000, 1000, 1), Work(64, 64_000, 64_000, 64), Work(2064, 66_000, 2_064_000, 65))


def random_step(rng: random.Random) -> Work:
    decodes = rng.randrange(1, 100)
    context = sum(rng.randrange(10, 4000) for _ in range(decodes))
    tokens, pairs, requests = decodes, context, decodes
    if rng.random() < 0.5:
        count, start = rng.randrange(1, 2000), rng.randrange(4000)
        tokens += count
        context += start + count
        pairs += count * start + count * (count + 1) // 2
        requests += 1
    return Work(tokens, context, pairs, requests)


def learn(model: StepTime, machine: Coefficients, steps: int, rng: random.Random, stalls: float = 0.0) -> None:
    for _ in range(steps):
        work = random_step(rng)
        seconds = seconds_of(work, machine) * max(rng.gauss(1, 0.05), 0.5)
        if rng.random() < stalls:
            seconds *= 20
        model.observe(work, seconds)


def worst_error(model: StepTime, machine: Coefficients) -> float:
    return max(abs(model.predict(work) / seconds_of(work, machine) - 1) for work in TYPICAL)


@pytest.mark.parametrize("name", MACHINES)
def test_finds_the_coefficients_under_noise(name: str) -> None:
    model = StepTime()
    learn(model, MACHINES[name], 1500, random.Random(1))
    assert worst_error(model, MACHINES[name]) < 0.06
    learnt, true = model.coefficients, MACHINES[name]
    assert learnt.step == pytest.approx(true.step, rel=0.15)
    assert learnt.token == pytest.approx(true.token, rel=0.05)
    assert model.observed == 1500


@pytest.mark.parametrize("name", MACHINES)
def test_stalls_do_not_mislead_it(name: str) -> None:
    model = StepTime()
    learn(model, MACHINES[name], 1500, random.Random(2), stalls=0.03)
    assert worst_error(model, MACHINES[name]) < 0.08


@pytest.mark.parametrize("name", MACHINES)
def test_a_few_steps_are_enough_to_be_useful(name: str) -> None:
    model = StepTime()
    learn(model, MACHINES[name], 100, random.Random(3))
    assert worst_error(model, MACHINES[name]) < 0.3


def test_follows_a_machine_that_becomes_slower() -> None:
    model, rng = StepTime(), random.Random(4)
    fast = MACHINES["two cores, 0.1B"]
    slow = Coefficients(*(2 * value for value in fast))
    learn(model, fast, 500, rng)
    learn(model, slow, 1500, rng)
    assert worst_error(model, slow) < 0.1


def test_a_long_monotony_does_not_spoil_it() -> None:
    model, rng = StepTime(), random.Random(5)
    machine = MACHINES["two cores, 0.1B"]
    learn(model, machine, 500, rng)
    for i in range(5000):
        work = Work(1, 100 + i % 7, 100 + i % 7, 1)
        model.observe(work, seconds_of(work, machine) * rng.gauss(1, 0.05))
    assert model.predict(TYPICAL[0]) == pytest.approx(seconds_of(TYPICAL[0], machine), rel=0.1)
    assert all(value >= 0 for value in model.coefficients)
    learn(model, machine, 100, rng)
    assert worst_error(model, machine) < 0.15


@pytest.mark.parametrize("name", MACHINES)
def test_it_stays_sound_for_as_long_as_a_worker_serves(name: str) -> None:
    """Rounding errors must not build up: after 15,000 steps they once made predictions of 10**40 seconds."""
    model, rng = StepTime(), random.Random(6)
    machine = MACHINES[name]
    for _ in range(3):
        learn(model, machine, 5000, rng)
        for i in range(1000):
            work = Work(1, 100 + i % 7, 100 + i % 7, 1)
            model.observe(work, seconds_of(work, machine) * rng.gauss(1, 0.05))
        assert worst_error(model, machine) < 0.06


def test_prior_before_data() -> None:
    model = StepTime()
    assert model.coefficients == PRIOR
    assert 1_000 < model.prefill_rate < 100_000
    assert 100 < model.tokens_within(0.25, 0) < 10_000


def test_meaningless_steps_teach_nothing() -> None:
    model = StepTime()
    model.observe(Work(0, 0, 0, 0), 1.0)
    model.observe(Work(1, 1, 1, 1), 0.0)
    assert model.coefficients == PRIOR and model.observed == 0


@pytest.mark.parametrize("forgetting", [0.0, 1.1, float("nan")])
def test_refuses_a_forgetting_that_makes_no_sense(forgetting: float) -> None:
    with pytest.raises(ValueError, match="forgetting"):
        StepTime(forgetting=forgetting)


@pytest.mark.parametrize("prior", [PRIOR._replace(pair=-1.0), PRIOR._replace(token=0.0)])
def test_refuses_a_prior_that_makes_no_sense(prior: Coefficients) -> None:
    with pytest.raises(ValueError, match="no coefficient may be negative"):
        StepTime(prior)


coefficient = st.floats(0, 1e-3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    machine=st.tuples(coefficient, st.floats(1e-9, 1e-2), coefficient, st.floats(0, 1e-6), coefficient),
    seconds=st.floats(-1, 10),
    start=st.integers(0, 200_000),
)
def test_tokens_within_is_the_largest_slice_that_fits(
    machine: tuple[float, float, float, float, float], seconds: float, start: int
) -> None:
    model = StepTime(Coefficients(*machine))
    count = model.tokens_within(seconds, start)
    assert count >= 0
    if count:
        assert model.slice_seconds(start, count) <= seconds * (1 + 1e-6) + 1e-9
    if count < 2**31:
        assert model.slice_seconds(start, count + 2) > seconds * (1 - 1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(1, 8192),
            st.integers(1, 10**6),
            st.integers(1, 10**8),
            st.integers(1, 256),
            st.floats(1e-6, 1e3),
        ),
        max_size=60,
    )
)
def test_predictions_are_never_negative_whatever_was_measured(
    steps: list[tuple[int, int, int, int, float]],
) -> None:
    model = StepTime()
    for tokens, context, pairs, requests, seconds in steps:
        model.observe(Work(tokens, context, pairs, requests), seconds)
        assert min(model.coefficients) >= 0
        assert model.tokens_within(0.1, 1000) >= 0


def test_a_slice_lengthens_a_step_by_what_it_is_predicted_to() -> None:
    model = StepTime(MACHINES["H200, 8B"])
    alone = Work(64, 64_000, 64_000, 64)
    start, count = 1000, 500
    together = Work(564, 64_000 + 1500, 64_000 + count * start + count * (count + 1) // 2, 65)
    assert model.predict(together) - model.predict(alone) == pytest.approx(model.slice_seconds(start, count))
