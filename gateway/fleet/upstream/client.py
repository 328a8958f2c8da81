"""How does the gateway ask an upstream something for itself? A GET or a POST, awaited."""

import asyncio
from typing import NamedTuple

from gateway.fleet.upstream.connection import Connection, Fault
from gateway.fleet.upstream.target import Target

_MOST: int = 8 << 20


class Reply(NamedTuple):
    status: int
    body: bytes


class _Awaited:
    """Gathers an answer for whoever awaits ``reply``."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._size = 0

    def on_data(self, connection: Connection, data: bytes, ended: bool) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self.reply.done():
            return
        if self._size > _MOST:
            connection.close()
            self.reply.set_exception(Fault("garbage", f"an answer of more than {_MOST >> 20} MiB"))
        elif ended:
            self.reply.set_result(Reply(connection.status, b"".join(self._parts)))

    def on_fault(self, connection: Connection, fault: Fault) -> None:
        if not self.reply.done():
            self.reply.set_exception(fault)


async def get(target: Target, path: str, timeout: float) -> Reply:
    """What ``target`` answers to a GET of ``path``, on a connection of its own: one that hangs is found out so.

    Raises:
        Fault: there is no answer, or not within ``timeout`` seconds.
    """
    return await _ask(Connection(target, once=True), "GET", path, b"connection: close\r\n", b"", timeout)


async def post(target: Target, path: str, body: bytes, timeout: float) -> Reply:
    """What ``target`` answers to JSON that is sent to ``path``, on one of its connections.

    Raises:
        Fault: there is no answer, or not within ``timeout`` seconds.
    """
    headers = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return await _ask(target.connection(), "POST", path, headers, body, timeout)


async def _ask(connection: Connection, method: str, path: str, headers: bytes, body: bytes, timeout: float) -> Reply:
    awaited = _Awaited()
    connection.send(b"%b%baccept: */*\r\n\r\n" % (connection.target.head(method, path), headers), body, awaited)
    try:
        async with asyncio.timeout(timeout):
            return await awaited.reply
    except TimeoutError:
        raise Fault("timeout", f"no answer to {path} within {timeout:g} s") from None
    finally:
        if method == "GET" or not awaited.reply.done() or awaited.reply.exception() is not None:
            connection.close()
