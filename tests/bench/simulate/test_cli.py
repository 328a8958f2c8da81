"""`bench.simulate.cli`: options in, files out, the same bytes each time."""

import argparse
import hashlib
from pathlib import Path

import msgspec
import pytest

from bench.load.records import RunInfo
from bench.simulate import cli
from bench.simulate.calibrate import Step, write_log
from bench.simulate.machines import find

SMALL = ["--arrivals", "poisson:6", "--requests", "40", "--input", "300", "--output", "8", "--shared-prefix", "256"]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(words))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_runs_are_the_same_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = ["--workers", "2", "--placement", "prefix-hash", "--jitter", "0.1", "--groups", "4", "--tenants", "groups"]
    for name in ("one", "two"):
        assert run(*SMALL, *fleet, "--slo", "ttft=1s,tpot=50ms", "--out", str(tmp_path / name)) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    written = set(digests(tmp_path / "one"))
    assert written >= {"records.jsonl", "series.json", "summary.json", "summary.txt", "report.html", "caches.png"}
    out = capsys.readouterr().out
    assert "goodput" in out and "preemptions" in out and "fairness" in out
    assert run(*SMALL, *fleet, "--seed", "1", "--out", str(tmp_path / "three")) == 0
    assert digests(tmp_path / "three")["records.jsonl"] != digests(tmp_path / "one")["records.jsonl"]


def test_the_files_are_a_runs(tmp_path: Path) -> None:
    assert run(*SMALL, "--out", str(tmp_path / "run")) == 0
    lines = (tmp_path / "run" / "records.jsonl").read_bytes().splitlines()
    info = msgspec.json.decode(lines[0], type=RunInfo)
    assert info.kind == "simulation" and info.duration > 0 and len(lines) == 41
    assert info.machine["name"] == "h200/llama-3.1-8b"
    summary = msgspec.json.decode((tmp_path / "run" / "summary.json").read_bytes())
    assert summary["simulation"]["workers"] == 1 and summary["offered"] == 40
    assert run(*SMALL, "--out", str(tmp_path / "run")) == 2, "a folder with something in it is left alone"


def test_placements_are_compared_in_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = tmp_path / "runs.jsonl", tmp_path / "page.md"
    command = [
        "--placement-figures", "--workloads", "documents", "--caches", "400000", "--workers", "2", "--requests", "60",
        "--loads", "0.5", "--policies", "held,round robin", "--runs", str(runs), "--out", str(out),
    ]  # fmt: skip
    assert run(*command, "--seconds", "1e-9") == 0
    assert "there is more to do" in capsys.readouterr().err and not runs.exists()
    assert run(*command) == 0
    assert len(runs.read_bytes().splitlines()) == 3
    assert "| **held** | 0.5 |" in out.read_text() and out.read_text() in capsys.readouterr().out
    assert run(*command[:-4], "--policies", "best") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--machine", "h300/x"], "known machines"),
        (["--scheduling", "x"], "none of ours"),
        (["--set", "max_running=0"], "at least 1"),
        (["--kv-tokens", "8"], "holds no block of 16"),
        (["--slo", "x"], "no bound"),
        (["--calibrate", "missing.jsonl"], "missing.jsonl"),
        (["--spread"], "--spread is for --trace"),
    ],
)
def test_faults_are_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--workers", "0"], ["--interval", "x"], ["--validate", "--figures"]])
def test_usage_is_checked(words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(*words)
    assert error.value.code == 2


def test_a_log_becomes_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step(n, 50 * n, 50 * n, n, seconds=0.01 + 1e-3 * n) for n in range(1, 101)]
    write_log(tmp_path / "steps.jsonl", steps)
    mine = tmp_path / "mine.json"
    assert run("--calibrate", str(tmp_path / "steps.jsonl"), "--kv-tokens", "5000", "--out", str(mine)) == 0
    assert "held out" in capsys.readouterr().out
    assert find(str(mine)).kv_tokens == 5000
    assert run(*SMALL, "--machine", str(mine)) == 0
