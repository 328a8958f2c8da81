import asyncio
import socket

import pytest

from bench.load.http import Connection, Lost, Pool, Target, UrlError, head, parse_url
from tests.bench.load.stub import Stub


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8000", Target("http", "127.0.0.1:8000", "127.0.0.1", 8000, "/v1")),
        ("http://a/v1/", Target("http", "a", "a", 80, "/v1")),
        ("https://a.b/openai", Target("https", "a.b", "a.b", 443, "/openai/v1")),
        ("http://[::1]:81", Target("http", "[::1]:81", "::1", 81, "/v1")),
    ],
)
def test_an_url_is_taken_apart(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a:99999"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UrlError):
        parse_url(url)


def test_a_head_lets_nothing_be_smuggled_in() -> None:
    target = parse_url("http://a")
    assert head(target, "GET", "/models", {"X-A": "1"}) == (
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nuser-agent: penstock-bench\r\nx-a: 1\r\n"
    )
    for name, value in (("X", "1\r\nY: 2"), ("X Y", "1"), ("X:", "1"), ("", "1")):
        with pytest.raises(UrlError):
            head(target, "GET", "/models", {name: value})


def test_an_exchange_and_the_next_over_the_same_connection() -> None:
    async def main(stub: Stub) -> None:
        pool, pieces = Pool(parse_url(stub.url)), list[bytes]()
        connection = await pool.take()
        request = head(pool.target, "GET", "/models", {}) + b"\r\n"
        for _ in range(2):
            reply = await connection.send(request, lambda data, now: pieces.append(data))
            assert (reply.status, reply.content_type, reply.whole) == (200, "application/json", True)
            pool.give(connection)
            assert await pool.take() is connection
        assert pieces == [b'{"data": [{"id": "stub"}]}'] * 2
        connection.close()
        pool.give(connection)
        other = await pool.take()
        assert other is not connection
        pool.give(other)
        pool.close()

    with Stub() as stub:
        asyncio.run(main(stub))


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"", "closed the connection"), (b"what is this\r\n\r\n", "is not HTTP"), (b"HTTP/1.1 200", "closed the conn")],
)
def test_no_answer(answer: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pool = Pool(parse_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        connection = await pool.connect()
        with pytest.raises(Lost, match=said):
            await connection.send(head(pool.target, "GET", "/", {}) + b"\r\n", lambda data, now: None)
        assert not connection.open
        server.close()

    asyncio.run(main())


def test_an_interim_answer_is_not_the_answer_and_an_end_without_length_ends_it() -> None:
    async def main() -> None:
        connection, pieces = Connection(), list[bytes]()
        transport = _Transport()
        connection.connection_made(transport)
        reply = connection.send(b"", lambda data, now: pieces.append(data))
        connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert not reply.done()
        connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nso ")
        connection.data_received(b"far")
        connection.connection_lost(None)
        assert (await reply).whole is False
        assert b"".join(pieces) == b"so far"

    asyncio.run(main())


class _Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        pass


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    async def main() -> None:
        with pytest.raises(Lost, match=r"no connection to nowhere\.invalid: Name or service not known"):
            await Pool(parse_url("http://nowhere.invalid")).take()

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux has it")
@pytest.mark.parametrize("quick", [True, False])
def test_what_comes_is_acknowledged_at_once_if_wanted(quick: bool) -> None:
    asked: list[int] = []

    class Socket:
        def setsockopt(self, level: int, option: int, value: int) -> None:
            asked.append(option)

    class Transport(asyncio.Transport):
        def abort(self) -> None:
            pass

    connection = Connection(quick)
    connection.connection_made(Transport({"socket": Socket()}))
    for piece in (b"HTTP/1.1 200 OK\r\n", b"content-length: 0\r\n\r\n"):
        connection.data_received(piece)
    assert asked.count(socket.TCP_NODELAY) == 1
    assert asked.count(socket.TCP_QUICKACK) == (3 if quick else 0)


def test_a_pool_makes_quick_connections() -> None:
    async def main(stub: Stub) -> None:
        pool = Pool(parse_url(stub.url), quick=True)
        connection = await pool.take()
        reply = await connection.send(head(pool.target, "GET", "/models", {}) + b"\r\n", lambda data, now: None)
        assert reply.status == 200
        assert connection._quick
        connection.close()

    with Stub() as stub:
        asyncio.run(main(stub))
