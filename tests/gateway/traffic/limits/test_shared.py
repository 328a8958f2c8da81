"""Limits of several processes of one host: real processes, of which some are killed."""

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.traffic.limits import shared
from gateway.traffic.limits.contract import Granted, Refused
from gateway.traffic.limits.limit import Account, Limits
from gateway.traffic.limits.shared import LimitsError, SharedStore
from tests.gateway.traffic.limits.shared_process import ACCOUNT, FLOODED
from tests.gateway.traffic.limits.test_counting import never


class Process:
    """A `shared_process` that can be talked to."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.gateway.traffic.limits.shared_process", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"

    def say(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self) -> str:
        self.say("ask")
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def one() -> Process:
        started.append(Process(tmp_path))
        return started[-1]

    yield one
    for process in started:
        process.kill()


def test_processes_share_a_limit_and_a_killed_one_leaves_what_it_held(
    start: Callable[[], Process], tmp_path: Path
) -> None:
    one, other = start(), start()
    assert [one.ask(), one.ask(), other.ask()] == ["granted"] * 3
    assert [one.ask(), other.ask()] == ["refused"] * 2
    one.kill()
    assert [other.ask(), other.ask(), other.ask()] == ["granted", "granted", "refused"]
    other.say("settle")
    assert other.answer() == "settled"
    with_us = SharedStore(tmp_path)
    granted = with_us.reserve((ACCOUNT,), 1, never)
    assert isinstance(granted, Granted)
    assert other.ask() == "refused"
    with_us.close()
    assert other.ask() == "granted"


def test_processes_that_ask_at_the_same_time_get_no_more_than_there_is(start: Callable[[], Process]) -> None:
    processes = [start() for _ in range(3)]
    for process in processes:
        process.say("flood 1")
    granted = sum(int(process.answer()) for process in processes)
    amount = FLOODED.limits.requests.amount if FLOODED.limits.requests is not None else 0
    assert amount <= granted <= amount * (1 + 3 / 60)  # they began and ended within three seconds, if not within one


def test_processes_killed_in_the_middle_of_it_leave_the_table_right(
    start: Callable[[], Process], tmp_path: Path
) -> None:
    processes = [start() for _ in range(2)]
    for process in processes:
        process.say("flood 60")
    store = SharedStore(tmp_path)
    for process in processes:
        process.kill()
    free = Account(FLOODED.name, Limits(concurrent=1, tokens=FLOODED.limits.tokens))
    verdict = store.reserve((free,), 10, never)
    assert isinstance(verdict, Granted)
    assert verdict.tokens is not None
    assert verdict.tokens.limit - 500 * 5 * 2 <= verdict.tokens.remaining <= verdict.tokens.limit - 10
    store.close()


def test_a_process_that_was_stopped_inside_stops_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SharedStore(tmp_path)
    account = Account("team-a", Limits(concurrent=200))
    with (tmp_path / "table-1").open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        for _ in range(100):
            assert isinstance(store.reserve((account,), 1, never), Granted)
        assert len(caplog.records) == 1, "they waited one after the other"
        fcntl.flock(stopped, fcntl.LOCK_UN)
        for _ in range(100):
            assert isinstance(store.reserve((account,), 1, never), Granted)
        fcntl.flock(stopped, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is given back each time
    assert isinstance(store.reserve((account,), 1, never), Refused)
    store.close()


def test_budgets_outlive_a_restart(tmp_path: Path) -> None:
    budget = Account("team-a", Limits(tokens_per_day=100))
    for expected in (Granted, Granted, Refused):
        store = SharedStore(tmp_path, lambda: 1_800_000_000.0)
        verdict = store.reserve((budget,), 50, never)
        assert isinstance(verdict, expected)
        if isinstance(verdict, Granted):
            verdict.reservation.settle(45 if expected is Granted else 0)
        store.close()
    assert isinstance(verdict, Refused)
    assert verdict.used == 90


def test_what_ends_after_the_store_was_closed_does_no_harm(tmp_path: Path) -> None:
    store = SharedStore(tmp_path)
    verdict = store.reserve((Account("a", Limits(concurrent=1)),), 1, never)
    assert isinstance(verdict, Granted)
    store.close()
    verdict.reservation.settle(1)


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LimitsError, match=r"limits can't be counted in .*file/limits: Not a directory"):
        SharedStore(tmp_path / "file" / "limits")


def test_there_are_so_many_places_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_HOLDERS", 1)
    monkeypatch.setattr(shared, "_ROWS", 2)
    store = SharedStore(tmp_path)
    with pytest.raises(LimitsError, match="no place left"):
        SharedStore(tmp_path)
    for name in ("a", "b", "a"):
        store.reserve((Account(name, Limits(concurrent=9)),), 1, never)
    with pytest.raises(LimitsError, match="no room"):
        store.reserve((Account("c", Limits(concurrent=9)),), 1, never)
    store.close()
