"""What has vLLM cached? Its KV events, told as one of our own workers tells them.

vLLM publishes over ZeroMQ, with hashes that mean something to nobody but itself. They are taken in here, and each block
gets the hash that the native engine would give it: over its tokens, all tokens before them, the adapter and the salt.
So whoever follows our workers needn't know which engine one has.

vLLM may hold several copies of a block: two requests have computed it at the same time, or a prompt was cached to its
very end, and its last block is computed once more. It says so of each copy, both when it comes and when it goes. What
is told here is whether there is one at all.

Format: vllm/distributed/kv_events.py (0.32). Batches are ``[timestamp, [event, …], rank]``, an event a map with a
``type``; releases before and after write it as an array with the type first.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import zmq

from scheduler.blocks import (
    AllBlocksCleared,
    BlockEvent,
    BlockRemoved,
    BlockStored,
    chain_hashes,
    root_hash,
    short_hash,
)

_FIELDS: Final = {
    "BlockStored": (
        *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
        *("extra_keys", "group_idx", "kv_cache_spec_kind"),
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}
_DEVICE: Final = (None, "GPU")  # vLLM says so on every device; what is offloaded to elsewhere is no hit that counts

log = logging.getLogger(__name__)


class Translator:
    """Turns events of vLLM's into ours. It remembers the hash of each block that is cached."""

    def __init__(self) -> None:
        self._digests: dict[int | bytes, bytes] = {}
        self._further: dict[int | bytes, int] = {}  # copies beside the first
        self._group: int | None = None

    def __len__(self) -> int:
        return len(self._digests)

    def cached(self) -> list[int]:
        """The hashes of all blocks that are cached now, parents before their children."""
        return [short_hash(digest) for digest in self._digests.values()]

    def translate(self, event: object) -> BlockEvent | None:
        """Our event; None where it says nothing of blocks that our index could find.

        Raises:
            ValueError: this is no event.
        """
        kind, fields = _read(event)
        if kind == "AllBlocksCleared":
            self._forget()
            return AllBlocksCleared()
        if fields.get("medium") not in _DEVICE:
            return None
        return self._stored(fields) if kind == "BlockStored" else self._removed(fields)

    def clear(self) -> BlockEvent:
        """Forget everything: what came after can't be relied on."""
        self._forget()
        return AllBlocksCleared()

    def _forget(self) -> None:
        self._digests.clear()
        self._further.clear()

    def _stored(self, fields: Mapping[str, Any]) -> BlockEvent | None:
        if self._group is None:
            self._group = fields.get("group_idx")
        if fields.get("group_idx") != self._group:
            return None  # a model with several kinds of attention caches each apart: the first stands for all
        hashes, tokens, size = fields["block_hashes"], fields["token_ids"], fields["block_size"]
        adapter = fields.get("lora_name") or ""
        before = fields["parent_block_hash"]
        parent = (
            root_hash(adapter, _salt(fields.get("extra_keys"), adapter))
            if before is None
            else self._digests.get(before)
        )
        if parent is None:
            return None  # its beginning is unknown, so nobody could find it
        digests = chain_hashes(tokens, size, parent)
        if len(digests) != len(hashes):
            raise ValueError(f"{len(hashes)} blocks of {size} tokens, but {len(tokens)} tokens")
        for block, digest in zip(hashes, digests, strict=True):
            if block in self._digests:
                self._further[block] = self._further.get(block, 0) + 1
            self._digests[block] = digest
        parent_hash = None if before is None else short_hash(parent)
        return BlockStored([short_hash(digest) for digest in digests], parent_hash, tokens, size, adapter)

    def _removed(self, fields: Mapping[str, Any]) -> BlockEvent | None:
        if fields.get("group_idx") != self._group:
            return None
        gone = [self._digests.pop(block) for block in fields["block_hashes"] if self._is_last(block)]
        return BlockRemoved([short_hash(digest) for digest in gone]) if gone else None

    def _is_last(self, block: int | bytes) -> bool:
        """Whether the copy of a block that goes is the last one."""
        further = self._further.pop(block, 0)
        if further > 1:
            self._further[block] = further - 1
        return not further and block in self._digests


class EventSource:
    """Follows what vLLM publishes at ``endpoint``, in the same host."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self._decoder: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[Any])
        self._translator = Translator()
        self._next = 0

    @property
    def descriptor(self) -> int:
        """Becomes readable when something may have come; `take` must then be called until it returns nothing."""
        return int(self._socket.getsockopt(zmq.FD))

    def cached(self) -> list[int]:
        """The hashes of all blocks that are cached, as of the last `take`."""
        return self._translator.cached()

    def take(self) -> list[BlockEvent]:
        """What has come since the last call. Where something was lost, everything is forgotten and begins anew."""
        events: list[BlockEvent] = []
        while True:
            try:
                _, number, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return events
            sequence = int.from_bytes(number, "big")
            if sequence != self._next:
                log.warning("vLLM's KV events %d to %d were lost", self._next, sequence - 1)
                events.append(self._translator.clear())
            self._next = sequence + 1
            for event in self._decoder.decode(payload)[1]:
                ours = self._translator.translate(event)
                if ours is not None:
                    events.append(ours)

    def close(self) -> None:
        """Follow no more."""
        self._context.destroy(linger=0)


def _read(event: object) -> tuple[str, Mapping[str, Any]]:
    """An event's type and fields, in whichever form it has."""
    if isinstance(event, Mapping):
        kind, fields = event.get("type"), event
    elif isinstance(event, Sequence) and event and not isinstance(event, str | bytes):
        kind, values = event[0], event[1:]
        fields = dict(zip(_FIELDS.get(kind, ()), values, strict=False))
    else:
        kind, fields = None, {}
    if kind not in _FIELDS:
        raise ValueError(f"{event!r} is no KV event of vLLM's")
    return kind, fields


def _salt(extra_keys: Sequence[Sequence[Any] | None] | None, adapter: str) -> str:
    """The salt, which vLLM puts among the first block's extra keys: the adapter's name, pairs for images, the salt."""
    first = extra_keys[0] if extra_keys else None
    texts = [key for key in first or () if isinstance(key, str)]
    if adapter and texts and texts[0] == adapter:
        texts = texts[1:]
    return texts[0] if texts else ""
