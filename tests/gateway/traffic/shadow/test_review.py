import stat
from pathlib import Path

import msgspec
import pytest

from gateway.traffic.answers import Answer
from gateway.traffic.shadow import review
from gateway.traffic.shadow.compare import compare
from gateway.traffic.shadow.privacy import Privacy
from gateway.traffic.shadow.review import AGREEING, DIFFERING, Lines, Review
from gateway.wire.shadows import ShadowPair


def line(number: int, agrees: bool = False) -> bytes:
    first, other = Answer(f"{number}"), Answer(f"{number if agrees else 'x'}")
    return msgspec.json.encode(
        ShadowPair(
            request_id=f"req-{number}",
            model="chat",
            target="next",
            endpoint="/v1/completions",
            at=float(number),
            agrees=agrees,
            request="{}",
            answer=first,
            shadow=other,
            comparison=compare(first, other),
        )
    )


def test_the_last_ones_are_remembered() -> None:
    kept = Review(None, Privacy())
    for number in range(DIFFERING + 50):
        kept.add(line(number), False)
    for number in range(1000, 1000 + AGREEING + 50):
        kept.add(line(number, True), True)
    found = kept.newest(1000, differing=True)
    assert [pair.at for pair in found] == [*range(DIFFERING + 49, 49, -1)]
    both = kept.newest(1000, differing=False)
    assert [pair.at for pair in both[:AGREEING]] == [*range(1000 + AGREEING + 49, 1049, -1)]
    assert both[AGREEING:] == found
    assert kept.newest(AGREEING + 3, differing=False)[-3:] == found[:3]
    assert kept.newest(0, differing=True) == []


def test_long_lines_take_the_room_of_several() -> None:
    lines = Lines(100, 1000)
    for _ in range(100):
        lines.add(b"x" * 300)
    assert len(lines.newest(100)) == 3
    lines.add(b"x" * 1001)
    assert lines.newest(100) == []
    lines.add(b"y")
    assert lines.newest(100) == [b"y"]


def test_files_are_for_their_owner_and_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "shadows" / review.file_name("chat", "next")
    for number in range(40):
        review.append(path, [line(number)], limit=len(line(10)) * 10 + 20)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(path.parent.iterdir())) == 2
    assert all(file.stat().st_size <= len(line(10)) * 10 + 20 for file in path.parent.iterdir())
    last = [msgspec.json.decode(one, type=ShadowPair).at for one in review.last_lines(path)]
    assert last and last == [*range(40 - len(last), 40)]


def test_what_a_crash_has_left_of_a_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    assert review.last_lines(path) == []
    path.write_bytes(line(1)[:50] + b"\n" + line(2) + b"\n" + line(3)[:-3])
    assert review.last_lines(path) == [line(2)]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".", "x" * 500, "ä", ""])
def test_file_names_are_safe_and_different(name: str) -> None:
    found = review.file_name(name, "next")
    assert "/" not in found and found.count(".") == 1
    assert len(found.encode()) < 200
    assert found not in {
        review.file_name("a_b", "next"),
        review.file_name(name + "--", "next"),
        review.file_name("_", "next"),
    }
