"""`flywheel.log.recovery`: whatever was cut off where, each request has one record afterwards."""

import asyncio
import random
from pathlib import Path

import pytest

from flywheel.log import Log
from flywheel.log.folder import closed_path, open_path, segments
from flywheel.log.frame import START_SIZE, Kind, Salt
from flywheel.log.recovery import Recovered, recover
from flywheel.record import encode
from tests.flywheel.log.driving import append, outcomes, record, records

SALT = Salt(5)
UNUSED = 3
"""The byte of a header that means nothing."""


def begun(number: int) -> bytes:
    body = encode(record(number, outcome="aborted", status=0))
    return SALT.header(Kind.BEGIN, body) + body


def ended(number: int) -> bytes:
    body = encode(record(number))
    return SALT.header(Kind.RECORD, body) + body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writer's, unlocked."""
    folder = tmp_path / "segments" / "0"
    folder.mkdir(parents=True)
    (folder / "id").write_text("a" * 32)
    return folder


def left(folder: Path, number: int, *frames: bytes) -> None:
    open_path(folder, number).write_bytes(SALT.start() + b"".join(frames))


def test_a_request_without_an_end_gets_one(tmp_path: Path, folder: Path) -> None:
    left(folder, 3, begun(1), ended(1), begun(2), begun(3), ended(3))
    assert recover(folder) == Recovered(aborted=1)
    assert outcomes(tmp_path) == {"req_1": "ok", "req_2": "aborted", "req_3": "ok"}
    assert [segment.path for segment in segments(folder)] == [closed_path(folder, 3)]
    assert recover(folder) == Recovered()


def test_every_cut_is_recovered_from(tmp_path: Path, folder: Path) -> None:
    """Byte by byte: the process was killed in the middle of a write."""
    data = SALT.start() + begun(1) + begun(2) + ended(1)
    ends = [START_SIZE + sum(map(len, frames)) for frames in ([begun(1)], [begun(1), begun(2)])]
    for size in range(len(data)):
        for segment in segments(folder):
            segment.path.unlink()
        open_path(folder, 1).write_bytes(data[:size])
        recover(folder)
        expected = {f"req_{number + 1}": "aborted" for number, end in enumerate(ends) if size >= end}
        assert outcomes(tmp_path) == expected, size


def test_a_recovery_that_was_cut_off_is_done_again(tmp_path: Path, folder: Path) -> None:
    left(folder, 1, begun(1), begun(2))
    recover(folder)
    data = closed_path(folder, 1).read_bytes()
    closed_path(folder, 1).unlink()
    before = START_SIZE + len(begun(1)) + len(begun(2))
    for size in range(before, len(data) + 1):
        open_path(folder, 1).write_bytes(data[:size])
        recover(folder)
        assert outcomes(tmp_path) == {"req_1": "aborted", "req_2": "aborted"}
        closed_path(folder, 1).unlink()


def test_killed_between_two_segments(tmp_path: Path, folder: Path) -> None:
    """The new one has begun, the old one is not closed yet; or an old one could not be closed long ago."""
    left(folder, 4, begun(1), begun(2), begun(3), ended(3))
    closed_path(folder, 5).write_bytes(SALT.start() + begun(1) + begun(2) + ended(2))
    left(folder, 6, begun(1))
    assert recover(folder).aborted == 1
    assert outcomes(tmp_path) == {"req_1": "aborted", "req_2": "ok", "req_3": "ok"}
    assert all(segment.closed for segment in segments(folder))


def test_zeros_at_the_end_are_no_loss(folder: Path) -> None:
    """Room that was reserved."""
    left(folder, 1, begun(1), ended(1), bytes(5000))
    assert recover(folder) == Recovered()
    assert closed_path(folder, 1).stat().st_size == START_SIZE + len(begun(1)) + len(ended(1))


def test_what_is_rotten_in_between_is_said(tmp_path: Path, folder: Path) -> None:
    left(folder, 1, ended(1), b"rubbish", ended(2))
    assert recover(folder).damaged == 7
    assert outcomes(tmp_path) == {"req_1": "ok", "req_2": "ok"}


def test_a_foreign_file_is_put_aside(tmp_path: Path, folder: Path) -> None:
    open_path(folder, 1).write_bytes(b"something else that is long enough")
    left(folder, 2, begun(1))
    assert recover(folder).aborted == 1
    assert (folder / "0000000001.broken").exists()
    assert outcomes(tmp_path) == {"req_1": "aborted"}


