"""``penstock log``: each command, its faults, and what it says about them."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import penstock
from flywheel.record import VERSION, Content, Feedback, Record, Timing
from flywheel.user_keys import UserKeys, keys_path
from tests.flywheel.log.driving import record
from tests.flywheel.test_compaction import write

ASKED = b'{"messages":[{"role":"user","content":"Hi"}]}'
SAID = b'[{"role":"assistant","content":"Hello"}]'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with one request of just now, and one of long ago."""
    folder = tmp_path / "log"
    keys = UserKeys(keys_path(folder))
    sealed = keys.seal("ann", {"input": ASKED, "output": SAID})
    now = time.time_ns() // 1000
    write(
        folder,
        Record(VERSION, "req_now", now, "ok", 200, model="chat", variant="stable", timing=Timing(0, 0, 0.02, 0.1, 0.1)),
        record(1, user="ann", content=Content("full", sealed=sealed)),
        Feedback(VERSION, "req_1", now, 1.0, "good"),
    )
    return folder


def run(*words: str | Path) -> int:
    return penstock.main(["log", *map(str, words)])


def test_query(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("query", "SELECT request_id, input FROM records ORDER BY received", "--log", log) == 0
    shown = capsys.readouterr().out
    assert shown.index("req_1") < shown.index("req_now")
    assert '{"messages":[{"role":"user","content":"Hi"}]}' in shown
    assert run("query", "SELECT label, status FROM judged", "--json", "--log", log) == 0
    assert json.loads(capsys.readouterr().out) == {"label": "good", "status": 200}
    assert run("query", "SELECT * FROM range(5)", "--rows", "2", "--log", log) == 0
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT modle FROM records", "model"),
        ("SELECT 1 FROM requests", "Views: records, feedback, and judged"),
        ("SELECT 1 // 'x'", "Could not convert"),
        ("", "Nothing is asked"),
        ("-- how many?", "Nothing is asked"),
    ],
)
def test_what_cannot_be_asked_is_said(log: Path, capsys: pytest.CaptureFixture[str], sql: str, said: str) -> None:
    assert run("query", sql, "--log", log) == 1
    error = capsys.readouterr().err
    assert error.startswith("penstock: error: ")
    assert said in error


@pytest.mark.parametrize(
    "words", [["query", "SELECT 1"], ["summary"], ["tail", "--once"], ["erase", "--user", "x"], ["compact"]]
)
def test_a_folder_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        assert run(*words, "--log", tmp_path / name) == 1
        assert "There is no request log in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize(
    "words",
    [
        *(["query", "SELECT 1", "--rows", count] for count in ("0", "-1", "x")),
        *(["tail", "--once", "--rows", count] for count in ("-3", "1.5")),
        *(["summary", "--hours", count] for count in ("0", "-1", "nan", "inf", "1e12")),
        *(["compact", "--every", count] for count in ("0", "-5", "nan")),
        *(["compact", "--keep-days", count] for count in ("0", "-5")),
        *(["compact", f"--keep-bytes={count}"] for count in ("0", "-5G", "nan", "1e400G")),
    ],
)
def test_no_number_is_taken_for_another(log: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Days to keep that are below zero would be all days to remove."""
    with pytest.raises(SystemExit) as ended:
        run(*words, "--log", log)
    assert ended.value.code == 2
    assert "is no number" in capsys.readouterr().err


def test_summary(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", "--log", log) == 0
    shown = capsys.readouterr().out
    assert "stable" in shown
    assert "20.0 ms / 20.0 ms" in shown
    assert "TTFT p50 / p95" in shown


def test_tail(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tail", "--once", "--rows", "1", "--log", log) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{datetime.now(UTC):%Y-%m-%d}")
    assert line.endswith("20 ms 100 ms req_now")


def test_tail_goes_on(log: Path) -> None:
    command = [sys.executable, "-m", "penstock", "log", "tail", "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline().split()[-1] for _ in range(2)] == ["req_1", "req_now"]
            write(log, record(7))
            assert process.stdout.readline().split()[-1] == "req_7"
        finally:
            process.kill()


def test_export(log: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run("export", "--format", "openai-chat", "--out", tmp_path / "chat.jsonl", "--log", log) == 0
    assert b"1 records; 1 have no conversation to write" in capfdbinary.readouterr().err
    (line,) = (tmp_path / "chat.jsonl").read_text().splitlines()
    assert [one["content"] for one in json.loads(line)["messages"]] == ["Hi", "Hello"]
    assert run("export", "--format", "parquet", "--out", tmp_path / "x.parquet", "--log", log) == 0
    assert (tmp_path / "x.parquet").read_bytes()[:4] == b"PAR1"
    assert run("export", "--format", "parquet", "--out", "-", "--log", log) == 1
    assert run("export", "--format", "jsonl", "--out", tmp_path / "y", "--where", "no such", "--log", log) == 1
    assert b"Columns: penstock log query" in capfdbinary.readouterr().err


def test_compact(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compact", "--log", log) == 0
    assert "2 records and 1 of feedback" in capsys.readouterr().out
    assert run("compact", "--keep-days", "30", "--keep-bytes", "1G", "--log", log) == 0
    shown = capsys.readouterr().out
    assert "0 records" in shown
    assert "1 days went for their age" in shown
    with pytest.raises(SystemExit):
        run("compact", "--keep-bytes", "much", "--log", log)
    assert "50G" in capsys.readouterr().err


def test_erase(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("erase", "--user", "ann", "--log", log) == 0
    assert "can't be read any more" in capsys.readouterr().out
    run("query", "SELECT \"user\", input FROM records WHERE request_id = 'req_1'", "--json", "--log", log)
    assert json.loads(capsys.readouterr().out) == {"user": "", "input": None}
