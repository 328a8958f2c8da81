import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import connections as module
from engine.connections import Connection, Connections
from engine.link import Abort, Failed, FrameReader, Progress, Sampling, Submit, ToGateway, decode_to_gateway, frame


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Connections]:
    server = Connections(f"unix:{tmp_path}/w.sock")
    yield server
    server.close()


def connect(server: Connections) -> tuple[socket.socket, Connection]:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(server._path))
    assert list(server.poll(1)) == []
    return client, server.arrived.pop()


def receive(client: socket.socket, count: int) -> list[ToGateway]:
    reader, seen = FrameReader(), list[ToGateway]()
    while len(seen) < count:
        seen += [decode_to_gateway(payload) for payload in reader.feed(client.recv(1 << 20))]
    return seen


def test_messages_go_both_ways(server: Connections) -> None:
    client, connection = connect(server)
    submit = Submit(1, b"\1\0\0\0", Sampling(max_tokens=3))
    client.sendall(frame(submit) + frame(Abort([1])))
    assert list(server.poll(1)) == [(connection, submit), (connection, Abort([1]))]
    server.send(connection, Failed(1, "internal", "no"))
    assert receive(client, 1) == [Failed(1, "internal", "no")]
    client.close()


def test_two_gateways_are_told_apart(server: Connections) -> None:
    (first, one), (second, two) = connect(server), connect(server)
    second.sendall(frame(Abort([7])))
    assert list(server.poll(1)) == [(two, Abort([7]))]
    assert server.alive == [one, two]
    first.close()
    second.close()


def test_who_leaves_is_listed_once(server: Connections) -> None:
    client, connection = connect(server)
    client.close()
    assert list(server.poll(1)) == []
    assert (server.closed, server.alive) == ([connection], [])
    server.send(connection, Progress("nobody hears this"))
    assert server.closed == [connection]


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x01\0\0\0\xc1"])
def test_garbage_closes_the_connection_and_no_other(server: Connections, garbage: bytes) -> None:
    (bad, bad_end), (good, good_end) = connect(server), connect(server)
    bad.sendall(garbage)
    assert list(server.poll(1)) == []
    assert server.closed == [bad_end]
    good.sendall(frame(Abort([1])))
    assert list(server.poll(1)) == [(good_end, Abort([1]))]
    good.close()
    bad.close()


def test_what_the_socket_does_not_take_follows_in_order(server: Connections) -> None:
    client, connection = connect(server)
    sent: list[ToGateway] = [Failed(number, "internal", "x" * 50_000) for number in range(40)]
    for message in sent:
        server.send(connection, message)
    assert connection.unsent, "the test must fill the socket's buffer"
    seen: list[ToGateway] = []
    reader = threading.Thread(target=lambda: seen.extend(receive(client, len(sent))))
    reader.start()
    for _ in range(10_000):
        if not connection.unsent:
            break
        list(server.poll(0.1))
    reader.join(10)
    assert seen == sent
    client.close()


def test_a_gateway_that_reads_nothing_is_cut_off(server: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNSENT_LIMIT", 1 << 20)
    client, connection = connect(server)
    for number in range(100):
        server.send(connection, Failed(number, "internal", "x" * 50_000))
    assert server.closed == [connection]
    client.close()


def test_closing_delivers_what_was_unsent(tmp_path: Path) -> None:
    server = Connections(f"unix:{tmp_path}/w.sock")
    client, connection = connect(server)
    for number in range(20):
        server.send(connection, Failed(number, "internal", "x" * 50_000))
    seen: list[ToGateway] = []
    reader = threading.Thread(target=lambda: seen.extend(receive(client, 20)))
    reader.start()
    server.close()
    reader.join(10)
    assert len(seen) == 20
    assert not (tmp_path / "w.sock").exists()
    client.close()


def test_a_socket_left_behind_is_replaced_and_private(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    Connections(f"unix:{path}")._listener.close()
    again = Connections(f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    again.close()


def test_only_unix_sockets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unix socket"):
        Connections("tcp://127.0.0.1:1")
