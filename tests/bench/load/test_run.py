import json
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import penstock
from bench.load import run as run_module
from bench.load import sweep
from bench.load.records import Record, RunInfo
from bench.load.summary import Summary
from bench.load.sweep import Sweep
from tests.bench.load.stub import Plan, Stub

FEW = ("--arrivals", "constant:100", "--requests", "20", "--input", "5", "--output", "4", "--delay-bound", "10s")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "report", lambda folder: None)


def bench(*words: str) -> int:
    return penstock.main(["bench", "run", *words])


def read(folder: Path) -> tuple[RunInfo, list[Record], Summary]:
    first, *lines = (folder / "records.jsonl").read_bytes().splitlines()
    records = [msgspec.json.decode(line, type=Record) for line in lines]
    summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)
    return msgspec.json.decode(first, type=RunInfo), records, summary


def test_a_run_leaves_its_records_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(body: dict[str, Any]) -> Plan:
        return Plan(chunks=(1, 2, 1), says="token_ids", cached=3)

    monkeypatch.setenv("STUB_KEY", "open-sesame")
    more = (
        "--slo",
        "ttft=10s",
        "--header",
        "X-Tenant: acme",
        "--api-key-env",
        "STUB_KEY",
        "--extra-body",
        '{"top_k": 1}',
    )
    with Stub(plan) as stub:
        assert bench(stub.url, *FEW, *more, "--out", str(tmp_path / "a")) == 0
        counts = stub.counts
    info, records, summary = read(tmp_path / "a")
    assert counts.requests == len(records) == summary.offered == 20
    assert summary.output_tokens == counts.tokens == 80
    assert summary.prompt_tokens == counts.prompt_tokens
    assert (summary.goodput, summary.cached_tokens) == (1.0, 60)
    assert (info.model, info.target, info.kind) == ("stub", stub.url, "run")
    assert info.options["header"] == "X-Tenant"
    assert info.duration > 0
    assert info.client_cpu > 0
    assert "\r\nx-tenant: acme\r\nauthorization: Bearer open-sesame\r\n" in counts.heads[0]
    assert {body["top_k"] for body in counts.bodies} == {1}
    assert b"open-sesame" not in (tmp_path / "a" / "records.jsonl").read_bytes()
    assert b"acme" not in (tmp_path / "a" / "records.jsonl").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["records.jsonl", "summary.json", "summary.txt"]
    assert "goodput     100.0% of all offered within ttft=10000ms" in (tmp_path / "a" / "summary.txt").read_text()
    assert "schedule delay" in capsys.readouterr().out


def test_several_processes_share_the_requests(tmp_path: Path) -> None:
    words = ("--arrivals", "constant:20", "--turns", "2", "--requests", "20", "--input", "5", "--output", "4")
    with Stub() as stub:
        assert bench(stub.url, *words, "--delay-bound", "10s", "--processes", "2", "--out", str(tmp_path)) == 0
        counts = stub.counts
    _, records, summary = read(tmp_path)
    assert sorted(record.index for record in records) == list(range(20))
    assert summary.output_tokens == counts.tokens
    assert [record.end for record in records] == sorted(record.end for record in records)
    assert sorted(len(body["messages"]) for body in counts.bodies) == [1] * 10 + [3] * 10


def test_a_closed_loop(tmp_path: Path) -> None:
    with Stub(lambda body: Plan(pace=0.01)) as stub:
        words = ("--arrivals", "closed:3", "--duration", "0.5s", "--input", "5", "--output", "4", "--processes", "8")
        assert bench(stub.url, *words, "--out", str(tmp_path)) == 0
    _, records, summary = read(tmp_path)
    assert records
    assert all(record.at < 0.5 for record in records)
    assert summary.interrupted == 0
    assert max(sum(one.at <= record.at < one.end for one in records) for record in records) <= 3


def test_a_client_that_was_late_has_an_exit_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub:
        assert bench(stub.url, *FEW[:-1], "0.001ms") == 3
    assert "INVALID: the client fell behind its schedule" in capsys.readouterr().out


def test_nothing_was_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub(lambda body: Plan(status=503)) as stub:
        assert bench(stub.url, *FEW) == 1
    out, err = capsys.readouterr()
    assert "20 x refused: HTTP 503: not now" in out
    assert "no request was answered" in err