def test_a_frame_of_another_kind_or_shape_is_kept(tmp_path: Path, folder: Path) -> None:
    left(folder, 1, SALT.header(77, b"later") + b"later", SALT.header(Kind.BEGIN, b"odd") + b"odd", begun(1))
    assert recover(folder) == Recovered(aborted=1)
    assert closed_path(folder, 1).read_bytes().count(b"later") == 1


def test_an_id_that_a_client_says_again_is_of_another_request(tmp_path: Path, folder: Path) -> None:
    later = record(1, outcome="aborted", status=0)
    later.received += 1
    body = encode(later)
    left(folder, 1, begun(1), ended(1), SALT.header(Kind.BEGIN, body) + body)
    assert recover(folder).aborted == 1
    assert [one.outcome for one in records(tmp_path)] == ["ok", "aborted"]


def test_whatever_is_damaged_the_rest_is_recovered(tmp_path: Path, folder: Path) -> None:
    """A bit turned at every place, and the file cut at another: who is whole on the disk has one record, once."""
    draw = random.Random(3)
    frames = [begun(1), begun(2), ended(1), begun(3), ended(3)]
    data = SALT.start() + b"".join(frames)
    ends = [START_SIZE + sum(map(len, frames[: place + 1])) for place in range(len(frames))]
    for place in range(START_SIZE, len(data)):
        for segment in segments(folder):
            segment.path.unlink()
        broken = bytearray(data)
        broken[place] ^= 1 << draw.randrange(8)
        size = draw.randrange(place, len(data) + 1)
        open_path(folder, 1).write_bytes(broken[:size])
        recover(folder)
        whole = [
            end <= size and (not end - len(frame) <= place < end or place == end - len(frame) + UNUSED)
            for frame, end in zip(frames, ends, strict=True)
        ]
        has_begun = {1: whole[0], 2: whole[1], 3: whole[3]}
        has_ended = {1: whole[2], 2: False, 3: whole[4]}
        expected = {
            f"req_{one}": "ok" if has_ended[one] else "aborted" for one in (1, 2, 3) if has_begun[one] or has_ended[one]
        }
        assert outcomes(tmp_path) == expected, (place, size)


def test_requests_that_go_on_are_left_alone(tmp_path: Path, folder: Path) -> None:
    left(folder, 1, begun(1), begun(2))
    assert recover(folder, {"req_1"}).aborted == 1
    assert outcomes(tmp_path) == {"req_2": "aborted"}


@pytest.mark.parametrize("seed", range(20))
def test_random_histories(tmp_path: Path, folder: Path, seed: int) -> None:
    """Requests begin and end, segments follow each other, the last write is torn: nothing is there twice or not."""
    draw = random.Random(seed)
    under_way: set[int] = set()
    finished: set[int] = set()
    number, segment = 0, 1
    frames: list[bytes] = []
    for _ in range(60):
        if under_way and draw.random() < 0.5:
            one = draw.choice(sorted(under_way))
            under_way.discard(one)
            finished.add(one)
            frames.append(ended(one))
        else:
            under_way.add(number)
            frames.append(begun(number))
            number += 1
        if draw.random() < 0.1:
            left(folder, segment, *frames)
            if draw.random() < 0.8:
                open_path(folder, segment).rename(closed_path(folder, segment))
            segment += 1
            frames = [begun(one) for one in sorted(under_way)]
    left(folder, segment, *frames, ended(number)[: draw.randrange(1, 50)])
    assert recover(folder).aborted == len(under_way)
    expected = {f"req_{one}": "ok" for one in finished} | {f"req_{one}": "aborted" for one in under_way}
    assert outcomes(tmp_path) == expected


def test_a_log_recovers_when_it_starts(tmp_path: Path, folder: Path) -> None:
    left(folder, 1, begun(1))

    async def run() -> None:
        log = Log(tmp_path)
        log.start()
        assert log.recovered.aborted == 1
        assert await append(log, record(2))
        log.close()

    asyncio.run(run())
    assert outcomes(tmp_path) == {"req_1": "aborted", "req_2": "ok"}
    assert [one.status for one in records(tmp_path)] == [0, 200]
