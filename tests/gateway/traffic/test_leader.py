"""What followers tell the leader arrives in order and without holes, or its connection ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway.traffic import leader
from gateway.traffic.leader import Followers, Report, ToLeader
from gateway.traffic.rollout.blocks import Outcome
from gateway.traffic.rollout.reports import Began, Came, Ended
from tests.gateway.harness import run
from tests.gateway.lane.harness import until

EVERYTHING: list[Report] = [
    Came(1, "chat", "x 5", True, "ada"),
    Began(1, "chat", 0.25),
    Ended(1, "chat", Outcome({"ttft": 0.25}, frozenset({"error"}), frozenset({"refusal"})), "req-1"),
]


class Heard:
    """A leader, and what it has heard."""

    def __init__(self, path: Path) -> None:
        self.reports: list[tuple[int, Report]] = []
        self.gone: list[int] = []
        self.followers = Followers(path, lambda number, report: self.reports.append((number, report)), self.gone.append)


@contextlib.asynccontextmanager
async def running(one: Followers | ToLeader) -> AsyncIterator[None]:
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def came(uid: int) -> Came:
    return Came(uid, "chat", "x 5", False, "")


def test_all_that_is_told_is_heard_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard = Heard(tmp_path / "l")
        one, other = ToLeader(tmp_path / "l"), ToLeader(tmp_path / "l")
        async with running(heard.followers), running(one), running(other):
            for report in EVERYTHING:
                one.tell(report)
            await until(lambda: len(heard.reports) == len(EVERYTHING))
            assert heard.reports == [(1, report) for report in EVERYTHING]
            for uid in range(3000):
                one.tell(came(uid))
                other.tell(came(uid))
            await until(lambda: len(heard.reports) == len(EVERYTHING) + 6000)
            for number in (1, 2):
                told = [report for its, report in heard.reports[len(EVERYTHING) :] if its == number]
                assert told == [came(uid) for uid in range(3000)]
            one.tell(came(7))
        assert (1, came(7)) in heard.reports  # it ended before it had to tell
        assert sorted(heard.gone) == [1, 2]

    run(scenario())


def test_where_the_leader_is_away_what_waits_is_given_up_and_said_to_be(tmp_path: Path) -> None:
    async def scenario() -> None:
        to_leader = ToLeader(tmp_path / "l")
        lost: list[Sequence[Report]] = []
        to_leader.on_loss.append(lost.append)
        async with running(to_leader):
            to_leader.tell(came(1))
            await until(lambda: bool(lost))
            assert lost == [[came(1)]]
            first = Heard(tmp_path / "l")
            async with running(first.followers):  # it comes
                to_leader.tell(came(2))
                await until(lambda: bool(first.reports))
            await until(lambda: len(lost) == 2)  # and goes
            assert first.reports == [(1, came(2))] and lost[1] == []
            second = Heard(tmp_path / "l")
            async with running(second.followers):  # another one listens at the same place
                to_leader.tell(came(3))
                await until(lambda: bool(second.reports))
            assert second.reports == [(1, came(3))]

    run(scenario())


def test_a_leader_that_does_not_listen_costs_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "BEHIND", 10_000)
    monkeypatch.setattr(leader, "_WAITING", 1000)

    async def scenario() -> None:
        never = asyncio.Event()
        held: list[asyncio.StreamWriter] = []

        async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            await never.wait()

        to_leader = ToLeader(tmp_path / "l")
        lost: list[Sequence[Report]] = []
        to_leader.on_loss.append(lost.append)
        for uid in range(1001):  # nobody works yet
            to_leader.tell(came(uid))
        assert [len(waiting) for waiting in lost] == [1001]
        server = await asyncio.start_unix_server(hold, str(tmp_path / "l"), limit=1000)
        async with running(to_leader):
            long = Came(1, "chat", "x", False, "u" * 50_000)
            while len(lost) == 1:
                for _ in range(20):
                    to_leader.tell(long)
                await asyncio.sleep(0.02)
        assert 1 <= len(held) <= 2
        for writer in held:
            writer.close()
        server.close()

    run(scenario())


def test_what_is_not_understood_ends_the_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        heard = Heard(tmp_path / "l")
        async with running(heard.followers):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "l"))
            writer.write(b"\x02\x00\x00\x00\xc1\xc1")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            await until(lambda: heard.gone == [1])
            assert heard.reports == []

    run(scenario())
    assert "can't be used" in caplog.text
