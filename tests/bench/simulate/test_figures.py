"""`bench.simulate.figures`: knees, tenants and their tables, on a machine where they are quick to find."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.load.records import Record
from bench.load.workload import Load
from bench.simulate.figures import (
    Comparison,
    Crowd,
    MeasuredJudge,
    SimulatedJudge,
    Source,
    compare,
    page,
    point_of,
    run_case,
    sources,
)
from bench.simulate.machines import find
from bench.simulate.measure import Measured, RealWorker
from scheduler.config import SchedulerConfig
from tests.bench.simulate.loads import MACHINE, chats

JUDGE = SimulatedJudge(machine=MACHINE, block_size=16, max_tokens=64)


def test_a_request_that_failed_counts_against_goodput() -> None:
    good = Record(index=0, at=1.0, outcome="ok", end=3.0, first=1.9, last=2.8, output_tokens=21)
    slow = Record(index=1, at=2.0, outcome="ok", end=5.0, first=2.1, last=4.0, output_tokens=21)
    failed = Record(index=2, at=4.0, outcome="failed", end=4.0)
    point = point_of([good, slow, failed], 0, 1.0)
    assert (point.goodput, point.kept) == (0.25, 1 / 3)
    assert point.ttft_p99 == pytest.approx(0.9, rel=0.01) and point.tpot_p99 == pytest.approx(0.095, rel=0.01)


def test_the_greedy_tenant_sends_what_it_should() -> None:
    crowd = Crowd(base=chats(requests=4000), rates=(20.0, 2.0, 2.0), seconds=50.0)
    outlines = list(crowd.outlines())
    counts = {name: sum(one.group == name for one in outlines) for name in ("tenant 0", "tenant 1", "tenant 2")}
    assert 850 < counts["tenant 0"] < 1150 and 70 < counts["tenant 1"] < 130
    times = [one.at or 0.0 for one in outlines]
    assert times == sorted(times) and [one.index for one in outlines] == list(range(len(outlines)))


def test_a_case_has_a_knee_and_a_table() -> None:
    said: list[str] = []
    case = run_case(JUDGE, Source("small", None, 100, 2.0), said.append, ["ours", "fcfs-2048"])
    ours, other = case.rows
    assert ours.knee.goodput == max(point.goodput for point in ours.points if point.keeps_up)
    assert ours.equal.rate == other.knee.rate == other.equal.rate
    assert [one.setting for one in case.tenancy] == ["ours", "fcfs-2048"]
    assert len(said) == 4
    text = page(Comparison("today", {"penstock": "1"}, JUDGE.where, [case]))
    assert "| ours |" in text and "| fcfs-2048 |" in text and "10 times its share" in text


class Rehearsed(RealWorker):
    """Serves each workload in the simulator, as if it were here."""

    def __init__(self) -> None:
        self.tenants: list[bool] = []

    def run(self, load: Load, config: SchedulerConfig, *, by_group: bool = False) -> Measured:
        self.tenants.append(by_group)
        served = replace(JUDGE, config=config).serve("ours", load, by_group)
        return Measured(served.records, [], served.preemptions)


def test_the_same_figures_come_from_a_real_worker() -> None:
    worker = Rehearsed()
    judge = MeasuredJudge(worker=worker, model="a model", factor=1.12, nearer=JUDGE.nearer)
    source = Source("small", None, 60, 4.0)
    measured = compare(judge, [source], lambda text: None, ["ours"])
    simulated = compare(JUDGE, [source], lambda text: None, ["ours"])
    assert measured.cases[0].rows == simulated.cases[0].rows
    assert worker.tenants == sorted(worker.tenants) and {*worker.tenants} == {False, True}
    assert "measured: a model on" in page(measured) and "simulated: " in page(simulated)


def test_fairness_protects_the_modest() -> None:
    source = Source("small", None, 150, 4.0)
    ours, unfair = (JUDGE.tenancy(name, source, 2.0) for name in ("ours", "without fairness"))
    assert ours.ratio < unfair.ratio / 2
    assert ours.service_gap < unfair.service_gap / 2


def test_sources_are_traces_or_made_up(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}\n' * 3)
    (source,) = sources([path], None, MACHINE)
    assert (source.name, source.requests) == ("trace", 3)
    # 0.1 s of prefill, and five times a sixteenth of a step (so many fit the cache).
    assert source.first_rate == pytest.approx(0.5 / (0.1 + 5 * 0.01 / 15.9), rel=0.01)
    assert [source.name for source in sources([], 10, MACHINE)] == ["chat (synthetic)"]


def test_the_judge_is_by_default_one_gpu() -> None:
    judge = SimulatedJudge(machine=find("h200/llama-3.1-8b"))
    assert (judge.config.ttft, judge.config.tpot) == (1.0, 0.05)
