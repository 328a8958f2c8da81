"""Who is connected to this worker, and what do they send and get?

The worker is one thread: between two steps it looks, without waiting, at what came in; when it has nothing to compute
it sleeps here until something does. No message waits for a thread switch, and an abort takes effect before the next
step is planned.
"""

import logging
import os
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

from engine.link import (
    Abort,
    Drain,
    FrameReader,
    LinkError,
    Submit,
    ToGateway,
    ToWorker,
    decode_to_worker,
    frame,
    parse_address,
)

_READ_SIZE = 256 * 1024
# A gateway that reads nothing while this much waits for it has stalled: it is cut off, so that memory stays bounded.
_UNSENT_LIMIT = 64 * 1024 * 1024

log = logging.getLogger(__name__)


class Connection:
    """One gateway process. ``uids`` maps the ids that it gave its live requests to the scheduler's."""

    __slots__ = ("open", "reader", "sock", "uids", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = FrameReader()
        self.uids: dict[int, int] = {}
        self.unsent = bytearray()
        self.open = True


class Connections:
    """The listening socket and everybody who came through it.

    Only safe to use from one thread.
    """

    def __init__(self, address: str) -> None:
        """Listen on ``address``.

        Raises:
            OSError: the address can't be listened on.
            ValueError: the address isn't a Unix socket's.
        """
        kind, path = parse_address(address)
        if kind != "unix" or not isinstance(path, str):
            raise ValueError(f"{address!r}: a worker listens on a Unix socket")
        self._path = Path(path)
        self._path.unlink(missing_ok=True)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.alive: list[Connection] = []
        self.closed: list[Connection] = []
        self.arrived: list[Connection] = []

    def wake_on(self, descriptor: int) -> None:
        """Let `poll` return early when this descriptor becomes readable too."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def poll(self, timeout: float) -> Iterator[tuple[Connection, ToWorker]]:
        """Wait up to ``timeout`` seconds, then yield what came in.

        Newcomers are appended to ``arrived``, those who left to ``closed``; the caller empties both lists.
        """
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self.accept_waiting()
            elif isinstance(key.data, Connection):
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if mask & selectors.EVENT_READ and key.data.open:
                    yield from self._read(key.data)

    def accept_waiting(self) -> None:
        """Take everybody who knocks, and read nothing yet."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            connection = Connection(sock)
            self._selector.register(sock, selectors.EVENT_READ, connection)
            self.alive.append(connection)
            self.arrived.append(connection)

    def send(self, connection: Connection, message: ToGateway) -> None:
        """Send ``message`` without ever waiting; what the socket doesn't take now follows later."""
        if not connection.open:
            return
        data = frame(message)
        if connection.unsent:
            connection.unsent += data
            if len(connection.unsent) > _UNSENT_LIMIT:
                log.error("a gateway reads nothing: closing its connection")
                self._close(connection)
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent < len(data):
            connection.unsent += data[sent:]
            self._selector.modify(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

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
        self._selector.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _read(self, connection: Connection) -> Iterator[tuple[Connection, ToWorker]]:
        try:
            data = connection.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        try:
            for payload in connection.reader.feed(data):
                message = decode_to_worker(payload)
                if isinstance(message, Submit | Abort | Drain):
                    yield connection, message
        except LinkError as error:
            log.error("closing a connection: %s", error)
            self._close(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        del connection.unsent[:sent]
        if not connection.unsent:
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _close(self, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self.alive.remove(connection)
        self.closed.append(connection)
