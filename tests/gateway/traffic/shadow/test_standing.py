import msgspec
import pytest

from gateway.traffic.answers import Answer
from gateway.traffic.shadow import standing
from gateway.traffic.shadow.compare import compare
from gateway.traffic.shadow.standing import Standing


def pair(first: str, other: str, calls: tuple[tuple[str, str], ...] = ()) -> Standing:
    found = Standing()
    found.add(compare(Answer(first), Answer(other, calls)))
    return found


def test_nothing_is_known_at_first() -> None:
    shown = Standing().shown("/v1/completions")
    assert (shown.compared, shown.agreement, shown.edits, shown.length) == (0, None, None, None)
    assert (shown.agreement_low, shown.agreement_high) == (0.0, 1.0)


def test_pairs_are_counted_by_what_differs() -> None:
    found = Standing()
    found.add(compare(Answer("Four."), Answer("Four.")))
    found.add(compare(Answer("Four."), Answer("four")))
    found.add(compare(Answer("I'm sorry, but I can't help with that."), Answer("Take two eggs and a pan of water.")))
    found.add(compare(Answer("Four."), Answer("As an AI I have no opinion.")))
    found.add(compare(Answer("", (("price", "{}"),)), Answer("")))
    shown = found.shown("/v1/completions")
    assert (shown.compared, shown.agreement) == (5, 0.4)
    assert shown.agreement_low < 0.4 < shown.agreement_high
    assert (shown.exact, shown.normalised) == (0.2, 0.6)
    assert (shown.model_refused, shown.shadow_refused, shown.calls_differ) == (1, 1, 1)
    assert shown.edits is not None and 0 < shown.edits < 1
    assert shown.length is not None and shown.length > 0


def test_fields_are_counted_whatever_their_place() -> None:
    found = Standing()
    for price in range(3):
        found.add(
            compare(
                Answer('{"rooms": [{"price": 9}, {"price": 9}]}'),
                Answer(f'{{"rooms": [{{"price": {price}}}, {{"price": 8}}]}}'),
            )
        )
    found.add(compare(Answer('{"rooms": []}'), Answer('{"rooms": [], "more": 1}')))
    assert found.shown("").fields == {"$.rooms[*].price": 3, "$.more": 1}
    assert found.json_differ == 4


def test_made_up_names_take_no_more_and_more_room() -> None:
    found = Standing()
    for number in range(500):
        found.add(compare(Answer("{}"), Answer(msgspec.json.encode({f"{number}" + "x" * 1000: 1}).decode())))
        found.lose("failed", f"{number}")
    assert len(found.fields) == len(found.failures) == 200
    assert max(map(len, found.fields)) == 200
    assert len(found.shown("").fields) == 20
    assert found.failed == 500


def test_what_is_written_down_is_read_again() -> None:
    known = {("chat", "next", "/v1/completions"): pair("Four.", "Five."), ("chat", "other", ""): Standing()}
    known["chat", "other", ""].lose("dropped")
    assert standing.decode(standing.encode(known)) == known
    with pytest.raises(msgspec.DecodeError):
        standing.decode(b'[{"model": 1}]')
