"""`bench.simulate.steptime`: compiled, it learns what the production code learns, to the last bit."""

import random

from bench.simulate.machines import find
from bench.simulate.steptime import CompiledStepTime
from scheduler.steptime import StepTime, Work


def test_it_learns_the_same() -> None:
    machine, draw = find("h200/llama-3.1-8b"), random.Random(7)
    plain, compiled = StepTime(), CompiledStepTime()
    pinned = 0
    for _ in range(3000):
        decodes, prefill = draw.choice((0, 1, 2, 30)), draw.choice((0, 0, 1, 500, 3000))
        context = decodes * draw.randrange(1, 9000) + prefill
        work = Work(decodes + prefill, context, context + prefill**2 // 2, decodes + (prefill > 0))
        seconds = machine.seconds(work) * draw.lognormvariate(0, 0.1) * (50 if draw.random() < 0.005 else 1)
        plain.observe(work, seconds)
        compiled.observe(work, seconds)
        assert compiled.coefficients == plain.coefficients
        pinned += min(plain.coefficients) == 0.0
    assert compiled.observed == plain.observed
    assert pinned, "the projection had something to do"


def test_it_learns_nothing_from_nothing() -> None:
    compiled = CompiledStepTime()
    before = compiled.coefficients
    compiled.observe(Work(0, 0, 0, 0), 1.0)
    compiled.observe(Work(1, 1, 1, 1), 0.0)
    assert compiled.coefficients == before and compiled.observed == 0
