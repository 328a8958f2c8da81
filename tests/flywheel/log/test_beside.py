"""`flywheel.log.beside`: what lies beside the log, and goes with its user or its age."""

import fcntl
import os
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest

from flywheel.log import beside

ANN, BOB = b"a" * 16, b"b" * 16


def line(owner: bytes, at: float, text: str = "") -> bytes:
    return msgspec.json.encode({"owner": owner.hex(), "at": at, "text": text})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return beside.folder(tmp_path) / "some.jsonl"


def test_lines_are_for_their_owner_and_files_take_turns(path: Path) -> None:
    for number in range(10):
        beside.append(path, [line(ANN, number)], limit=3 * len(line(ANN, 0)) + 4)
    assert sorted(one.name for one in path.parent.iterdir()) == ["some.jsonl", "some.old.jsonl"]
    assert path.read_bytes().splitlines() == [line(ANN, 9)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_users_lines_go_from_all_files(tmp_path: Path, path: Path) -> None:
    about_ann = line(BOB, 2, f'"owner":"{ANN.hex()}"')  # bob says that
    for lines in ([line(ANN, 0), line(BOB, 1)], [about_ann, line(ANN, 3)]):
        beside.append(path, lines, limit=200)
    other = path.with_name("other.jsonl")
    beside.append(other, [line(BOB, 4)], limit=200)
    inode = other.stat().st_ino
    assert beside.forget_owner(tmp_path, ANN) == 2
    assert path.with_suffix(".old.jsonl").read_bytes() == line(BOB, 1) + b"\n"
    assert path.read_bytes() == about_ann + b"\n"
    assert other.stat().st_ino == inode  # it was left alone
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(path.parent.iterdir())) == 3
    assert beside.forget_owner(tmp_path, ANN) == 0


def test_what_is_too_old_goes(tmp_path: Path, path: Path) -> None:
    beside.append(path, [line(ANN, 1), b"broken {", line(BOB, 5), line(BOB, 9)], limit=10_000)
    assert beside.forget_before(tmp_path, 1) == 0
    assert beside.forget_before(tmp_path, 5) == 2
    assert path.read_bytes().splitlines() == [line(BOB, 5), line(BOB, 9)]


def test_where_nothing_lies_nothing_goes(tmp_path: Path) -> None:
    assert beside.forget_owner(tmp_path, ANN) == beside.forget_before(tmp_path, 5) == 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_lost_that_is_written_meanwhile(tmp_path: Path, path: Path) -> None:
    beside.append(path, [line(ANN, 0)] * 10, limit=1 << 20)

    def write() -> None:
        for number in range(300):
            beside.append(path, [line(BOB, number), line(ANN, number)], limit=1 << 20)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        beside.forget_owner(tmp_path, ANN)
    writer.join()
    beside.forget_owner(tmp_path, ANN)
    assert path.read_bytes().splitlines() == [line(BOB, number) for number in range(300)]


def test_they_take_turns(tmp_path: Path, path: Path) -> None:
    beside.append(path, [line(ANN, 0)], limit=1 << 20)
    lock = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    forgetting = threading.Thread(target=beside.forget_owner, args=(tmp_path, ANN))
    forgetting.start()
    time.sleep(0.05)
    assert path.read_bytes()
    os.close(lock)
    forgetting.join()
    assert not path.read_bytes()


def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.append(path, [line(ANN, 0)], limit=1 << 20)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        beside.forget_owner(tmp_path, ANN)
    assert [one.name for one in path.parent.iterdir()] == ["some.jsonl"]
    assert path.read_bytes() == line(ANN, 0) + b"\n"
