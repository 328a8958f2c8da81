from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from engine import events as module
from engine.events import KvEventPublisher, changes_of, packed
from engine.link import Blocks
from scheduler.blocks import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored

Connect = Callable[[int, str], zmq.Socket[bytes]]

STORED = BlockStored([11, 12], 10, list(range(8)), 4, "")
END = (-1).to_bytes(8, "big", signed=True)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[KvEventPublisher]:
    publisher = KvEventPublisher(f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay")
    yield publisher
    publisher.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes sockets that are closed when the test ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def connect(kind: int, endpoint: str) -> zmq.Socket[bytes]:
        sockets.append(context.socket(kind))
        sockets[-1].connect(endpoint)
        return sockets[-1]

    yield connect
    context.destroy(linger=0)


def replay(publisher: KvEventPublisher, asker: zmq.Socket[bytes], first: bytes) -> list[int]:
    """The sequence numbers that a replay brings."""
    asker.send_multipart([b"", first])
    sequences: list[int] = []
    for _ in range(200):
        publisher.serve_replays()
        while asker.poll(50):
            _, sequence, payload = asker.recv_multipart()
            if sequence == END:
                assert payload == b""
                return sequences
            sequences.append(int.from_bytes(sequence, "big"))
    raise AssertionError("the replay did not end")


def test_batches_are_numbered_maps_under_the_topic(publisher: KvEventPublisher, connect: Connect) -> None:
    subscriber = connect(zmq.SUB, publisher.endpoint)
    subscriber.subscribe("kv-events")
    assert not subscriber.poll(200)
    publisher.publish([])
    publisher.publish([STORED, BlockRemoved([11])])
    publisher.publish([AllBlocksCleared()])
    seen = []
    for sequence in range(2):
        assert subscriber.poll(5000)
        topic, number, payload = subscriber.recv_multipart()
        assert (topic, int.from_bytes(number, "big")) == (b"kv-events", sequence)
        stamp, events, rank = msgspec.msgpack.decode(payload)
        assert stamp > 1e9
        assert rank == 0
        seen += events
    stored, removed, cleared = seen
    assert stored["type"] == "BlockStored"
    assert (stored["block_hashes"], stored["parent_block_hash"]) == ([11, 12], 10)
    assert (stored["token_ids"], stored["block_size"], stored["lora_name"]) == (list(range(8)), 4, None)
    assert (removed["type"], removed["block_hashes"]) == ("BlockRemoved", [11])
    assert cleared == {"type": "AllBlocksCleared"}


def test_a_replay_begins_where_it_is_asked_to(publisher: KvEventPublisher, connect: Connect) -> None:
    asker = connect(zmq.DEALER, publisher.replay_endpoint)
    assert replay(publisher, asker, (0).to_bytes(8, "big")) == []
    for _ in range(5):
        publisher.publish([STORED])
    assert replay(publisher, asker, (3).to_bytes(8, "big")) == [3, 4]
    assert replay(publisher, asker, (9).to_bytes(8, "big")) == []


def test_what_was_forgotten_is_not_replayed(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    publisher = KvEventPublisher(f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay")
    for _ in range(5):
        publisher.publish([STORED])
    asker = connect(zmq.DEALER, publisher.replay_endpoint)
    assert replay(publisher, asker, (0).to_bytes(8, "big")) == [2, 3, 4]
    publisher.close()


def test_nonsense_on_the_replay_socket_is_passed_over(publisher: KvEventPublisher, connect: Connect) -> None:
    asker = connect(zmq.DEALER, publisher.replay_endpoint)
    asker.send_multipart([b"what?"])
    asker.send_multipart([b"", b"short"])
    publisher.publish([STORED])
    assert replay(publisher, asker, (0).to_bytes(8, "big")) == [0]


def test_without_a_replay_endpoint_nobody_is_served(tmp_path: Path) -> None:
    publisher = KvEventPublisher(f"ipc://{tmp_path}/events")
    assert publisher.descriptor is None
    publisher.serve_replays()
    publisher.close()


def test_an_endpoint_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="can't publish KV events at tcp://nowhere"):
        KvEventPublisher("tcp://nowhere:1")


def test_what_a_batch_comes_to() -> None:
    events: list[BlockEvent] = [
        BlockStored([1, 2], None, [0] * 8, 4, ""),
        BlockRemoved([1, 9]),
        BlockStored([9, 1], None, [0] * 8, 4, ""),
        BlockRemoved([2]),
    ]
    assert changes_of(events) == Blocks(removed=packed([2]), stored=packed([9, 1]))
    assert changes_of([*events, AllBlocksCleared(), BlockStored([2**64 - 1], None, [0] * 4, 4, "")]) == Blocks(
        True, stored=b"\xff" * 8
    )
