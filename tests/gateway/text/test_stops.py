"""No part of a stop string leaks, whatever the pieces are in which the text comes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.text.stops import StopStrings

TEXT = st.text(alphabet="ab\n😀", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n😀", min_size=1, max_size=5), max_size=4)


def cut(text: str, at: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(index % (len(text) + 1) for index in at)})
    return [text[a:b] for a, b in pairwise(edges)]


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The text before the leftmost of the stops, and which it is, of those at the same place the shortest."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, length, stop = min(found)
    return text[: start + length if include else start], stop


@settings(deadline=None, max_examples=500)
@given(text=TEXT, stops=STOPS, at=st.lists(st.integers(0, 30), max_size=8), include=st.booleans())
def test_any_text_in_any_pieces(text: str, stops: list[str], at: list[int], include: bool) -> None:
    watcher = StopStrings(stops, include)
    sent = ""
    whole, stop = expected(text, stops, include)
    for piece in cut(text, at):
        sent += watcher.push(piece)
        assert whole.startswith(sent)
    sent += watcher.flush()
    assert (sent, watcher.matched) == (whole, stop)
    assert watcher.push("more") == ("" if stops else "more")
    assert watcher.flush() == ""


@settings(deadline=None, max_examples=200)
@given(text=TEXT, stops=STOPS.filter(bool))
def test_holds_back_less_than_the_longest(text: str, stops: list[str]) -> None:
    watcher = StopStrings(stops)
    sent = 0
    for index, char in enumerate(text):
        sent += len(watcher.push(char))
        if watcher.matched is None and expected(text[: index + 1], stops, False)[1] is None:
            assert index + 1 - sent < max(map(len, stops))


def test_sends_at_once_what_is_no_beginning() -> None:
    watcher = StopStrings(["\n\nHuman:"])
    assert [watcher.push(piece) for piece in ("Hello", "\n", "world", "\n\nHum", "bug")] == [
        "Hello",
        "",
        "\nworld",
        "",
        "\n\nHumbug",
    ]


def test_a_stop_inside_another_waits_for_it() -> None:
    watcher = StopStrings(["abc", "b"])
    assert (watcher.push("xab"), watcher.matched) == ("x", None)
    assert (watcher.push("c"), watcher.matched) == ("", "abc")
    watcher = StopStrings(["abc", "b"])
    assert (watcher.push("xab"), watcher.flush(), watcher.matched) == ("x", "a", "b")


def test_long_repetitive_stop_strings_stay_cheap_in_memory() -> None:
    watcher = StopStrings(["a" * 4096 + "b"])
    assert "".join(watcher.push("a") for _ in range(4000)) == ""
    assert watcher.push("c") == "a" * 4000 + "c"


def test_empty_stop_string() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])
