"""`bench.simulate.calibrate`: a machine is found again in its own steps."""

import random
from pathlib import Path

import pytest

from bench.simulate.calibrate import Step, fit, read_log, write_log
from bench.simulate.machines import Machine
from scheduler.steptime import Work

TRUTH = Machine(
    name="truth",
    step=3e-3,
    token=2e-5,
    context=4e-8,
    pair=3e-9,
    request=5e-5,
    bends=((64.0, 1e-4), (256.0, 3e-5)),
    kv_tokens=1000,
)


def steps_of(machine: Machine, count: int, noise: float, seed: int = 1) -> list[Step]:
    draw = random.Random(seed)
    steps = []
    for _ in range(count):
        decodes, prefill = draw.randrange(1, 40), draw.choice((0, 0, draw.randrange(1, 600)))
        context = sum(draw.randrange(10, 2000) for _ in range(decodes))
        work = Work(decodes + prefill, context + prefill, context + prefill**2 // 2, decodes + (prefill > 0))
        steps.append(Step(*work, seconds=machine.seconds(work) * draw.lognormvariate(0, noise)))
    return steps


def test_a_machine_is_found_again() -> None:
    found = fit(steps_of(TRUTH, 1500, 0.02), "found", 1000)
    assert found.median_error < 0.03 and found.total == pytest.approx(1.0, abs=0.01)
    slopes = dict(found.machine.bends)
    assert slopes[128.0] == pytest.approx(1e-4, rel=0.1) and slopes[256.0] == pytest.approx(3e-5, rel=0.2)
    assert found.machine.jitter == pytest.approx(0.02, rel=0.2)
    for step in steps_of(TRUTH, 50, 0.0, seed=2):
        assert found.machine.seconds(step.work) == pytest.approx(step.seconds, rel=0.03)


def test_no_coefficient_is_negative_where_the_truth_has_none() -> None:
    flat = Machine(name="flat", step=1e-2, token=0.0, context=0.0, pair=0.0, request=0.0, kv_tokens=1)
    machine = fit(steps_of(flat, 300, 0.05), "flat", 1).machine
    coefficients = (machine.step, machine.token, machine.context, machine.pair, machine.request)
    assert min(*coefficients, *(slope for _, slope in machine.bends)) >= 0
    assert machine.seconds(Work(20, 500, 500, 20)) == pytest.approx(1e-2, rel=0.05)


def test_no_bend_lies_beyond_the_longest_step() -> None:
    steps = [step for step in steps_of(TRUTH, 900, 0.02) if step.tokens <= 100]
    assert [bend for bend, _ in fit(steps, "short", 1000).machine.bends] == [4.0, 16.0, 64.0]


def test_the_error_is_of_steps_that_had_no_part() -> None:
    """Noise can't be predicted: the error is the noise's, however many coefficients there are."""
    found = fit(steps_of(TRUTH, 400, 0.3), "noisy", 1000)
    assert 0.1 < found.median_error < 0.4
    assert "held out" in str(found)


def test_a_log_is_read_back(tmp_path: Path) -> None:
    steps = steps_of(TRUTH, 3, 0.1)
    write_log(tmp_path / "log", steps)
    assert read_log(tmp_path / "log") == steps
    with pytest.raises(ValueError, match="3 steps can't be fitted"):
        fit(steps, "few", 1000)
    (tmp_path / "log").write_text('{"tokens": 1}\n')
    with pytest.raises(ValueError, match="log:1: no step"):
        read_log(tmp_path / "log")
