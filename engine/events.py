"""How do others learn which blocks this worker has cached?

KV events are published as vLLM publishes them, so that any router that follows vLLM can follow us: a PUB socket sends
``[topic, sequence (8 bytes, big-endian), msgpack batch]``, where a batch is ``[timestamp, [event, ...], rank]`` and an
event a map with a ``type``. Somebody who sees a gap in the sequence asks the ROUTER socket with
``[b"", first wanted sequence]`` and gets ``[b"", sequence, batch]`` for each batch still remembered, then one whose
sequence is -1. Format: vllm/distributed/kv_events.py (vLLM 0.32), as seen on the wire.
"""

import sys
import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec
import zmq

from engine.link import Blocks
from scheduler.blocks import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored

_REMEMBERED = 10_000
_END = (-1).to_bytes(8, "big", signed=True)


def changes_of(events: Sequence[BlockEvent]) -> Blocks:
    """What these events come to, as the link says it."""
    there: dict[int, bool] = {}
    cleared = False
    for event in events:
        match event:
            case BlockStored(hashes=hashes):
                for known in hashes:
                    there.pop(known, None)  # to the end: behind its parent, which is there
                    there[known] = True
            case BlockRemoved(hashes=hashes):
                there.update(dict.fromkeys(hashes, False))
            case AllBlocksCleared():
                there.clear()
                cleared = True
    return Blocks(
        cleared,
        removed=packed(known for known, stored in there.items() if not stored),
        stored=packed(known for known, stored in there.items() if stored),
    )


def packed(hashes: Iterable[int]) -> bytes:
    """Hashes of 64 bits, little-endian, one after the other."""
    words = array("Q", hashes)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


class KvEventPublisher:
    """Publishes batches of block events at ``endpoint`` and, if given, replays them at ``replay_endpoint``.

    A subscriber that can't keep up loses batches (and sees the gap); the worker never waits for one.
    """

    def __init__(self, endpoint: str, replay_endpoint: str | None = None, topic: str = "kv-events") -> None:
        """Bind the sockets.

        Raises:
            OSError: an endpoint can't be bound; the message names it.
        """
        self._topic = topic.encode()
        self._encoder = msgspec.msgpack.Encoder()
        self._sequence = 0
        self._sent: deque[tuple[int, bytes]] = deque(maxlen=_REMEMBERED)
        self._context = zmq.Context()
        self._publisher = self._bind(zmq.PUB, endpoint)
        self._replay = self._bind(zmq.ROUTER, replay_endpoint) if replay_endpoint else None
        self.endpoint = self._publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = self._replay.getsockopt_string(zmq.LAST_ENDPOINT) if self._replay else ""

    @property
    def descriptor(self) -> int | None:
        """Becomes readable when somebody may want a replay; None without a replay endpoint."""
        return int(self._replay.getsockopt(zmq.FD)) if self._replay else None

    def publish(self, events: Sequence[BlockEvent]) -> None:
        """Send one batch; nothing is sent for an empty one."""
        if not events:
            return
        payload = self._encoder.encode([time.time(), [_as_map(event) for event in events], 0])
        self._sent.append((self._sequence, payload))
        self._publisher.send_multipart([self._topic, self._sequence.to_bytes(8, "big"), payload])
        self._sequence += 1

    def serve_replays(self) -> None:
        """Answer everybody who asked for batches they missed. Returns at once when nobody did."""
        if self._replay is None:
            return
        while int(self._replay.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            parts = self._replay.recv_multipart()
            if len(parts) != 3 or len(parts[2]) != 8:
                continue
            peer, first = parts[0], int.from_bytes(parts[2], "big")
            skip = max(0, first - self._sent[0][0]) if self._sent else 0
            for sequence, payload in islice(self._sent, skip, None):
                self._replay.send_multipart([peer, b"", sequence.to_bytes(8, "big"), payload])
            self._replay.send_multipart([peer, b"", _END, b""])

    def close(self) -> None:
        """Close the sockets; batches under way are given a tenth of a second."""
        self._context.destroy(linger=100)

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        try:
            sock.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(f"can't publish KV events at {endpoint}: {error}") from error
        return sock


def _as_map(event: BlockEvent) -> dict[str, object]:
    match event:
        case BlockStored():
            return {
                "type": "BlockStored",
                "block_hashes": event.hashes,
                "parent_block_hash": event.parent_hash,
                "token_ids": event.tokens,
                "block_size": event.block_size,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": event.adapter or None,
            }
        case BlockRemoved():
            return {"type": "BlockRemoved", "block_hashes": event.hashes, "medium": "GPU"}
        case AllBlocksCleared():
            return {"type": "AllBlocksCleared"}
