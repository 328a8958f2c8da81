"""The bounded store of responses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.response_store import ResponseStore
from gateway.wire.errors import ApiError
from gateway.wire.responses_answer import Response
from gateway.wire.responses_items import InputText, Item, Message, OutputText, Reasoning, ReasoningText


def response(id: str, previous: str | None = None, text: str = "yes") -> Response:
    return Response(
        id=id,
        created_at=1,
        metadata={},
        model="m",
        temperature=1.0,
        top_p=1.0,
        previous_response_id=previous,
        output=[
            Reasoning(id=f"rs_{id}", content=[ReasoningText("hm")]),
            Message(id=f"msg_{id}", role="assistant", content=[OutputText(text)]),
        ],
    )


def asked(id: str, text: str = "well?") -> list[Item]:
    return [Message(id=f"in_{id}", role="user", content=[InputText(text)])]


def filled(*ids: str, **bounds: int) -> ResponseStore:
    """Responses that have nothing to do with each other."""
    store = ResponseStore(**bounds)
    for id in ids:
        store.put(response(id), asked(id))
    return store


def size_of_one() -> int:
    return filled("a").bytes


def test_what_is_kept() -> None:
    store = filled("a")
    kept = store.get("a")
    assert kept is not None
    assert kept.body == response("a").body
    assert kept.input == asked("a")
    assert [item.id for item in kept.items] == ["in_a", "rs_a", "msg_a"]
    assert store.get("b") is None
    assert store.item("rs_a") == response("a").output[0]
    assert store.item("in_a") == asked("a")[0]
    assert store.item("rs_b") is None


def test_a_conversation() -> None:
    store = filled("a")
    store.put(response("b", "a"), asked("b"))
    store.put(response("c", "b"), [])
    store.put(response("d", "b"), asked("d"))
    ids = [item.id for item in store.conversation("c")]
    assert ids == ["in_a", "rs_a", "msg_a", "in_b", "rs_b", "msg_b", "rs_c", "msg_c"]
    assert [item.id for item in store.conversation("d")][6:] == ["in_d", "rs_d", "msg_d"]
    assert store.conversation("c")[1:3] == response("a").output


def test_what_was_used_last_stays() -> None:
    store = filled("a", "b", "c", most=3)
    store.get("a")
    store.item("msg_b")
    store.put(response("d"), asked("d"))
    assert [store.get(id) is not None for id in "abcd"] == [True, True, False, True]
    assert store.item("msg_c") is None
    assert len(store) == 3


def test_bytes_are_bounded() -> None:
    one = size_of_one()
    store = filled("a", "b", "c", most_bytes=2 * one)
    assert [store.get(id) is not None for id in "abc"] == [False, True, True]
    assert store.bytes == 2 * one
    store.put(response("d", text="x" * 2 * one), asked("d"))
    assert store.get("d") is None and len(store) == 2  # it would have taken everybody's room
    store.put(response("e", text="x" * (one // 2)), asked("e"))
    assert [store.get(id) is not None for id in "bce"] == [False, False, True]


def test_the_end_of_a_conversation_goes_before_its_beginning() -> None:
    store = filled("a", "x", most=3)
    store.put(response("b", "a"), asked("b"))
    store.put(response("y"), asked("y"))
    assert [store.get(id) is not None for id in "axby"] == [True, False, True, True]
    store.get("y")
    store.put(response("z"), asked("z"))
    assert store.get("b") is None and store.get("a") is not None


def test_forgetting_one() -> None:
    store = filled("a", "x")
    store.put(response("b", "a"), asked("b"))
    before = store.bytes
    assert store.delete("a")
    assert not store.delete("a")
    assert store.bytes < before
    assert store.item("msg_a") is None
    for gone in ("a", "b"):
        with pytest.raises(ApiError) as raised:
            store.conversation(gone)
        error = raised.value
        assert (error.status, error.code, error.param) == (
            400,
            "previous_response_not_found",
            "previous_response_id",
        )
        assert "'a'" in error.message
    assert store.get("b") is not None
    assert store.delete("b") and store.delete("x")
    assert store.bytes == 0 and not store._homes


def test_an_id_is_not_taken_over() -> None:
    store = filled("a")
    forged = Message(id="msg_a", role="assistant", content=[OutputText("no")])
    store.put(response("b"), [forged])
    assert store.item("msg_a") == response("a").output[1]
    store.delete("b")
    assert store.item("msg_a") == response("a").output[1]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 12), st.integers(0, 400), st.booleans()), max_size=60))
def test_the_bounds_hold_whatever_happens(steps: list[tuple[int, int, int, bool]]) -> None:
    one = size_of_one()
    store = ResponseStore(most=5, most_bytes=4 * one)
    serial = 0
    for id, previous, size, delete in steps:
        if delete:
            store.delete(f"r{id}")
            continue
        serial += 1
        known = f"r{previous}" if store.get(f"r{previous}") is not None and previous < serial else None
        store.put(response(f"r{serial}", known, "x" * size), asked(f"r{serial}"))
        assert len(store) <= 5 and store.bytes <= 4 * one
        assert store.bytes == sum(kept.size for kept in store._kept.values())
        assert set(store._homes) == {item for kept in store._kept.values() for item in kept.item_ids}
