"""Which blocks does a worker have cached, by its own account? Follows KV events as vLLM, SGLang and we publish them.

A batch comes as ``[topic, sequence (8 bytes, big-endian), msgpack [timestamp, [event, ...], rank]]`` on a SUB socket.
Events are read as maps and as arrays: both are seen in the wild. Numbers go up by one; where some are missing, the
replay socket is asked for them, and if it can't help, nothing is believed any more: a wrong belief is worse than none.
A number that goes back means that the worker began anew. Format: vllm/distributed/kv_events.py (vLLM 0.32).
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from scheduler.prefix_index import Sequence64

_REPLAY_TIMEOUT: Final = 2.0  # seconds without an answer
_END: Final = -1
_WORD_MASK: Final = (1 << 64) - 1
_DEVICE: Final = frozenset({None, "GPU", "gpu", "CPU_KV", "HBM"})

Hash = int | bytes

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """Blocks of ``block_size`` tokens that are cached now, each the parent of the next; the first one's is ``parent``.

    ``adapter`` and ``salt`` keep apart what may not be shared. ``hashes`` are unsigned 64-bit numbers of the worker's.
    """

    hashes: list[int]
    parent: int | None
    block_size: int
    adapter: str
    salt: str
    raw: msgspec.Raw

    @property
    def tokens(self) -> list[int]:
        """The blocks' token ids, in one list.

        Raises:
            msgspec.MsgspecError: there are none.
        """
        return _tokens.decode(self.raw)


class KvSink(Protocol):
    """Who keeps account of a worker's cache. Hashes are unsigned 64-bit numbers."""

    def stored(self, blocks: Stored) -> None:
        """Blocks are cached now."""

    def removed(self, hashes: Sequence[int]) -> None:
        """Blocks are no longer cached."""

    def cleared(self) -> None:
        """None is, or nothing is known."""


class _StoredMap(msgspec.Struct, tag_field="type", tag="BlockStored"):
    block_hashes: list[Hash]
    parent_block_hash: Hash | None = None
    token_ids: msgspec.Raw = msgspec.Raw()
    block_size: int = 0
    lora_name: str | None = None
    extra_keys: Any = None
    medium: str | None = None
    group_idx: int | None = None


class _RemovedMap(msgspec.Struct, tag_field="type", tag="BlockRemoved"):
    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class _ClearedMap(msgspec.Struct, tag_field="type", tag="AllBlocksCleared"):
    pass


class _StoredArray(msgspec.Struct, array_like=True, tag="BlockStored"):
    block_hashes: list[Hash]
    parent_block_hash: Hash | None = None
    token_ids: msgspec.Raw = msgspec.Raw()
    block_size: int = 0
    lora_id: Any = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: Any = None


class _RemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    block_hashes: list[Hash]
    medium: str | None = None


class _ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    timestamp: float
    events: list[msgspec.Raw]


_tokens: Final = msgspec.msgpack.Decoder(list[int])
_batches: Final = msgspec.msgpack.Decoder(_Batch)
_maps: Final = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap)
_arrays: Final = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)


def apply(payload: bytes, sink: KvSink) -> None:
    """Tell ``sink`` what a batch says. Events of other kinds, or about other places than the device, mean nothing.

    Raises:
        msgspec.MsgspecError: it is no batch.
    """
    for raw in _batches.decode(payload).events:
        first = memoryview(raw)[0]
        try:
            event = (_maps if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF) else _arrays).decode(raw)
        except msgspec.ValidationError as error:
            if "Invalid value" in str(error):
                continue  # a kind that came later than this reader
            raise
        if isinstance(event, _ClearedMap | _ClearedArray):
            sink.cleared()
        elif event.medium in _DEVICE and not getattr(event, "group_idx", None):
            hashes = _numbers(event.block_hashes)
            if isinstance(event, _StoredMap | _StoredArray):
                sink.stored(_stored(event, hashes))
            else:
                sink.removed(hashes)


def _stored(event: _StoredMap | _StoredArray, hashes: list[int]) -> Stored:
    before, adapter = event.parent_block_hash, event.lora_name or ""
    parent = None if before is None else _numbers((before,))[0]
    return Stored(hashes, parent, event.block_size, adapter, _salt(event.extra_keys, adapter), event.token_ids)


