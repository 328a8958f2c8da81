"""`flywheel.log.frame`: what is whole is found, what isn't is stepped over, and nothing else passes for a frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.log.frame import HEADER_SIZE, START_SIZE, Frames, Kind, NotASegmentError, Salt

SALT = Salt(0xC0FFEE)
BODIES = [b"first", b"", b"third" * 100, b"\xf5P\x02\x00" * 7, b"last"]

frames = st.lists(
    st.tuples(st.sampled_from([Kind.BEGIN, Kind.RECORD, Kind.FEEDBACK]), st.binary(max_size=40)), max_size=8
)


def segment(written: list[tuple[int, bytes]], salt: Salt = SALT) -> bytes:
    return salt.start() + b"".join(salt.header(kind, body) + body for kind, body in written)


def bodies(data: bytes) -> list[bytes]:
    return [frame.body for frame in Frames(data)]


@given(frames, st.integers(0, 2**32 - 1))
def test_what_was_written_is_read(written: list[tuple[int, bytes]], number: int) -> None:
    data = segment(written, Salt(number))
    found = Frames(data)
    assert [(frame.kind, frame.body) for frame in found] == written
    assert (found.end, found.damaged) == (len(data), 0)


@given(frames, st.integers(0, 400), st.binary(max_size=30) | st.integers(0, 100).map(bytes))
def test_a_torn_tail_is_no_frame(written: list[tuple[int, bytes]], cut: int, rubbish: bytes) -> None:
    data = segment(written)
    kept = max(START_SIZE, len(data) - cut)
    whole = [0]
    for _, body in written:
        whole.append(whole[-1] + HEADER_SIZE + len(body))
    other = bytes([data[kept] ^ 0xFF]) if kept < len(data) else b"\0"  # than what was there
    count = sum(START_SIZE + end <= kept for end in whole) - 1
    found = Frames(data[:kept] + other + rubbish)
    assert [(frame.kind, frame.body) for frame in found] == written[:count]
    assert found.end == START_SIZE + whole[count]
    assert found.damaged == 0


@given(st.integers(0, len(BODIES) - 1), st.data())
def test_a_rotten_byte_costs_one_frame(which: int, draw: st.DataObject) -> None:
    pieces = [SALT.header(Kind.RECORD, body) + body for body in BODIES]
    place = draw.draw(st.sampled_from([at for at in range(len(pieces[which])) if at != 3]))  # that one says nothing
    rotten = bytearray(pieces[which])
    rotten[place] ^= draw.draw(st.integers(1, 255))
    data = SALT.start() + b"".join(pieces[:which]) + rotten + b"".join(pieces[which + 1 :])
    found = Frames(data)
    assert [frame.body for frame in found] == BODIES[:which] + BODIES[which + 1 :]
    assert found.damaged == (len(rotten) if which < len(BODIES) - 1 else 0)


def test_a_text_that_looks_like_a_frame_is_none() -> None:
    """Somebody who has seen another log sends a frame of it; then a bit of ours rots."""
    forged = segment([(Kind.RECORD, b"forged")], Salt(1))[START_SIZE:]
    data = bytearray(segment([(Kind.RECORD, b"prompt: " + forged), (Kind.RECORD, b"next")]))
    data[START_SIZE + HEADER_SIZE] ^= 1
    assert bodies(bytes(data)) == [b"next"]


def test_kinds_of_later_versions_are_handed_on() -> None:
    data = SALT.start() + SALT.header(9, b"new") + b"new"
    assert [frame.kind for frame in Frames(data)] == [9]


@pytest.mark.parametrize("data", [b"", SALT.start()[:9], bytes(100), SALT.start()])
def test_a_segment_may_have_no_frames(data: bytes) -> None:
    assert bodies(data) == []


def test_another_file_is_refused() -> None:
    with pytest.raises(NotASegmentError, match="no segment"):
        Frames(b"PAR1 and something else")


def test_many_frames_are_made_as_one_is() -> None:
    one_by_one = [piece for body in BODIES for piece in (SALT.header(Kind.BEGIN, body), body)]
    assert SALT.frames(Kind.BEGIN, BODIES) == one_by_one