@pytest.mark.parametrize(
    ("models", "said"),
    [(("a", "b"), "has 2 models: say --model NAME (a, b)"), ((), "has 0 models: say --model NAME (it has none)")],
)
def test_which_model(models: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Stub(models=models) as stub:
        assert bench(stub.url) == 1
        assert said in capsys.readouterr().err
        assert stub.counts.requests == 0


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub:
        url = stub.url
    assert bench(url) == 1
    assert "penstock bench run: no connection to 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["127.0.0.1:8000"], "is no URL of an endpoint"),
        (["http://a", "--slo", "fast"], "'fast' is no bound"),
        (["http://a", "--sweep"], "say which, such as --slo"),
        (["http://a", "--sweep", "--slo", "ttft=1s", "--arrivals", "closed:3"], "say --arrivals constant"),
        (["http://a", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["http://a", "--processes", "0"], "--processes must be at least 1"),
        (["http://a", "--timeout", "0"], "--timeout must be above 0"),
        (["http://a", "--header", "X"], "is no header"),
        (["http://a", "--speed", "2"], "--trace FILE"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*words, "--model", "m") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--extra-body", "{"], "is no JSON"),
        (["--extra-body", "[]"], "is no JSON object"),
        (["--timeout", "soon"], "is no duration"),
        (["--sweep-share", "2"], "is no share"),
    ],
)
def test_what_can_not_be_read(words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench("http://a", *words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_is_not_written_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").touch()
    assert bench("http://a", "--model", "m", "--out", str(tmp_path)) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_sweep_finds_what_the_endpoint_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two at a time, 0.1 s each: 20 a second. At twice that most are late."""
    with Stub(lambda body: Plan(pace=0.025), slots=2) as stub:
        words = ("--sweep", "--slo", "ttft=500ms", "--arrivals", "constant:10", "--duration", "1.5s")
        more = ("--sweep-precision", "1", "--output", "4", "--input", "5", "--delay-bound", "10s")
        assert bench(stub.url, *words, *more, "--out", str(tmp_path)) == 0
    found = msgspec.json.decode((tmp_path / "sweep.json").read_bytes(), type=Sweep)
    assert found.highest in (5, 10, 20)
    assert found.lowest_failing in (10, 20, 40)
    for level in found.levels:
        _, records, summary = read(tmp_path / level.folder)
        assert level.goodput == (summary.good or 0) / (len(records) + summary.interrupted)
        assert level.held == (level.goodput >= 0.95 and not level.stopped)
    assert f"the knee is at {found.highest:g}/s" in capsys.readouterr().out


def test_a_level_whose_queue_grows_is_ended_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stub(lambda body: Plan(pace=0.01), slots=1) as stub:
        words = ("--sweep", "--slo", "ttft=50ms", "--arrivals", "constant:100", "--duration", "60s", "--output", "4")
        more = ("--sweep-precision", "1", "--input", "5", "--delay-bound", "10s")
        monkeypatch.setattr(sweep, "find_knee", lambda ask, first, precision: ([ask(first)], None, first))
        assert bench(stub.url, *words, *more, "--out", str(tmp_path)) == 0
    found = msgspec.json.decode((tmp_path / "sweep.json").read_bytes(), type=Sweep)
    assert found.levels[0].stopped == "the queue grew without bound"
    _, _, summary = read(tmp_path / found.levels[0].folder)
    assert summary.interrupted > 0
    assert "no rate held" in capsys.readouterr().out


def test_ctrl_c_stops_and_reports_what_was(tmp_path: Path) -> None:
    with Stub(lambda body: Plan(pace=0.01)) as stub:
        words = ("--arrivals", "constant:50", "--requests", "100000", "--input", "5", "--output", "4")
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "bench", "run", stub.url, *words, "--out", str(tmp_path / "a")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while len(stub.counts.arrivals) < 30 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    _, records, summary = read(tmp_path / "a")
    assert 0 < len(records) <= stub.counts.requests
    assert summary.offered == len(records)
    assert "offered" in out


def test_the_report_is_made_or_its_want_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    written: list[Path] = []
    fake = types.ModuleType("bench.load.report")
    fake.write = written.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bench.load.report", fake)
    run_module.report(tmp_path)
    assert written == [tmp_path]

    def wanting(folder: Path) -> None:
        raise ModuleNotFoundError("no", name="matplotlib")

    fake.write = wanting  # type: ignore[attr-defined]
    run_module.report(tmp_path)
    assert "no plots, for want of matplotlib" in capsys.readouterr().err


def test_options_are_noted(tmp_path: Path) -> None:
    with Stub() as stub:
        assert bench(stub.url, *FEW, "--extra-body", json.dumps({"n": 1}), "--out", str(tmp_path)) == 0
    info, _, _ = read(tmp_path)
    assert info.options["extra-body"] == '{"n": 1}'
    assert info.options["arrivals"] == "constant:100"
    assert "out" not in info.options
