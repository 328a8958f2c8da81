"""Text that arrives in pieces reads as if it were all there."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.text.reader import Reader, Reading, may_begin

LETTERS = re.compile(r"[ab]*")


def read(pieces: list[str], how: Callable[[Reader], Reading[Any]]) -> tuple[Any, str]:
    """What ``how`` found, and the text that it left."""
    reader = Reader(lambda text: None)
    reading = how(reader)
    pending = iter(pieces)
    try:
        next(reading)
        for piece in pending:
            reader.feed(piece)
            next(reading)
        reader.ended = True
        next(reading)
    except StopIteration as stop:
        return stop.value, reader.text[reader.at :] + "".join(pending)
    raise AssertionError("it waits for more than there is")


def test_literal() -> None:
    for pieces in (["<tool>x"], ["<to", "ol>", "x"], ["", "<tool>x"]):
        assert read(pieces, lambda reader: reader.literal("<tool>")) == (True, "x")
    assert read(["<to", "y>"], lambda reader: reader.literal("<tool>")) == (False, "<toy>")
    assert read(["<to"], lambda reader: reader.literal("<tool>")) == (False, "<to")
    assert read(["<tool>x"], lambda reader: reader.ahead("<tool>")) == (True, "<tool>x")


def test_peek_and_skip() -> None:
    assert read([], lambda reader: reader.peek()) == ("", "")
    assert read(["", "ab"], lambda reader: reader.peek()) == ("a", "ab")
    assert read(["ab", "ba", "c"], lambda reader: reader.skip(LETTERS)) == (None, "c")
    assert read(["ab"], lambda reader: reader.skip(LETTERS)) == (None, "")
    assert read([" \n", "\tx"], lambda reader: reader.skip_space()) == ("x", "x")


def test_what_is_kept_can_be_read_again() -> None:
    def there_and_back(reader: Reader) -> Reading[None]:
        reader.kept = reader.at
        yield from reader.skip(LETTERS)
        reader.rewind()
        reader.rewind()

    assert read(["a", "b", "a", "c"], there_and_back) == (None, "abac")


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet="ab<>[", max_size=30), at=st.lists(st.integers(0, 30), max_size=8))
def test_until(text: str, at: list[int]) -> None:
    markers = ("<a>", "<ab>", "[[b")
    pattern = re.compile("|".join(map(re.escape, markers)))
    found = pattern.search(text)
    edges = sorted({0, len(text), *(index % (len(text) + 1) for index in at)})
    out: list[str] = []
    marker, left = read(
        [text[a:b] for a, b in pairwise(edges)], lambda reader: reader.until(markers, pattern, out.append)
    )
    assert "".join(out) == (text[: found.start()] if found else text)
    assert marker == (found[0] if found else "")
    assert left == (text[found.end() :] if found else "")
    assert all(out)


def test_may_begin() -> None:
    assert may_begin("a<to", 0, ("<tool>",)) == 1
    assert may_begin("a<to", 2, ("<tool>",)) == 4
    assert may_begin("a<<", 0, ("<tool>", "<<x")) == 1
    assert may_begin("<tool", 0, ("x",)) == 5
