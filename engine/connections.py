"""Who is connected to this worker, and what do they send and get?

The worker is one thread: between two steps it looks, without waiting, at what came in; when it has nothing to compute
it sleeps here until something does. No message waits for a thread switch, and an abort takes effect before the next
step is planned. Only `Connections.beat` and `Connections.read_ahead` are called from another thread, because a step may
take seconds, and gateways must see all the same that the process lives, and what each other has sent it.

Whoever comes over a socket with TLS or a secret is a stranger until both are dealt with, and gets and is told nothing.
"""

import contextlib
import hmac
import logging
import os
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine.link import (
    Challenge,
    FrameReader,
    LinkError,
    Proof,
    ToGateway,
    ToWorker,
    Welcome,
    decode_to_worker,
    frame,
    parse_address,
    proof_of_gateway,
    proof_of_worker,
)
from engine.options import WorkerOptions

_READ_SIZE: Final = 256 * 1024
# A gateway that reads nothing while this much waits for it has stalled: it is cut off, so that memory stays bounded.
_UNSENT_LIMIT: Final = 64 * 1024 * 1024
_STRANGERS: Final = 64
_STRANGER_SECONDS: Final = 10.0
_STRANGER_BYTES: Final = 4096
_NONCE: Final = 32
_MOST_AHEAD: Final = 4096  # messages that are read while the worker computes; more of them wait in their sockets
# When what was sent has gone unacknowledged for so long, the other host is gone: its requests are given up.
_DEAD_AFTER: Final = 15.0

log = logging.getLogger(__name__)


