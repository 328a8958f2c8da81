"""What may a shadow's target do wrong? Say nothing for ever, or never stop.

``python -m bench.shadow.targets KIND PORT``. Both kinds answer a gateway that only asks whether they are alive; it is
requests that they treat badly.
"""

import asyncio
import sys
from typing import Final

import uvloop

KINDS: Final = ("slow", "flooding")
_PROBED: Final = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"data":[]}'
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK: Final = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


async def handle(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, or not."""
    try:
        while line := await reader.readline():
            if line.startswith(b"GET "):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(_PROBED)
                continue
            if kind == "flooding":
                writer.write(_HEAD)
                while True:
                    writer.write(_CHUNK)
                    await writer.drain()
            while await reader.read(1 << 16):
                pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve(kind: str, port: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(lambda reader, writer: handle(kind, reader, writer), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
