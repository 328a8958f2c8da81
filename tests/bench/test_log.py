"""`bench.log`: all is measured and in the table, and nothing that was acknowledged is lost in a kill."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import log
from bench.log_kills import Kills
from bench.machine import describe

PROGRAM = """
import json, sys
from pathlib import Path
from bench.log_kills import run_kills
from flywheel.compaction import compact
from flywheel.query import connect

folder = Path(sys.argv[1])

def read():
    with connect(folder) as database:
        return [row[0] for row in database.execute("SELECT request_id FROM records").fetchall()]

def between(number):
    if number % 4 == 3:
        compact(folder)

found = run_kills(folder, 8, read, durability=sys.argv[2], seed=int(sys.argv[3]), between=between)
print(json.dumps([found.kills, found.acknowledged, found.records, found.aborted, found.missing, found.twice]))
"""


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path, durability: str) -> None:
    """In a process of its own, because it forks. `python -m bench.log --kills 1000` does it more often."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), durability, "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kills, acknowledged, records, aborted, missing, twice = json.loads(done.stdout.splitlines()[-1])
    assert (missing, twice) == ([], [])
    assert kills == 8
    assert acknowledged > 8
    assert aborted > 0
    assert records >= acknowledged + aborted


def test_everything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "log.json"
    common = ["bench.log", "--folder", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*common, "--append", "300"])
    log.main()
    monkeypatch.setattr(sys, "argv", [*common, "--compact", "200", "--text", "300"])
    log.main()
    result = log.known(out)
    assert result is not None
    assert [one.what for one in result.appending] == ["durability: os", "durability: disk"]
    assert all(one.records == 300 and one.rate > 0 and one.p50 <= one.p99 <= one.worst for one in result.appending)
    assert result.appending[1].probe is not None
    (compacting,) = result.compacting
    assert (compacting.records, compacting.files) == (200, 3)
    assert compacting.table > 0
    text = capsys.readouterr().out
    assert "| durability: disk (300) |" in text
    assert "| 200 | " in text
    assert out.with_suffix(".md").read_text() in text


def test_kills_are_in_the_table() -> None:
    result = log.Result("", describe(), {}, kills={"os": Kills(3, 20, 25, 4, [], ["x"])})
    assert "| durability: os | 3 | 20 | 25 | 4 | 0 | 1 |" in log.page(result)
