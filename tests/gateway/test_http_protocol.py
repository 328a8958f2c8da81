"""What is done with bytes that are HTTP in odd ways, with patience, and with requests for other protocols."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter

import pytest

from gateway.http_protocol import look_after
from tests.gateway.harness import chat, read_answer, request_bytes, run, serving
from tests.gateway.lane.harness import CHAT, lane
from tests.gateway.lane.upstream import Upstream

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter, set[object]]


@contextlib.asynccontextmanager
async def connection(passing: bool, folder: Path) -> AsyncIterator[Connection]:
    """A client's connection to a gateway that passes requests through, or answers them itself."""
    if passing:
        async with Upstream(models=("fake",)) as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            yield reader, writer, gateway.state.connections  # type: ignore[misc]
            writer.close()
    else:
        async with serving(folder) as one:
            reader, writer = await one.connect()
            yield reader, writer, one.connections
            writer.close()


@pytest.mark.parametrize("passing", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_a_request_that_would_rather_speak_another_protocol_is_answered(
    passing: bool, apart: bool, model_folder: Path
) -> None:
    wish = {"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings", "http2-settings": "AAMAAABkAAQAAP__"}

    async def scenario() -> None:
        async with connection(passing, model_folder) as (reader, writer, _):
            for _ in range(2):
                head, _, body = request_bytes("POST", CHAT, chat(), wish).partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n" + (b"" if apart else body))
                if apart:
                    await asyncio.sleep(0.01)
                    writer.write(body)
                assert (await read_answer(reader)).status == 200
            writer.write(b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere\r\n\r\n")
            assert (await read_answer(reader)).status == 400

    run(scenario())


@pytest.mark.parametrize("passing", [True, False])
@pytest.mark.parametrize(
    "sent", [b"", b"POST", request_bytes("POST", CHAT, chat())[:-1]], ids=["nothing", "head", "body"]
)
def test_who_sends_half_a_request_is_not_waited_for_for_ever(passing: bool, sent: bytes, model_folder: Path) -> None:
    async def scenario() -> None:
        async with connection(passing, model_folder) as (reader, writer, connections):
            begun = perf_counter()
            look_after(connections, begun, 75)
            writer.write(sent)
            await asyncio.sleep(0.01)
            look_after(connections, begun + 20, 75)
            look_after(connections, begun + 70, 75)
            await asyncio.sleep(0.01)
            assert not reader.at_eof()
            look_after(connections, begun + 96, 75)
            assert await reader.read() == b""

    run(scenario())
