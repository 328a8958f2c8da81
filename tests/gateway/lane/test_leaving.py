"""Connections that end leave no cycles behind: their memory doesn't wait for a collector that seldom comes."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from tests.gateway.harness import read_answer, request_bytes, run
from tests.gateway.lane.harness import CHAT, chat, lane, until
from tests.gateway.lane.upstream import Script, Talk, Upstream


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what other tests left is not to be looked through again and again
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def alive(wanted: dict[int, type]) -> list[object]:
    """Those that are still there, of these ids and types."""
    return [one for one in gc.get_objects() if type(one) is wanted.get(id(one))]


async def endless(talk: Talk) -> None:
    talk.begin_stream()
    while True:
        talk.event("on")
        await asyncio.sleep(0.01)


async def silent(talk: Talk) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize("script", [endless, silent])
def test_who_leaves_is_forgotten_at_once(script: Script) -> None:
    async def scenario() -> None:
        async with Upstream(script) as upstream, lane(upstream, probe_every=60.0) as gateway:
            reader, writer = await gateway.connect()
            writer.write(request_bytes("POST", CHAT, chat(stream=True)))
            if script is endless:
                await reader.readuntil(b"data:")
            else:
                await until(lambda: upstream.requests)
            (client,) = gateway.state.connections
            (exchange,) = gateway.lanes._running
            (connection,) = exchange._attempts
            left = {id(one): type(one) for one in (client, exchange, connection)}
            del client, exchange, connection
            writer.transport.abort()
            await until(lambda: not alive(left), 2.0)

    run(scenario())


def test_who_closes_a_kept_connection_is_forgotten_at_once() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            for _ in range(3):
                writer.write(request_bytes("POST", CHAT, chat()))
                assert (await read_answer(reader)).status == 200
            left = {id(one): type(one) for one in gateway.state.connections}
            writer.close()
            await until(lambda: not alive(left), 2.0)

    run(scenario())
