import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.load import compare
from bench.load.comparison import compare as weigh
from bench.load.summary import parse_slo
from tests.bench.load.made import queue, run_info, write_run


def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.run(parser.parse_args(argv))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "before", queue(600, seed=1))
    write_run(folder / "same", queue(600, seed=2))
    write_run(folder / "slow", queue(600, seed=3, pace=0.012))
    return folder


def test_what_is_slower_is_called_slower_and_the_other_way_round(runs: Path) -> None:
    there = weigh(runs / "before", runs / "slow", ["tpot", "itl"])
    back = weigh(runs / "slow", runs / "before", ["tpot", "itl"])
    verdicts = {row.metric: row.verdict for row in there.rows}
    assert list(verdicts) == ["tpot p50", "tpot p90", "tpot p99", "itl p50", "itl p90", "itl p99"]
    assert verdicts["tpot p50"] == verdicts["itl p50"] == verdicts["itl p90"] == "slower"
    assert {row.metric: row.verdict for row in back.rows}["itl p50"] == "faster"
    [row] = [row for row in there.rows if row.metric == "itl p50"]
    assert row.difference.low < 0.002 < row.difference.high
    assert row.difference.value == pytest.approx(row.b.value - row.a.value)
    assert row.a.low < 0.01 < row.a.high


def test_what_is_the_same_is_not_told_apart(runs: Path) -> None:
    found = weigh(runs / "before", runs / "same", slo=parse_slo("ttft=100ms,tpot=20ms"))
    assert {row.verdict for row in found.rows} <= {"no difference shown", "too little data"}
    assert [row.metric for row in found.rows][-4:] == ["requests", "output", "answered", "goodput"]
    assert found.warnings == []


def test_a_comparison_is_the_same_each_time(runs: Path) -> None:
    assert weigh(runs / "before", runs / "same", ["tpot"]) == weigh(runs / "before", runs / "same", ["tpot"])


def test_with_more_figures_asked_each_needs_more(runs: Path) -> None:
    alone, together = (
        weigh(runs / "before", runs / "same", names).rows[0] for names in (["requests"], ["requests", "output"])
    )
    assert alone.p is not None
    assert together.p is not None
    assert together.p > alone.p or together.p == 1


def test_a_run_compared_with_itself_has_no_difference(runs: Path) -> None:
    found = weigh(runs / "before", runs / "before", ["answered", "tpot"])
    assert found.warnings == ["A and B are the same run"]
    assert all(row.difference.value == 0 for row in found.rows)
    assert all(row.verdict in ("no difference shown", "too little data") for row in found.rows)


def test_what_makes_runs_hard_to_compare_is_said(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", queue(100))
    other = run_info(
        kind="simulation", workload="another", seed=7, model="other", machine={"cpu": "B"}, options={"speed": "2"}
    )
    records = queue(100, seed=2, failing=0.3)
    for record in records:
        record.sent = record.at + 0.5
    found = weigh(a, write_run(tmp_path / "b", records, other), ["answered"])
    for said in (
        "the kinds differ: run (A), simulation (B)",
        "the workloads differ: 400 requests, poisson:20 (A), another (B)",
        "the seeds differ",
        "the models differ",
        "the option speed differs: not given (A), 2 (B)",
        "the machines differ in cpu, cores",
        "B is INVALID: the client fell behind its schedule: 1 % of the requests went out 500.0 ms late or more",
        "of its requests unanswered: its latencies are those of the rest",
    ):
        assert any(said in warning for warning in found.warnings), said
    assert found.b.invalid
    assert found.rows[0].verdict == "lower"


def test_what_the_summary_says_counts(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", queue(20)), write_run(tmp_path / "b", [])
    (a / "summary.json").write_text('{"invalid": "it was noisy", "interrupted": 3, "new": []}')
    found = weigh(a, b)
    assert "A is INVALID: it was noisy" in found.warnings
    assert "A was stopped early, and 3 requests under way are left out" in found.warnings
    assert "B has no requests" in found.warnings
    assert all(row.verdict == "too little data" for row in found.rows)


def test_the_table_has_a_row_for_each_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(runs / "before"), str(runs / "slow"), "--slo", "ttft=100ms,tpot=20ms") == 0
    said = capsys.readouterr().out
    for word in ("TTFT p50", "ITL p99", "end to end p90", "share good", "slower", "95% intervals", "Holm"):
        assert word in said
    [line] = [line for line in said.splitlines() if line.startswith("ITL p50")]
    assert line.count("[") == 3
    assert "ms" in line
    assert "+2" in line
    assert max(map(len, said.splitlines())) <= 140


def test_json_has_everything(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(runs / "before"), str(runs / "slow"), "--json", "--metric", "tpot") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["metric"] for row in found["rows"]] == ["tpot p50", "tpot p90", "tpot p99"]
    assert found["rows"][0]["verdict"] == "slower"
    assert found["rows"][0]["a"]["low"] < found["rows"][0]["a"]["value"] < found["rows"][0]["a"]["high"]
    assert found["a"]["requests"] == 600


def test_json_of_a_run_that_has_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_run(tmp_path, []))
    assert command(folder, folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["a"]["value"] is None
    assert command(folder, folder) == 0
    assert "none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--slo", "ttft=soon"], 2, "--slo: 'soon' is no duration"),
        (["--metric", "goodput"], 2, "--metric goodput needs --slo BOUNDS"),
        ([], 1, "nowhere/records.jsonl"),
    ],
)
def test_what_can_not_be_compared_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, said: str
) -> None:
    run = str(write_run(tmp_path / "run", queue(5)))
    assert command(run, str(tmp_path / "nowhere" / "records.jsonl"), *argv) == status
    assert said in capsys.readouterr().err


def test_the_command_is_cheap_to_import() -> None:
    heavy = "import sys, bench.load.compare; print({'numpy', 'matplotlib', 'rich', 'msgspec'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "set()\n"
