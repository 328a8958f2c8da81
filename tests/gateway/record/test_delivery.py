"""`gateway.record.delivery`: the last of an answer waits for its record, and nothing else does."""

import pytest

from gateway.record.delivery import Delivery


class Client:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def write(self, data: bytes) -> None:
        self.heard.append(data)

    def done(self, close: bool) -> None:
        self.heard.append(close)

    def abort(self) -> None:
        self.heard.append("abort")


def test_only_the_last_is_held_back() -> None:
    client = Client()
    delivery = Delivery(client)
    delivery.write(b"a")
    delivery.hold()
    delivery.write(b"b")
    delivery.write(b"c")
    delivery.done(False)
    assert client.heard == [b"a"]
    delivery.release(True)
    assert client.heard == [b"a", b"bc", False]


def test_the_record_may_be_written_first() -> None:
    client = Client()
    delivery = Delivery(client)
    delivery.hold()
    delivery.write(b"a")
    delivery.release(False)
    delivery.hold()  # too late to hold anything
    delivery.write(b"b")
    assert client.heard == [b"a", b"b"]
    delivery.done(True)
    delivery.release(True)
    assert client.heard == [b"a", b"b", True]


@pytest.mark.parametrize("before", [False, True])
def test_it_may_be_broken_off(before: bool) -> None:
    client = Client()
    delivery = Delivery(client)
    delivery.hold()
    delivery.write(b"a")
    if before:
        delivery.release(True)
    delivery.abort()
    assert client.heard == ([b"a", "abort"] if before else [])
    delivery.release(True)
    assert client.heard == [b"a", "abort"]


def test_who_has_left_hears_nothing() -> None:
    client = Client()
    delivery = Delivery(client)
    delivery.hold()
    delivery.write(b"a")
    delivery.done(False)
    delivery.leave()
    delivery.release(True)
    delivery.write(b"b")
    assert client.heard == []


@pytest.mark.parametrize("complete", [False, True])
def test_nothing_follows_where_nothing_may(complete: bool) -> None:
    client = Client()
    delivery = Delivery(client)
    delivery.hold()
    if complete:
        delivery.done(False)
    delivery.close_after()
    if not complete:
        delivery.done(True)  # the exchange knows it as well
    delivery.release(True)
    assert client.heard == [True]