def _salt(extra_keys: Any, adapter: str) -> str:
    """The salt, which vLLM puts among the first block's extra keys: the adapter's name, pairs for images, the salt."""
    first = extra_keys[0] if isinstance(extra_keys, list) and extra_keys else None
    texts = [key for key in first or () if isinstance(key, str)]
    if adapter and texts and texts[0] == adapter:
        texts = texts[1:]
    return texts[0] if texts else ""


def _numbers(hashes: Iterable[Hash]) -> list[int]:
    """64 bits of each: vLLM publishes whole digests where it isn't told otherwise."""
    return [one & _WORD_MASK if isinstance(one, int) else int.from_bytes(one[-8:], "big") for one in hashes]


class KvEvents:
    """Follows one worker.

    Args:
        name: of the worker, for log lines.
        endpoint: of its PUB socket, ``tcp://HOST:PORT``.
        replay: of its ROUTER socket, if it has one.
    """

    def __init__(self, name: str, endpoint: str, sink: KvSink, replay: str | None = None) -> None:
        self._name = name
        self._endpoint = endpoint
        self._replay = replay
        self._sink = sink
        self._sequence = Sequence64()
        self._latest = -1
        self.batches = 0
        """Batches that were applied."""
        self.losses = 0
        """How often nothing could be believed any more."""

    async def run(self) -> None:
        """Follow until cancelled. A worker that isn't there yet, or goes away, is waited for."""
        import zmq
        import zmq.asyncio

        context = zmq.asyncio.Context()
        try:
            subscriber = context.socket(zmq.SUB)
            subscriber.setsockopt(zmq.RCVHWM, 100_000)
            subscriber.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            broken = subscriber.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            subscriber.connect(self._endpoint)
            subscriber.subscribe(b"")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(broken))
                while True:
                    parts = await subscriber.recv_multipart()
                    if len(parts) == 3 and len(parts[1]) == 8:
                        await self._take(context, int.from_bytes(parts[1], "big"), parts[2])
        finally:
            context.destroy(linger=0)

    async def _watch(self, broken: Any) -> None:
        """A connection that breaks may be that of a worker that ends: the next one may number its events anew."""
        while True:
            await broken.recv_multipart()
            self._lose(None)
            self._latest = -1

    async def _take(self, context: Any, number: int, payload: bytes) -> None:
        """A batch came, the next one or not."""
        if number <= self._latest:
            log.info("worker=%s began to number its KV events anew", self._name)
            self._lose(None)
        self._latest = number
        wanted = self._sequence.expected or 0
        if number > wanted:
            await self._fill(context, wanted, number)
        verdict = self._sequence.take(number)
        if verdict == "gap":
            self._lose(number)
            self._sequence.take(number)
        if verdict != "skip":  # the replay had it
            self._apply(payload)

    async def _fill(self, context: Any, wanted: int, number: int) -> None:
        """Ask for what was missed, and apply what is still remembered of it."""
        known = self._sequence.expected is not None
        missed = await self._ask(context, wanted) if self._replay is not None else []
        if known and not (missed and missed[0][0] <= wanted):
            log.warning("worker=%s KV events %d to %d are lost: believing nothing", self._name, wanted, number - 1)
            self._lose(missed[0][0] if missed else number)
        for one, payload in missed:
            if self._sequence.take(one) == "apply":
                self._apply(payload)

    async def _ask(self, context: Any, first: int) -> list[tuple[int, bytes]]:
        """What the replay socket remembers from ``first`` on, as far as it answers."""
        import zmq

        asking = context.socket(zmq.DEALER)
        found: list[tuple[int, bytes]] = []
        try:
            asking.connect(self._replay)
            await asking.send_multipart([b"", first.to_bytes(8, "big")])
            while True:
                async with asyncio.timeout(_REPLAY_TIMEOUT):
                    parts = await asking.recv_multipart()
                number = int.from_bytes(parts[-2], "big", signed=True)
                if number == _END:
                    return found
                found.append((number, parts[-1]))
        except TimeoutError:
            log.warning("worker=%s gives no replay of its KV events", self._name)
            return found
        finally:
            asking.close(linger=0)

    def _lose(self, next_number: int | None) -> None:
        """Believe nothing; the batch of ``next_number`` comes next, or (None) whichever comes, after a replay."""
        self.losses += 1
        self._sink.cleared()
        self._sequence = Sequence64(next_number)

    def _apply(self, payload: bytes) -> None:
        try:
            apply(payload, self._sink)
        except msgspec.MsgspecError as error:
            log.warning("worker=%s sent a KV event that can't be read: %s", self._name, error)
            self.losses += 1
            self._sink.cleared()
        else:
            self.batches += 1
