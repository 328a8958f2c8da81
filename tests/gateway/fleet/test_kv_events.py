"""Following a worker's KV events: against our own publisher on real sockets, and in every encoding."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from engine.events import KvEventPublisher
from gateway.fleet.kv_events import KvEvents, Stored, apply
from scheduler.blocks import AllBlocksCleared, BlockRemoved, BlockStored
from tests.gateway.harness import run


class Cache:
    """What is believed."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.cleared_times = 0

    def stored(self, blocks: Stored) -> None:
        self.blocks.update(blocks.hashes)

    def removed(self, hashes: Sequence[int]) -> None:
        self.blocks.difference_update(hashes)

    def cleared(self) -> None:
        self.blocks.clear()
        self.cleared_times += 1


def stored(*hashes: int) -> BlockStored:
    return BlockStored(hashes=list(hashes), parent_hash=None, tokens=[1] * 16 * len(hashes), block_size=16, adapter="")


@contextlib.asynccontextmanager
async def publisher(
    endpoint: str = "tcp://127.0.0.1:*", replay: str = "tcp://127.0.0.1:*"
) -> AsyncIterator[KvEventPublisher]:
    """A publisher that answers on its replay socket."""
    found = KvEventPublisher(endpoint, replay)

    async def serve() -> None:
        while True:
            found.serve_replays()
            await asyncio.sleep(0.005)

    task = asyncio.create_task(serve())
    try:
        yield found
    finally:
        task.cancel()
        found.close()


@contextlib.asynccontextmanager
async def following(cache: Cache, endpoint: str, replay: str | None) -> AsyncIterator[KvEvents]:
    events = KvEvents("w", endpoint, cache, replay)
    task = asyncio.create_task(events.run())
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def heard(pub: KvEventPublisher, events: KvEvents) -> None:
    """Publish until the subscriber has joined."""
    while not events.batches:
        pub.publish([stored(1)])
        await asyncio.sleep(0.01)


def test_what_a_worker_publishes_is_known_here() -> None:
    async def scenario() -> None:
        cache = Cache()
        async with publisher() as pub, following(cache, pub.endpoint, pub.replay_endpoint) as events:
            await heard(pub, events)
            pub.publish([stored(10, 11, 12), BlockRemoved(hashes=[11])])
            await until(lambda: cache.blocks == {1, 10, 12})
            pub.publish([AllBlocksCleared()])
            await until(lambda: not cache.blocks)
            pub.publish([stored(2**64 - 1)])
            await until(lambda: cache.blocks == {2**64 - 1})
            assert events.losses == 0

    run(scenario())


def test_whoever_comes_late_hears_what_was_before() -> None:
    async def scenario() -> None:
        cache = Cache()
        async with publisher() as pub:
            for number in range(20, 40):
                pub.publish([stored(number)])
            async with following(cache, pub.endpoint, pub.replay_endpoint) as events:
                await heard(pub, events)
                await until(lambda: cache.blocks == {1, *range(20, 40)})
                assert events.losses == 0

    run(scenario())


def test_a_gap_is_filled_from_the_replay() -> None:
    async def scenario() -> None:
        cache = Cache()
        async with publisher() as pub, following(cache, pub.endpoint, pub.replay_endpoint) as events:
            await heard(pub, events)
            await until(lambda: cache.blocks == {1})
            _lose(pub, stored(100))
            _lose(pub, stored(101))
            pub.publish([stored(102)])
            await until(lambda: cache.blocks == {1, 100, 101, 102})
            assert events.losses == 0

    run(scenario())


def test_a_gap_that_cannot_be_filled_leaves_nothing_believed_but_what_follows() -> None:
    async def scenario() -> None:
        cache = Cache()
        async with publisher() as pub, following(cache, pub.endpoint, None) as events:
            await heard(pub, events)
            await until(lambda: cache.blocks == {1})
            _lose(pub, stored(100))
            pub.publish([stored(102)])
            await until(lambda: 102 in cache.blocks)
            assert cache.blocks == {102}
            assert events.losses == 1
            pub.publish([stored(103)])
            await until(lambda: cache.blocks == {102, 103})

    run(scenario())


def test_a_worker_that_began_anew_has_an_empty_cache() -> None:
    async def scenario() -> None:
        cache = Cache()
        async with contextlib.AsyncExitStack() as stack:
            async with publisher() as pub:
                endpoint, replay = pub.endpoint, pub.replay_endpoint
                events = await stack.enter_async_context(following(cache, endpoint, replay))
                await heard(pub, events)
                pub.publish([stored(7)])
                await until(lambda: 7 in cache.blocks)
            async with publisher(endpoint, replay) as again:
                while 50 not in cache.blocks:
                    again.publish([stored(50)])
                    await asyncio.sleep(0.02)
                assert cache.blocks == {50}

    run(scenario())


def _lose(pub: KvEventPublisher, event: BlockStored) -> None:
    """Publish a batch that no subscriber gets, but that the replay remembers."""
    sender = pub._publisher

    class Nobody:
        def send_multipart(self, parts: list[bytes]) -> None:
            pass

    pub._publisher = Nobody()  # type: ignore[assignment]
    pub.publish([event])
    pub._publisher = sender


@pytest.mark.parametrize("form", ["maps", "arrays"])
@pytest.mark.parametrize("hashes", [[5, -1], [b"\x00" * 31 + b"\x05", b"\x01" * 24 + b"\xff" * 8]])
def test_both_encodings_and_both_kinds_of_hashes_are_read(form: str, hashes: list[int | bytes]) -> None:
    if form == "maps":
        event: object = {
            "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "token_ids": [1, 2],
            "block_size": 16, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": None, "group_idx": 0,
        }  # fmt: skip
    else:
        event = ["BlockStored", hashes, None, [1, 2], 16, None, "GPU"]
    cache = Cache()
    apply(msgspec.msgpack.encode([1.5, [event], 0]), cache)
    assert cache.blocks == {5, 2**64 - 1}


def test_other_places_and_later_kinds_mean_nothing() -> None:
    cache = Cache()
    batch = [
        ["BlockStored", [1], None, [], 16, None, "DISK"],
        {"type": "BlockStored", "block_hashes": [2], "medium": "CPU"},
        {"type": "BlockMoved", "block_hashes": [3]},
        ["BlockStored", [4], None, [], 16],
    ]
    apply(msgspec.msgpack.encode([1.5, batch]), cache)
    assert cache.blocks == {4}


def test_nonsense_is_an_error_and_nothing_else() -> None:
    random.seed(1)
    for size in range(0, 60):
        with contextlib.suppress(msgspec.MsgspecError):
            apply(random.randbytes(size), Cache())
