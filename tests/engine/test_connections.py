import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import connections as module
from engine.connections import Connection, Connections, server_tls
from engine.link import (
    Abort,
    Challenge,
    Failed,
    FrameReader,
    Progress,
    Proof,
    Sampling,
    Submit,
    ToGateway,
    ToWorker,
    Welcome,
    decode_to_gateway,
    frame,
    parse_address,
    proof_of_gateway,
    proof_of_worker,
)


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


def test_tcp_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        Connections("tcp://127.0.0.1:1")


SECRET = b"between us"


class Guarded:
    """A server on TCP with a secret, and a client of it, which blocks."""

    def __init__(self, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None) -> None:
        self.server = Connections("tcp://127.0.0.1:0", secret=SECRET, tls=tls[0] if tls else None)
        _, where = parse_address(self.server.address)
        assert not isinstance(where, str)
        self.client = socket.create_connection(where)
        self.client.settimeout(10)
        self.reader = FrameReader()
        if tls:
            with self.polling():
                self.client = tls[1].wrap_socket(self.client, server_hostname="127.0.0.1")

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.server.close()

    @contextlib.contextmanager
    def polling(self) -> Iterator[None]:
        """Let the server work beside what blocks here."""
        ended = threading.Event()

        def poll() -> None:
            while not ended.is_set():
                assert list(self.server.poll(0.01)) == []

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def next(self) -> ToGateway | None:
        """What the server says next; None: it has closed the connection."""
        with self.polling():
            while True:
                data = self.client.recv(1 << 16)
                if not data:
                    return None
                for payload in self.reader.feed(data):
                    return decode_to_gateway(payload)

    def prove(self, secret: bytes) -> bytes:
        """Answer the challenge; the nonces, in their order."""
        challenge = self.next()
        assert isinstance(challenge, Challenge)
        mine = bytes(32)
        self.client.sendall(frame(Proof(mine, proof_of_gateway(secret, challenge.nonce, mine))))
        return challenge.nonce


def test_who_knows_the_secret_is_let_in_and_told_that_we_know_it_too() -> None:
    with Guarded() as guarded:
        nonce = guarded.prove(SECRET)
        assert guarded.next() == Welcome(proof_of_worker(SECRET, nonce, bytes(32)))
        (connection,) = guarded.server.arrived
        assert guarded.server.alive == [connection]
        guarded.client.sendall(frame(Abort([3])))
        assert list(guarded.server.poll(1)) == [(connection, Abort([3]))]
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_does_not_know_it_hears_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Guarded() as guarded:
        guarded.prove(b"a guess")
        assert guarded.next() is None
        assert (guarded.server.alive, guarded.server.arrived, guarded.server.closed) == ([], [], [])
    assert "turned 127.0.0.1 away: it doesn't know the secret" in caplog.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame(Abort([1])), "something else before"),
        (b"junk" * 2000, "too much"),
        (b"\x04\0\0\0junk", "not a message"),
        (frame(Proof(b"", proof_of_gateway(SECRET, b"", b""))), "doesn't know"),
    ],
)
def test_who_says_something_else_is_turned_away(data: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with Guarded() as guarded:
        assert isinstance(guarded.next(), Challenge)
        guarded.client.sendall(data)
        with contextlib.suppress(ConnectionError):
            assert guarded.next() is None
    assert said in caplog.text


def test_who_says_nothing_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRANGER_SECONDS", 0.05)
    with Guarded() as guarded:
        assert isinstance(guarded.next(), Challenge)
        assert guarded.next() is None


def test_strangers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRANGERS", 1)
    with Guarded() as guarded:
        assert isinstance(guarded.next(), Challenge)
        with socket.create_connection(guarded.client.getpeername()) as second, guarded.polling():
            second.settimeout(10)
            assert second.recv(1) == b""


def test_a_proof_is_read_while_nothing_else_is() -> None:
    with Guarded() as guarded:
        guarded.prove(SECRET)
        while not guarded.server.arrived:
            guarded.server.accept_waiting()
        assert isinstance(guarded.next(), Welcome)


def test_over_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    client = ssl.create_default_context(cafile=str(cert))
    with Guarded((server_tls(str(cert), str(key)), client)) as guarded:
        guarded.prove(SECRET)
        assert isinstance(guarded.next(), Welcome)
        (connection,) = guarded.server.arrived
        large = Submit(1, bytes(300_000), Sampling(max_tokens=1))
        guarded.client.sendall(frame(large))
        seen: list[object] = []
        while not seen:
            seen += guarded.server.poll(1)
        assert seen == [(connection, large)]
        guarded.server.send(connection, Failed(1, "internal", "x" * 5_000_000))
        answer = guarded.next()
        assert isinstance(answer, Failed) and len(answer.message) == 5_000_000


def test_what_is_no_tls_is_turned_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = certificate(tmp_path)
    with Guarded() as guarded:
        guarded.server._tls = server_tls(str(cert), str(key))
        with socket.create_connection(guarded.client.getpeername()) as plain:
            plain.settimeout(10)
            plain.sendall(frame(Abort([1])))
            with guarded.polling(), contextlib.suppress(ConnectionError):
                while plain.recv(100):
                    pass
    assert "turned 127.0.0.1 away" in caplog.text


def test_a_beat_reaches_everybody(server: Connections) -> None:
    (first, _), (second, _) = connect(server), connect(server)
    beat = frame(Progress("alive"))
    thread = threading.Thread(target=server.beat, args=(beat,))
    thread.start()
    thread.join()
    for client in (first, second):
        assert receive(client, 1) == [Progress("alive")]
        client.close()


def test_what_comes_while_the_worker_computes_is_read_ahead_and_yielded_in_its_order(server: Connections) -> None:
    (first, one), (second, two) = connect(server), connect(server)
    submits = [Submit(number, b"\1\0\0\0", Sampling(max_tokens=3)) for number in range(3)]
    first.sendall(frame(submits[0]))
    assert server.read_ahead() == [], "nobody computes: the worker reads itself"
    server.away(True)
    found: list[ToWorker] = []
    while len(found) < 1:
        found = server.read_ahead()
    first.sendall(frame(submits[1]))
    second.sendall(frame(submits[2])[:7])
    while len(found) < 2:
        found = server.read_ahead()
    assert found == submits[:2]
    second.sendall(frame(submits[2])[7:] + b"\x04\0\0\0junk")
    while len(found) < 3:
        found = server.read_ahead()
    first.sendall(frame(Abort([0])))
    first.close()
    server.away(False)
    assert server.read_ahead() == []
    expected = [(one, submits[0]), (one, submits[1]), (two, submits[2]), (one, Abort([0]))]
    seen: list[tuple[Connection, ToWorker]] = []
    while len(server.closed) < 2:
        seen += server.poll(1)
    assert seen == expected
    second.close()


def test_no_more_than_so_much_is_read_ahead(server: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_AHEAD", 2)
    client, _ = connect(server)
    server.away(True)
    for number in range(4):
        client.sendall(frame(Abort([number])))
        while number < 2 and len(server.read_ahead()) <= number:
            pass
    assert server.read_ahead() == [Abort([0]), Abort([1])]
    server.away(False)
    assert [message for _, message in server.poll(1)] == [Abort([number]) for number in range(4)]
    client.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=worker", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
