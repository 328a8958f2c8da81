"""`python -m bench.routers`: workers, a gateway and a client, all of them processes, on a trace of a few requests."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.load.records import Record
from bench.routers import sides
from bench.routers.__main__ import main
from bench.routers.figures import Judging, Run, Use, judge
from bench.routers.fleet import FleetError, Process, free_ports
from bench.routers.report import Results, Setting, markdown
from bench.routers.sides import Ports, Side, Upstream

UPSTREAMS = [Upstream(f"http://127.0.0.1:{port}", f"tcp://:{port}1", f"tcp://:{port}2") for port in (81, 82)]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prompts with one of two beginnings, in a tenth of a minute."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    rows = [
        {
            "timestamp": 150 * number,
            "input_length": 1600,
            "output_length": 8,
            "hash_ids": [first := draw.choice([0, 10]), first + 1, 100 + 2 * number, 101 + 2 * number],
        }
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(trace: Path, out: Path) -> list[str]:
    told = ["--trace", str(trace), "--trace-speed", "8", "--speed", "8", "--workers", "2", "--kv-tokens", "50000"]
    return [*told, "--policy", "round-robin", "--rounds", "2", "--out", str(out)]


def test_a_measurement_can_be_resumed_and_ends_in_a_table(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "routers.json"
    assert main([*options(trace, out), "--most-runs", "1"]) == 0
    results = msgspec.json.decode(out.read_bytes(), type=Results)
    (run,) = results.runs
    assert (run.side, run.round, run.answers.offered, run.answers.errors) == ("penstock round-robin", 1, 36, {})
    # In turn, each of two workers sees each of two beginnings, 1,024 of 1,600 tokens, for the first time once.
    assert 0.4 < run.answers.hit_rate < 0.7
    assert 1 <= run.use.imbalance < 1.5
    assert 0 < run.answers.ttft_p50 <= run.answers.ttft_p99
    assert 0 < run.use.router_request < 0.5
    assert run.use.router_memory > 2**24
    assert run.use.workers_cpu > 0 and run.use.client_cpu > 0

    assert main([*options(trace, out), "--resume", "--policy", "round-robin", "--rounds", "1"]) == 0
    assert msgspec.json.decode(out.read_bytes(), type=Results) == results, "nothing was left to do"
    assert "| penstock round-robin | 1 |" in capsys.readouterr().out
    assert out.with_suffix(".md").read_text() == markdown(results)

    assert main([*options(trace, out), "--resume", "--trace-speed", "9"]) == 1
    assert "measured with other options" in capsys.readouterr().err


def test_a_run_on_a_machine_that_was_too_slow_is_not_kept(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = judge([Record(index=0, at=0.0, outcome="ok", end=1.0, first=0.5, prompt_tokens=9)], Judging())
    use: dict[str, Any] = dict.fromkeys(Use.__struct_fields__, 0)

    def measure(args: object, side: Side, version: str, number: int, setting: Setting) -> Run:
        lost = Use(**{**use, "lost": 0.001 if number == 1 else 0.03})
        return Run(side=side.name, version=version, round=number, date="today", answers=answers, use=lost)

    monkeypatch.setattr("bench.routers.__main__._measure", measure)
    out = tmp_path / "routers.json"
    assert main(options(trace, out)) == 1
    assert "too slow, by 3.0% of the time: this run isn't kept" in capsys.readouterr().err
    assert [run.round for run in msgspec.json.decode(out.read_bytes(), type=Results).runs] == [1]


def test_others_are_started_with_the_same_workers() -> None:
    command = sides.sglang_router("python", "cache_aware").command(UPSTREAMS, Ports(90, 91))
    assert " --worker-urls http://127.0.0.1:81 http://127.0.0.1:82" in " ".join(command)
    assert " --port 90 " in " ".join(command)
    command = sides.vllm_router("python", "kv_aware", "simulated").command(UPSTREAMS, Ports(90, 91))
    assert "--kv-event-source http://127.0.0.1:82=tcp://:821" in " ".join(command)
    assert "--kv-event-source" not in sides.vllm_router("python", "cache_aware").command(UPSTREAMS, Ports(90, 91))
    command = sides.penstock("held").command(UPSTREAMS, Ports(90, 91))
    assert command[-6:] == ["--placement", "held", "--upstream", UPSTREAMS[0].url, "--upstream", UPSTREAMS[1].url]


def test_a_router_that_is_not_installed(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = options(trace, tmp_path / "routers.json")
    assert main([*arguments, "--sglang-router", "/no/python"]) == 1
    assert "/no/python is no Python: say where sglang-router is installed" in capsys.readouterr().err


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "echo no such model; exit 3"], tmp_path / "log")
    with pytest.raises(FleetError, match=r"(?s)ended with status 3:.*no such model"):
        process.wait_for(lambda: False)
    process.end()


def test_a_process_is_ended_with_its_children(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "sleep 60 & sleep 60"], tmp_path / "log")
    process.wait_for(lambda: process.used().memory > 0)
    process.end()
    assert process.used().memory == 0


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20