class Connection:
    """One gateway process. ``uids`` maps the ids that it gave its live requests to the scheduler's."""

    __slots__ = ("inbox", "nonce", "open", "peer", "reader", "received", "since", "sock", "trusted", "uids", "unsent")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.reader = FrameReader()
        self.uids: dict[int, int] = {}
        # What `Connections.read_ahead` has taken in, and the fault at its end if there is one.
        self.inbox: deque[ToWorker | LinkError] = deque()
        self.unsent = bytearray()
        self.open = True
        self.trusted = False
        self.nonce = b""
        self.since = time.monotonic()
        self.received = 0

    def receive(self) -> bytes | None:
        """What has come: None is nothing yet, and empty that the other side has gone."""
        try:
            return self.sock.recv(_READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            return b""

    def transmit(self, data: bytes | bytearray) -> int | None:
        """How many bytes the socket took; None: the other side has gone."""
        try:
            return self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            return None

    @property
    def holds_more(self) -> bool:
        """Whether TLS has decrypted what a selector can't see any more."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0


class Connections:
    """The listening socket and everybody who came through it.

    Only safe to use from one thread, `beat` and `read_ahead` excepted.
    """

    def __init__(self, address: str, *, secret: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        """Listen on ``address``: to whoever may open the Unix socket, or who proves to know the ``secret``.

        Raises:
            OSError: the address can't be listened on.
            ValueError: this is no address, or one of TCP without a secret.
        """
        kind, where = parse_address(address)
        self._path: Path | None = None
        self._secret = secret
        self._tls = tls
        if isinstance(where, str):
            self._path = Path(where)
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(where)
            os.chmod(where, 0o600)
            self._listener.listen()
        elif not secret:
            raise ValueError(f"{address!r}: a worker that others can reach needs a secret; name it with --secret-env")
        else:
            family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
            self._listener = socket.create_server(where, family=family)
        self.address = address if kind == "unix" else _tcp_address(self._listener)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._strangers: list[Connection] = []
        self._lock = threading.RLock()
        self._away = self._ahead = False
        self.alive: list[Connection] = []
        self.closed: list[Connection] = []
        self.arrived: list[Connection] = []

    def fileno(self) -> int:
        """Becomes readable when `poll` has something to do: for whoever waits in an event loop."""
        return self._selector.fileno()

    def wake_on(self, descriptor: int) -> None:
        """Let `poll` return early when this descriptor becomes readable too."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def poll(self, timeout: float) -> Iterator[tuple[Connection, ToWorker]]:
        """Wait up to ``timeout`` seconds, then yield what came in.

        Newcomers are appended to ``arrived``, those who left to ``closed``; the caller empties both lists.
        """
        if self._ahead:
            self._ahead, timeout = False, 0.0
            for connection in list(self.alive):
                yield from self._take_out(connection)
        for key, mask in self._selector.select(timeout):
            connection = key.data
            if key.fileobj is self._listener:
                self._accept_all()
            elif isinstance(connection, Connection):
                if not connection.trusted:
                    self._get_to_know(connection)
                    continue
                if mask & selectors.EVENT_WRITE:
                    self._flush(connection)
                if mask & selectors.EVENT_READ and connection.open:
                    yield from self._read(connection)
        if self._strangers:
            self._send_strangers_away()

    def accept_waiting(self) -> None:
        """Take everybody who knocks and may come in, and read nothing else yet."""
        self._accept_all()
        if self._strangers:
            for key, _ in self._selector.select(0):
                if isinstance(key.data, Connection) and not key.data.trusted:
                    self._get_to_know(key.data)

    def send(self, connection: Connection, message: ToGateway) -> None:
        """Send ``message`` without ever waiting; what the socket doesn't take now follows later."""
        self._send(connection, frame(message))

    def beat(self, data: bytes | bytearray) -> None:
        """Send a frame to everybody whose socket has room: a sign of life, from whatever thread."""
        with self._lock:
            for connection in self.alive:
                if not connection.unsent:
                    self._transmit(connection, data)

    def away(self, away: bool) -> None:
        """Say that the thread that polls computes now, or that it is back: meanwhile `read_ahead` may read."""
        with self._lock:
            self._away = away

    def read_ahead(self) -> list[ToWorker]:
        """All that has come while the worker computes, from another thread; `poll` will yield it next, in its order.

        Empty where the worker doesn't compute: then it reads itself.
        """
        with self._lock:
            if not self._away:
                return []
            for connection in self.alive:
                if connection.open:
                    self._take_in(connection)
            return [one for connection in self.alive for one in connection.inbox if not isinstance(one, LinkError)]

    def close(self, linger: float = 1.0) -> None:
        """Send what is still unsent, within ``linger`` seconds, and close everything."""
        for connection in list(self.alive):
            if connection.unsent:
                try:
                    connection.sock.settimeout(linger)
                    connection.sock.sendall(connection.unsent)
                except OSError:
                    log.warning("a gateway left before its last messages reached it")
            self._close(connection)
        for connection in list(self._strangers):
            self._close(connection)
        self._selector.close()
        self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _accept_all(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                _watch_over(sock)
            if len(self._strangers) >= _STRANGERS:
                sock.close()
                continue
            if self._tls is not None:
                try:
                    sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                except OSError:  # it has left already
                    continue
            connection = Connection(sock, peer[0] if peer else "this host")
            self._selector.register(sock, selectors.EVENT_READ, connection)
            if self._tls is None and not self._secret:
                self._trust(connection)
                continue
            self._strangers.append(connection)
            if self._tls is None:
                self._challenge(connection)

    def _trust(self, connection: Connection) -> None:
        connection.trusted = True
        with self._lock:
            self.alive.append(connection)
        self.arrived.append(connection)

    def _get_to_know(self, connection: Connection) -> None:
        """Go on with TLS' handshake, or look at what is to prove that the secret is known."""
        if isinstance(connection.sock, ssl.SSLSocket) and not connection.nonce:
            if self._shake_hands(connection, connection.sock):
                self._challenge(connection)
            return
        data = connection.receive()
        if data is None:
            return
        connection.received += len(data)
        try:
            if not data or connection.received > _STRANGER_BYTES:
                raise LinkError("it left" if not data else "it sent too much")
            for payload in connection.reader.feed(data):
                self._admit(connection, decode_to_worker(payload))
        except LinkError as error:
            log.warning("turned %s away: %s", connection.peer, error)
            self._close(connection)

    def _shake_hands(self, connection: Connection, sock: ssl.SSLSocket) -> bool:
        """Whether TLS' handshake is over."""
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(sock, selectors.EVENT_READ, connection)
            return False
        except ssl.SSLWantWriteError:
            self._selector.modify(sock, selectors.EVENT_WRITE, connection)
            return False
        except OSError as error:
            log.warning("turned %s away: %s", connection.peer, error)
            self._close(connection)
            return False
        self._selector.modify(sock, selectors.EVENT_READ, connection)
        return True

    def _challenge(self, connection: Connection) -> None:
        connection.nonce = secrets.token_bytes(_NONCE)
        if self._secret:
            self._transmit(connection, frame(Challenge(connection.nonce)))
        else:
            self._strangers.remove(connection)
            self._trust(connection)

    def _admit(self, connection: Connection, message: ToWorker) -> None:
        """Let a stranger in whose proof is right.

        Raises:
            LinkError: it isn't, or there is none.
        """
        if not isinstance(message, Proof) or connection.trusted:
            raise LinkError("it said something else before it proved that it knows the secret")
        mine = proof_of_gateway(self._secret, connection.nonce, message.nonce)
        if len(message.nonce) != _NONCE or not hmac.compare_digest(mine, message.proof):
            raise LinkError("it doesn't know the secret (--secret-env here, --worker-secret-env there)")
        self._strangers.remove(connection)
        self.send(connection, Welcome(proof_of_worker(self._secret, connection.nonce, message.nonce)))
        self._trust(connection)

    def _send_strangers_away(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._strangers if now - one.since > _STRANGER_SECONDS]:
            log.warning("turned %s away: it did not prove in %g s who it is", connection.peer, _STRANGER_SECONDS)
            self._close(connection)

    def _send(self, connection: Connection, data: bytearray) -> None:
        with self._lock:
            if not connection.open:
                return
            if connection.unsent:
                connection.unsent += data
                if len(connection.unsent) > _UNSENT_LIMIT:
                    log.error("a gateway reads nothing: closing its connection")
                    self._close(connection)
            elif not self._transmit(connection, data):
                self._close(connection)

    def _transmit(self, connection: Connection, data: bytes | bytearray) -> bool:
        """Send what the socket takes now, and keep the rest; False: the other side has gone."""
        sent = connection.transmit(data)
        if sent is None:
            return False
        if sent < len(data):
            connection.unsent += data[sent:]
            self._selector.modify(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        return True

    def _read(self, connection: Connection) -> Iterator[tuple[Connection, ToWorker]]:
        while connection.open:
            with self._lock:
                data = connection.receive()
            if data is None:
                return
            if not data:
                self._close(connection)
                return
            try:
                for payload in connection.reader.feed(data):
                    yield connection, decode_to_worker(payload)
            except LinkError as error:
                log.error("closing a connection: %s", error)
                self._close(connection)
            if not connection.holds_more:
                return

    def _take_in(self, connection: Connection) -> None:
        """Put what a connection has brought into its inbox. That it has ended is for `poll` to see."""
        inbox = connection.inbox
        if inbox and isinstance(inbox[-1], LinkError):
            return
        while len(inbox) < _MOST_AHEAD and (data := connection.receive()):
            self._ahead = True
            try:
                inbox.extend(map(decode_to_worker, connection.reader.feed(data)))
            except LinkError as error:
                inbox.append(error)
                return
            if not connection.holds_more:
                return

    def _take_out(self, connection: Connection) -> Iterator[tuple[Connection, ToWorker]]:
        """Yield what was read ahead of a connection."""
        while connection.inbox and connection.open:
            message = connection.inbox.popleft()
            if isinstance(message, LinkError):
                log.error("closing a connection: %s", message)
                self._close(connection)
            else:
                yield connection, message

    def _flush(self, connection: Connection) -> None:
        with self._lock:
            sent = connection.transmit(connection.unsent)
            if sent is None:
                self._close(connection)
                return
            del connection.unsent[:sent]
            if not connection.unsent:
                self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _close(self, connection: Connection) -> None:
        with self._lock:
            if not connection.open:
                return
            connection.open = False
            self._selector.unregister(connection.sock)
            connection.sock.close()
            if connection.trusted:
                self.alive.remove(connection)
                self.closed.append(connection)
            else:
                self._strangers.remove(connection)


def listen(options: WorkerOptions) -> Connections:
    """Listen as a worker's options say.

    Raises:
        OSError: the address can't be listened on, or a file of TLS' can't be read.
        ValueError: the secret isn't set, or an address that others can reach has none.
    """
    return Connections(options.listen, secret=_secret(options), tls=_tls(options))


def _secret(options: WorkerOptions) -> bytes:
    """What gateways must know: the value of the environment variable that the options name.

    Raises:
        ValueError: it isn't set.
    """
    if options.secret_env is None:
        return b""
    secret = os.environ.get(options.secret_env, "")
    if not secret:
        raise ValueError(f"--secret-env {options.secret_env}: this environment variable is empty or not set")
    return secret.encode()


def _tls(options: WorkerOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        return None
    try:
        return server_tls(options.tls_cert, options.tls_key)
    except OSError as error:
        raise OSError(f"--tls-cert {options.tls_cert}, --tls-key {options.tls_key}: {error}") from error


def server_tls(cert: str, key: str | None) -> ssl.SSLContext:
    """TLS for a worker with this certificate (PEM, with its chain) and key.

    Raises:
        OSError: a file can't be read, or isn't what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def _watch_over(sock: socket.socket) -> None:
    """Send at once what is to be sent, and notice within seconds when the other host has gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": int(_DEAD_AFTER * 1000)}
    for name, value in options.items():
        with contextlib.suppress(AttributeError, OSError):  # Linux' names
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _tcp_address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
