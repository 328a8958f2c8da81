"""`bench.simulate.validate` and `bench.simulate.measure`: a real engine beside the simulator, in miniature."""

from pathlib import Path
from typing import cast

import pytest

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import fixed
from bench.load.records import Record
from bench.load.workload import Load, Synthetic
from bench.machine import CpuMeter, CpuUse, describe
from bench.simulate.calibrate import Step
from bench.simulate.fleet import Fleet
from bench.simulate.machines import Machine, find
from bench.simulate.measure import Measured, RealWorker
from bench.simulate.policies import RoundRobin
from bench.simulate.validate import (
    TARGETS,
    Figures,
    Line,
    Round,
    Validation,
    _Bench,
    _Case,
    figures_of,
    page,
    tied,
    validate,
    workloads,
)
from bench.simulate.worker import Setting
from engine.config import resolve_model
from scheduler.config import SchedulerConfig

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


def line(name: str, predicted: Figures, *measured: Figures, held_out: bool = False) -> Line:
    return Line(name, held_out, predicted, [Round(figures, 0.01) for figures in measured])


def with_ttft(*seconds: float) -> list[Figures]:
    return [Figures(throughput=100.0, latency=1.0, ttft=ttft, ttft_p90=0.5) for ttft in seconds]


def result(lines: list[Line], ranking: list[Line]) -> Validation:
    return Validation(
        "2026-01-02T03:04+00:00", describe(), {"torch": "2"}, find("h200/llama-3.1-8b"), "a fit", lines, ranking
    )


def test_medians_count_and_the_spread_is_said() -> None:
    one = line("chats", BETTER, BETTER, WORSE, Figures(110.0, 3.0, 0.2, 0.5))
    assert one.measured == Figures(100.0, 1.5, 0.2, 0.5)
    assert one.error("latency") == pytest.approx(-1 / 3) and one.range("latency") == (1.0, 3.0)
    assert "| -33.3% (-33% to +100%) |" in page(result([one], [one]))


def test_a_round_that_others_disturbed_counts_only_alone() -> None:
    quiet, disturbed = Round(BETTER, 0.01), Round(WORSE, 0.4)
    one = Line("chats", False, BETTER, [disturbed, quiet])
    assert (one.measured, one.foreign_cpu, one.range("latency")) == (BETTER, 0.01, (1.0, 1.0))
    assert Line("chats", False, BETTER, [disturbed]).measured == WORSE
    assert "at least 1 are left" in page(result([one], [one]))


def test_the_page_says_what_was_missed_and_where_it_was_measured() -> None:
    good, bad = line("chats", BETTER, BETTER), line("held", BETTER, WORSE, held_out=True)
    text = page(result([good, bad], [good]))
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert "| yes |" in rows[2] and "+0.0%" in rows[2]
    assert "(held out)" in rows[3] and "| no |" in rows[3] and "+11.1%" in rows[3]
    assert "Measured 2026-01-02T03:04+00:00; torch 2" in text and describe().cpu in text


def test_an_order_is_the_same_or_not() -> None:
    (low, high) = with_ttft(0.1, 0.4)
    first, second = line("a", low, low), line("b", high, high)
    assert result([], [second, first]).ranked_alike
    third = line("c", high, *with_ttft(0.05, 0.06))
    missed = result([], [first, third])
    assert not missed.ranked_alike and "another order" in page(missed)


def test_what_noise_does_not_tell_apart_has_no_order() -> None:
    (low, high) = with_ttft(0.1, 0.4)
    one, other = line("a", low, *with_ttft(0.2, 0.3)), line("b", high, *with_ttft(0.1, 0.25))
    assert tied(one, other) and not tied(one, line("c", high, high))
    alike = result([], [one, other])
    assert alike.ranked_alike and "(200 to 300) | b |" in page(alike)


def test_a_disturbed_round_is_measured_again_and_the_quietest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(index=0, at=0.0, outcome="ok", end=1.0, first=0.5, last=1.0, output_tokens=10)
    shares = iter([0.5, 0.2, 0.3, 0.04])
    bench = _Bench(cast(RealWorker, None), lambda text: None)
    monkeypatch.setattr(bench, "_timed", lambda case: (Measured([record], []), next(shares)))
    case = _Case("burst", workloads(0.1, 0)[0], SchedulerConfig())
    bench.serve(case)
    bench.serve(case)
    assert [one.foreign_cpu for one in bench.rounds["burst"]] == [0.2, 0.04]


def test_the_third_workload_has_what_the_others_have_not() -> None:
    burst, closed, open_loop = workloads(0.1, 0, 5.0)
    assert closed.concurrency == 12 and burst.concurrency is None
    assert any(one.blocks for one in open_loop.outlines())
    assert not any(one.blocks for load in (burst, closed) for one in load.outlines())


@pytest.mark.slow
def test_a_real_engine_serves_a_workload_and_logs_its_steps() -> None:
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


class SimulatedWorker(RealWorker):
    """A worker whose steps take what a machine says, in no time."""

    block_size, kv_tokens, max_len = 16, 65_536, 2048

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, load: Load, config: SchedulerConfig, *, by_group: bool = False) -> Measured:
        measured = Measured([], [])
        fleet = Fleet(Setting(machine=self.machine, config=config, max_len=self.max_len), 1, RoundRobin())
        fleet.workers[0].on_step = lambda worker, now, work, seconds: measured.steps.append(Step(*work, seconds))
        fleet.run(load, measured.records.append)
        return measured


def test_a_worker_that_is_as_the_model_says_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With prefixes that only the held-out workload has, and bends."""
    monkeypatch.setattr(CpuMeter, "read", lambda meter: CpuUse(1.0, 0.0))
    machine = Machine(
        name="truth",
        step=1e-3,
        token=6e-5,
        context=1e-7,
        pair=1e-8,
        request=3e-5,
        bends=((16, 4e-5), (256, 2e-5)),
        kv_tokens=65_536,
    )
    said: list[str] = []
    found = validate(SimulatedWorker(machine), said.append, scale=0.5, rounds=2)
    assert [one.held_out for one in found.lines] == [False, False, True] and len(found.ranking) == 4
    assert all(len(one.rounds) == 2 for one in (*found.lines, *found.ranking))
    assert all(abs(one.error(figure)) < 0.02 for one in found.lines for figure in TARGETS)
    assert found.ranked_alike and page(found).count("| yes |") == 3
    assert any("round 2 of 2" in text for text in said)
