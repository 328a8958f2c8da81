"""`flywheel.log`: what is acknowledged is on the disk; what the disk doesn't take stops nobody."""

import asyncio
import errno
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from flywheel.log import Durability, Log
from flywheel.log.folder import take, writer_folders
from flywheel.log.frame import Frames, Kind, Salt
from flywheel.log.reading import all_segments, read_frames
from flywheel.record import VERSION, Feedback, decode_head
from tests.flywheel.log.driving import append, begin, outcomes, record, records, with_text

DURABILITIES: tuple[Durability, ...] = ("os", "disk")


def kinds(folder: Path) -> list[tuple[int, str]]:
    return [(frame.kind, decode_head(frame.body).request_id) for frame in read_frames(folder)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def _appended(folder: Path, durability: Durability) -> None:
    log = Log(folder, durability=durability)
    log.start()
    begin(log, record(1))
    assert await append(log, record(1))
    assert outcomes(folder) == {"req_1": "ok"}  # before anything is closed
    assert kinds(folder) == [(Kind.BEGIN, "req_1"), (Kind.RECORD, "req_1")]
    log.feedback(Feedback(VERSION, "req_1", 5))
    log.close()
    assert kinds(folder)[-1] == (Kind.FEEDBACK, "req_1")
    assert [segment.closed for segment in all_segments(folder)] == [True]
    assert (log.records, log.lost, log.backlog, log.trouble) == (2, 0, 0, "")


@pytest.mark.parametrize("durability", DURABILITIES)
def test_an_acknowledged_record_is_on_the_disk(tmp_path: Path, durability: Durability) -> None:
    asyncio.run(_appended(tmp_path, durability))


@pytest.mark.parametrize("durability", DURABILITIES)
def test_many_at_a_time_are_all_there_in_order(tmp_path: Path, durability: Durability) -> None:
    async def run() -> None:
        log = Log(tmp_path, durability=durability, segment_bytes=100_000)
        log.start()

        async def client(first: int) -> None:
            for number in range(first, first + 30):
                begin(log, record(number))
                await asyncio.sleep(0)
                assert await append(log, with_text(number, 1000))

        await asyncio.gather(*(client(100 * which) for which in range(20)))
        log.close()

    asyncio.run(run())
    found = records(tmp_path)
    assert len(found) == len({one.request_id for one in found}) == 600
    assert all(one.content and one.content.input == b"x" * 1000 for one in found)
    segments = all_segments(tmp_path)
    assert len(segments) > 5
    assert all(segment.closed for segment in segments)
    assert all(segment.path.stat().st_size < 200_000 for segment in segments)


def test_a_thousand_frames_go_in_one_batch(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        assert all(await asyncio.gather(*(append(log, record(number)) for number in range(1500))))
        log.close()

    asyncio.run(run())
    assert len(outcomes(tmp_path)) == 1500


def test_a_request_under_way_is_in_every_segment_until_it_ends(tmp_path: Path) -> None:
    """So that recovery need not look further back than the newest."""

    async def run() -> None:
        log = Log(tmp_path, segment_bytes=1)
        log.start()
        begin(log, record(1))
        for number in (2, 3):
            assert await append(log, record(number))
        assert await append(log, record(1))
        log.close()

    asyncio.run(run())
    found = [[(f.kind, decode_head(f.body).request_id) for f in _frames(s.path)] for s in all_segments(tmp_path)]
    assert all((Kind.BEGIN, "req_1") in one for one in found[:3])
    assert (Kind.BEGIN, "req_1") not in found[-1]


def _frames(path: Path) -> Frames:
    return Frames(path.read_bytes())


def test_what_is_under_way_at_the_close_is_aborted(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        begin(log, record(1, outcome="aborted", key="team"))
        log.close()
        log.append(record(2))  # too late: counted, not raised
        assert log.lost == 1

    asyncio.run(run())
    (found,) = records(tmp_path)
    assert (found.request_id, found.outcome, found.key) == ("req_1", "aborted", "team")


def test_two_processes_have_a_folder_each(tmp_path: Path) -> None:
    async def run() -> None:
        logs = [Log(tmp_path) for _ in range(3)]
        for number, log in enumerate(logs):
            log.start()
            assert await append(log, record(number))
        assert len(writer_folders(tmp_path)) == 3
        logs[1].close()
        again = Log(tmp_path)
        again.start()
        assert await append(again, record(9))
        assert len(writer_folders(tmp_path)) == 3
        for log in (logs[0], logs[2], again):
            log.close()

    asyncio.run(run())
    assert len(outcomes(tmp_path)) == 4
    assert len({segment.writer for segment in all_segments(tmp_path)}) == 3


def test_numbers_and_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    async def once(number: int) -> None:
        log = Log(tmp_path)
        log.start()
        assert await append(log, record(number))
        log.close()

    for number in range(3):
        asyncio.run(once(number))
    segments = all_segments(tmp_path)
    assert [segment.number for segment in segments] == [1, 2, 3]
    assert len({segment.writer for segment in segments}) == 1
    assert len({_frames(segment.path).salt.number for segment in segments}) == 3


class Disk:
    """The disk of these tests, which can be told to fail. ``room``: bytes that are left; None: enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.room: int | None = None
        self.hang = threading.Event()
        self.hang.set()
        self._pwritev, self._pwrite = os.pwritev, os.pwrite
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwritev(self, file: int, pieces: Any, place: int) -> int:
        return self._take(file, b"".join(pieces), place)

    def pwrite(self, file: int, piece: Any, place: int) -> int:
        return self._take(file, bytes(piece), place)

    def _take(self, file: int, data: bytes, place: int) -> int:
        self.hang.wait(20)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if self.room is not None:
            data = data[: self.room]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= len(data)
        return self._pwrite(file, data, place)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_full_disk_stops_nobody_and_nothing_is_lost_that_fits_in_memory(
    tmp_path: Path, disk: Disk, durability: Durability, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        log = Log(tmp_path, durability=durability)
        log.start()
        assert await append(log, record(0))
        disk.room = 500  # in the middle of a frame
        answers = [await append(log, with_text(number, 300)) for number in range(1, 20)]
        assert not any(answers[3:])
        assert "No space left" in log.trouble
        assert log.backlog > 0
        assert log.failures > 0
        disk.room = None
        await until(lambda: not log.trouble)
        await until(lambda: not log.backlog)
        assert await append(log, record(20))
        assert (log.lost, log.records) == (0, 21)
        log.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len(outcomes(tmp_path)) == 21
    assert sum("can't be written" in one.message for one in caplog.records) == 1  # not once a record
    assert "written again" in caplog.text


def test_a_disk_that_fails_now_and_then_is_not_complained_about_each_time(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        for number in range(6):
            disk.error = errno.ENOSPC
            assert not await append(log, record(number))
            disk.error = 0
            await until(lambda: not log.trouble and not log.backlog)
        log.close()
        assert log.records == 6

    asyncio.run(run())
    said = [one.message for one in caplog.records if one.name == "flywheel.log.appending"]
    assert 1 < len(said) < 5
    assert "written again" in said[-1]


def test_what_exceeds_the_backlog_is_lost_and_counted(tmp_path: Path, disk: Disk) -> None:
    async def run() -> None:
        log = Log(tmp_path, backlog_bytes=10_000)
        log.start()
        begin(log, record(1))
        begin(log, record(2))
        assert await append(log, record(0))
        disk.error = errno.EROFS
        for number in range(1, 50):
            assert not await append(log, with_text(number, 1000))
        assert log.backlog <= 10_000
        assert 30 < log.lost < 45
        lost = log.lost
        disk.error = 0
        await until(lambda: not log.backlog)
        assert await append(log, record(50))
        assert log.lost == lost
        assert log.records == 51 - lost
        log.close()

    asyncio.run(run())
    found = outcomes(tmp_path)
    assert found.pop("req_50") == "ok"
    assert set(found.values()) == {"ok"}


def test_a_request_whose_record_is_lost_is_not_under_way_for_ever(tmp_path: Path, disk: Disk) -> None:
    async def run() -> None:
        log = Log(tmp_path, backlog_bytes=4000)
        log.start()
        for number in range(20):
            begin(log, record(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        disk.error = errno.ENOSPC
        for number in range(20):
            assert not await append(log, with_text(number, 1000))
        disk.error = 0
        await until(lambda: not log.backlog)
        assert await append(log, record(50))
        assert not log._writer._open
        assert not log._writer._forgotten
        log.close()

    asyncio.run(run())
    assert "aborted" not in outcomes(tmp_path).values()


def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path, disk: Disk) -> None:
    async def run() -> None:
        log = Log(tmp_path, durability="disk", patience=0.1)
        log.start()
        disk.hang.clear()
        assert not await append(log, record(1))
        assert log.trouble == "the disk doesn't answer"
        assert not await append(log, record(2))
        disk.hang.set()
        await until(lambda: not log.backlog and not log.trouble)
        assert await append(log, record(3))
        log.close()

    asyncio.run(run())
    assert len(outcomes(tmp_path)) == 3


def test_a_slow_disk_is_left_to_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.log.appending._SLOW", -1.0)

    def threads() -> int:
        return sum(thread.name == "request log" for thread in threading.enumerate())

    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        assert await append(log, record(1))
        assert threads() == 0
        assert await append(log, record(2))
        assert threads() == 1
        log.close()
        assert threads() == 0

    asyncio.run(run())
    assert len(outcomes(tmp_path)) == 2


def test_after_an_error_of_the_device_another_segment_is_begun(tmp_path: Path, disk: Disk) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        begin(log, record(7))
        assert await append(log, record(1))
        disk.error = errno.EIO
        assert not await append(log, record(2))
        disk.error = 0
        await until(lambda: not log.backlog)
        assert await append(log, record(7))
        log.close()

    asyncio.run(run())
    assert outcomes(tmp_path) == {"req_1": "ok", "req_2": "ok", "req_7": "ok"}
    assert len(all_segments(tmp_path)) >= 2


def test_a_folder_that_is_deleted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.log.segment_writer._LOOK_AFTER", 0.0)
    folder = tmp_path / "log"

    async def run() -> None:
        log = Log(folder)
        log.start()
        begin(log, record(3))
        assert await append(log, record(1))
        writer = all_segments(folder)[0].writer
        shutil.rmtree(folder)
        await append(log, record(2))
        await until(lambda: not log.backlog and not log.trouble)
        assert await append(log, record(3))
        assert log.lost == 1
        assert all_segments(folder)[0].writer != writer  # the table must not take it for what it has already
        log.close()

    asyncio.run(run())
    assert outcomes(folder) == {"req_2": "ok", "req_3": "ok"}


def test_a_place_where_nothing_can_be_made_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "log"
    blocked.write_text("a file, not a folder")

    async def run() -> None:
        log = Log(blocked)
        log.start()
        assert log.trouble
        assert not await append(log, record(1))
        blocked.unlink()
        await until(lambda: not log.trouble and not log.backlog)
        assert log.records == 1
        log.close()

    asyncio.run(run())
    assert len(outcomes(blocked)) == 1
    assert "can't be written" in caplog.text


def test_closing_gives_up_on_a_disk_that_stays_full(tmp_path: Path, disk: Disk) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        disk.error = errno.ENOSPC
        assert not await append(log, record(1))
        log.close()
        assert log.lost == 1

    asyncio.run(run())
    assert outcomes(tmp_path) == {}


def test_who_waits_may_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(written: bool) -> None:
        raise RuntimeError("mine")

    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        log.append(record(1), fail)
        assert await append(log, record(2))
        log.close()

    asyncio.run(run())
    assert "mine" in caplog.text
    assert len(outcomes(tmp_path)) == 2


def test_what_cannot_be_encoded_is_there_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        begin(log, record(1, tags={"a": "\ud800"}))
        found = await asyncio.gather(
            *(
                append(log, one)
                for one in (record(1, input_tokens=1 << 80), record(2), record(3, user="\ud800", status=404))
            )
        )
        assert found == [True] * 3
        log.feedback(Feedback(VERSION, "req_4", 5, comment="\ud800"))
        log.close()

    asyncio.run(run())
    assert outcomes(tmp_path) == {"req_1": "ok", "req_2": "ok", "req_3": "ok"}
    assert [one.status for one in records(tmp_path)] == [200, 200, 404]
    assert kinds(tmp_path)[-1] == (Kind.FEEDBACK, "req_4")
    assert "can't be written" in caplog.text


def test_a_beginning_is_as_it_was_at_the_end_of_its_round(tmp_path: Path) -> None:
    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        one = record(1, outcome="aborted", target="")
        begin(log, one)
        one.target = "a"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        one.target = "b"
        log.close()

    asyncio.run(run())
    assert [one.target for one in records(tmp_path)] == ["a"]


def test_an_old_segment_is_closed_without_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.log.appending._TICK", 0.02)

    async def run() -> None:
        log = Log(tmp_path, segment_seconds=0.05)
        log.start()
        await asyncio.sleep(0.2)
        assert len(all_segments(tmp_path)) == 1  # nothing in it: it may stay
        assert await append(log, record(1))
        await until(lambda: any(segment.closed for segment in all_segments(tmp_path)))
        log.close()

    asyncio.run(run())


def test_a_folder_is_one_writers_at_a_time(tmp_path: Path) -> None:
    first = take(tmp_path)
    assert first is not None
    assert take(tmp_path) is None
    first.release()
    second = take(tmp_path)
    assert second is not None
    assert second.writer == first.writer
    second.release()


def test_headers_are_salted() -> None:
    assert Salt(1).header(Kind.RECORD, b"x") != Salt(2).header(Kind.RECORD, b"x")
