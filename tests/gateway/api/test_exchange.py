"""One request and its answer, on bare ASGI."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from gateway.api.exchange import ClientGone, Exchange, Message
from gateway.wire import errors
from tests.gateway.harness import run


class Wire:
    """Hands out messages and notes what is sent."""

    def __init__(self, *received: Message) -> None:
        self.received = list(received)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.received:
            await asyncio.Event().wait()
        return self.received.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def exchange(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> Exchange:
        scope = {"type": "http", "method": "POST", "path": "/x", "headers": list(headers)}
        return Exchange(scope, self.receive, self.send)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


@pytest.mark.parametrize("parts", [[b"abc"], [b"a", b"bc"], [b"", b"a", b"", b"bc", b""]])
def test_a_body_in_any_parts(parts: list[bytes]) -> None:
    wire = Wire(*(part(data, index < len(parts) - 1) for index, data in enumerate(parts)))
    assert run(wire.exchange().body(3)) == b"abc"


def test_a_body_that_claims_too_much_is_not_read() -> None:
    wire = Wire(part(b"x" * 10))
    with pytest.raises(errors.ApiError, match="has 4 bytes; this server accepts 3") as refused:
        run(wire.exchange([(b"content-length", b"4")]).body(3))
    assert refused.value.status == 413
    assert len(wire.received) == 1


def test_a_body_without_a_length_is_read_up_to_the_limit() -> None:
    wire = Wire(part(b"xx", True), part(b"xx", True), part(b"never read"))
    with pytest.raises(errors.ApiError, match="accepts 3 bytes") as refused:
        run(wire.exchange().body(3))
    assert refused.value.status == 413
    assert len(wire.received) == 1


def test_a_client_that_leaves_within_the_body() -> None:
    with pytest.raises(ClientGone):
        run(Wire(part(b"x", True), GONE).exchange().body(10))


def test_gone_waits_for_the_client_to_leave() -> None:
    run(Wire(part(b""), GONE).exchange().gone())


@pytest.mark.parametrize("id", ["abc", "A-Z_0.9:x/y=", "x" * 128])
def test_a_sane_request_id_is_kept(id: str) -> None:
    assert Wire().exchange([(b"x-request-id", id.encode())]).request_id == id


@pytest.mark.parametrize("id", [b"", b"x" * 129, b"a b", b'a"b', b"caf\xc3\xa9", b"a\x01"])
def test_another_request_id_is_replaced(id: bytes) -> None:
    one, two = (Wire().exchange([(b"x-request-id", id)]).request_id for _ in range(2))
    assert one != two
    assert one.startswith("req-")


def test_a_whole_answer() -> None:
    wire = Wire()
    exchange = wire.exchange([(b"x-request-id", b"me")])
    run(exchange.reply(201, b"{}", headers={"retry-after": "3"}))
    start, body = wire.sent
    assert start["status"] == exchange.status == 201
    assert wire.headers == {
        b"content-type": b"application/json",
        b"content-length": b"2",
        b"x-request-id": b"me",
        b"x-penstock-variant": b"default",
        b"retry-after": b"3",
    }
    assert (body["body"], body["more_body"]) == (b"{}", False)


def test_a_streamed_answer() -> None:
    wire = Wire()
    exchange = wire.exchange()

    async def scenario() -> None:
        await exchange.start_stream()
        await exchange.send(b"data: 1\n\n")
        await exchange.end(b"data: [DONE]\n\n")

    run(scenario())
    assert b"content-length" not in wire.headers
    assert [(message["body"], message["more_body"]) for message in wire.sent[1:]] == [
        (b"data: 1\n\n", True),
        (b"data: [DONE]\n\n", False),
    ]


def test_failing_before_within_and_after_an_answer() -> None:
    async def scenario() -> None:
        before = Wire()
        await before.exchange().fail(errors.unavailable("no", 2))
        assert before.sent[0]["status"] == 503
        assert before.headers[b"retry-after"] == b"2"

        within = Wire()
        exchange = within.exchange()
        await exchange.start_stream()
        await exchange.fail(errors.unavailable("no"))
        assert within.sent[-1]["body"].startswith(b"event: error\ndata: {")
        assert within.sent[-1]["more_body"] is False
        assert exchange.status == 200

        await exchange.fail(errors.unavailable("again"))
        assert len(within.sent) == 2

    run(scenario())


def test_too_large_is_said_before_the_rest_is_dropped() -> None:
    wire = Wire(part(b"x", True), part(b"x", True), part(b"x"))
    run(wire.exchange().fail(errors.request_too_large(1)))
    assert wire.headers[b"connection"] == b"close"
    assert [message.get("more_body") for message in wire.sent] == [None, True, False]
    assert wire.received == []


def test_the_rest_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.exchange._LINGER", 0.01)
    wire = Wire(part(b"x", True))
    run(wire.exchange().fail(errors.request_too_large(1)))
    assert wire.sent[-1]["more_body"] is False


@pytest.mark.parametrize("parts", [[b"abc"], [b"a", b"bc"], [b"", b"a", b"", b"bc", b""]])
def test_a_body_piece_by_piece(parts: list[bytes]) -> None:
    wire = Wire(*(part(data, index < len(parts) - 1) for index, data in enumerate(parts)))

    async def scenario() -> list[bytes]:
        return [piece async for piece in wire.exchange().parts(3)]

    assert run(scenario()) == parts


def test_pieces_have_a_limit_and_a_client() -> None:
    async def scenario(exchange: Exchange) -> bytes:
        return b"".join([piece async for piece in exchange.parts(3)])

    claimed = Wire(part(b"x" * 4))
    with pytest.raises(errors.ApiError, match="has 4 bytes"):
        run(scenario(claimed.exchange([(b"content-length", b"4")])))
    assert len(claimed.received) == 1
    with pytest.raises(errors.ApiError, match="accepts 3 bytes"):
        run(scenario(Wire(part(b"xx", True), part(b"xx", True)).exchange()))
    with pytest.raises(ClientGone):
        run(scenario(Wire(part(b"x", True), GONE).exchange()))


def test_a_download() -> None:
    wire = Wire()
    exchange = wire.exchange()

    async def scenario() -> None:
        await exchange.start_download(3, b"text/plain", {"content-disposition": "attachment"})
        await exchange.send(b"ab")
        await exchange.end(b"c")

    run(scenario())
    assert (wire.headers[b"content-length"], wire.headers[b"content-type"]) == (b"3", b"text/plain")
    assert wire.headers[b"content-disposition"] == b"attachment"
    assert b"".join(message["body"] for message in wire.sent[1:]) == b"abc"
    assert exchange.complete
