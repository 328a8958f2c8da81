"""A network that can be harmed: a proxy before whatever listens on TCP, in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.link import parse_address


class Wire:
    """A proxy before a worker, which forwards, swallows everything without a word, or adds bytes of its own."""

    def __init__(self, target: str) -> None:
        _, where = parse_address(target)
        assert not isinstance(where, str)
        self.target = where
        self.open = asyncio.Event()
        self.open.set()
        self.garbage = b""
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """The address at which it listens."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection(*self.target)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._forward(source, sink, to_gateway=sink is writer))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, to_gateway: bool) -> None:
        try:
            while data := await source.read(1 << 16):
                await self.open.wait()
                if to_gateway and self.garbage:
                    data, self.garbage = self.garbage, b""
                sink.write(data)
        except (ConnectionError, OSError):
            pass
        finally:
            sink.close()
