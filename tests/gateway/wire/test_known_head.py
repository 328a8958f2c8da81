"""Heads that come again: recognised when nothing but the length differs, and never otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.known_head import KnownHead

HEAD = b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nAccept: */*\r\n\r\n"


def message(length: bytes, body: bytes) -> bytes:
    return HEAD % length + body


def learnt() -> KnownHead:
    known = KnownHead.learn(message(b"3", b"abc"), 3)
    assert known is not None
    return known


@given(st.binary(max_size=300), st.binary(max_size=10))
def test_the_same_head_with_any_length_is_known(body: bytes, more: bytes) -> None:
    known = learnt()
    data = message(b"%d" % len(body), body) + more
    begin = known.begins(data)
    assert data[begin : begin + known.length] == body


@given(st.data())
def test_a_byte_of_difference_makes_it_unknown(data: st.DataObject) -> None:
    whole = HEAD % b"3"
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255))
    changed = bytearray(whole + b"abc")
    changed[place] = other
    begin = learnt().begins(bytes(changed))
    if bytes(changed[: len(whole)]) != whole:
        same_but_digit = place == whole.index(b"3") and chr(other).isascii() and chr(other).isdigit()
        assert bool(begin) == same_but_digit


@given(st.integers(0, len(HEAD)))
def test_a_part_of_it_is_unknown(size: int) -> None:
    whole = HEAD % b"3"
    assert learnt().begins(whole[: min(size, len(whole) - 1)]) == 0


@pytest.mark.parametrize("digits", [b"", b"+3", b"-3", b" 3", b"3 ", b"0x3", b"3,3", b"1_0", b"1" * 16, "٣".encode()])
def test_what_is_no_plain_number_is_unknown(digits: bytes) -> None:
    assert learnt().begins(message(digits, b"abc")) == 0


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nX-Content-Length: 3\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 3\r\n 0\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 3\r\nA: b\r\n\tc\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 3 \r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length : 3\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 4\r\n\r\n",
        b"POST /v1 HTTP/1.1\nContent-Length: 3\n\n",
        b"GET / HTTP/1.1\r\n\r\nPOST /v1 HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        b"",
    ],
)
def test_heads_that_frame_in_another_way_are_not_learnt(head: bytes) -> None:
    assert KnownHead.learn(head + b"abc", 3) is None
