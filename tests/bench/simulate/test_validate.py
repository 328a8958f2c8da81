"""`bench.simulate.validate` and `bench.simulate.measure`: a real engine beside the simulator, in miniature."""

from pathlib import Path

import pytest

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import fixed
from bench.load.records import Record
from bench.load.workload import Synthetic
from bench.simulate.machines import find
from bench.simulate.validate import Figures, Line, Validation, figures_of, page, workloads

BETTER = Figures(throughput=100.0, latency=1.0, ttft=0.2, ttft_p90=0.5)
WORSE = Figures(throughput=90.0, latency=1.5, ttft=0.4, ttft_p90=0.6)


def test_figures_are_of_all_requests() -> None:
    records = [
        Record(index=0, at=1.0, outcome="ok", end=3.0, first=2.0, last=3.0, output_tokens=10),
        Record(index=1, at=2.0, outcome="ok", end=5.0, first=2.5, last=5.0, output_tokens=30),
    ]
    figures = figures_of(records)
    assert (figures.throughput, figures.latency, figures.ttft) == (10.0, 2.5, 0.75)
    assert figures.ttft_p90 == pytest.approx(0.95)


def test_the_page_says_what_was_missed() -> None:
    good = Line("chats", False, BETTER, BETTER, 0.01)
    bad = Line("held", True, BETTER, WORSE, 0.01)
    text = page(Validation(find("h200/llama-3.1-8b"), "a fit", [good, bad], [good]))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| yes |" in rows[2] and "+0.0%" in rows[2]
    assert "(held out)" in rows[3] and "| no |" in rows[3] and "+11.1%" in rows[3]


def test_an_order_is_the_same_or_not() -> None:
    machine = find("h200/llama-3.1-8b")
    first, second = Line("a", True, BETTER, BETTER, 0.0), Line("b", True, WORSE, WORSE, 0.0)
    assert Validation(machine, "", [], [second, first]).ranked_alike
    third = Line("c", True, WORSE, Figures(1.0, 1.0, 0.1, 0.1), 0.0)
    result = Validation(machine, "", [], [first, third])
    assert not result.ranked_alike and "another order" in page(result)


def test_the_third_workload_has_what_the_others_have_not() -> None:
    burst, closed, open_loop = workloads(0.1, 0, 5.0)
    assert closed.concurrency == 12 and burst.concurrency is None
    assert any(one.blocks for one in open_loop.outlines())
    assert not any(one.blocks for load in (burst, closed) for one in load.outlines())


@pytest.mark.slow
def test_a_real_engine_serves_a_workload_and_logs_its_steps() -> None:
    from bench.simulate.measure import RealWorker
    from engine.config import resolve_model
    from scheduler.config import SchedulerConfig

    worker = RealWorker(Path(resolve_model(None)), kv_tokens=4096)
    load = Synthetic(
        requests=5, arrivals=parse_arrivals("closed:2"), input=fixed(40), output=fixed(4), shared=32, groups=1
    )
    measured = worker.run(load, SchedulerConfig(max_running=8))
    assert sorted(record.index for record in measured.records) == list(range(5))
    assert {record.output_tokens for record in measured.records} == {4}
    assert {record.prompt_tokens for record in measured.records} == {72}
    assert any(record.cached_tokens == 32 for record in measured.records)
    computed = sum(step.tokens for step in measured.steps)
    assert computed == sum(record.prompt_tokens - record.cached_tokens + 3 for record in measured.records)
    assert min(step.seconds for step in measured.steps) > 0
