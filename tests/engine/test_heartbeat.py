"""Signs of life from a worker that computes."""

import threading
import time

from engine.connections import Connections
from engine.heartbeat import Heartbeat


class Beats(Connections):
    """Notes what is sent."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.sent = threading.Event()

    def beat(self, data: bytes | bytearray) -> None:
        self.seen.append(bytes(data))
        self.sent.set()


def test_the_last_frame_is_repeated() -> None:
    beats = Beats()
    heart = Heartbeat(beats, every=0.005)
    heart.start()
    for frame in (b"one", b"two"):
        heart.repeat(frame)
        while beats.seen[-1:] != [frame]:
            beats.sent.wait(5)
    heart.close()
    count = len(beats.seen)
    time.sleep(0.03)
    assert len(beats.seen) == count


def test_it_falls_silent_when_the_loop_hangs() -> None:
    beats = Beats()
    heart = Heartbeat(beats, every=0.005, stuck=0.05)
    heart.repeat(b"alive")
    heart.start()
    assert beats.sent.wait(5)
    while beats.sent.wait(0.1):
        beats.sent.clear()
    heart.seen()
    assert beats.sent.wait(5)
    heart.close()
