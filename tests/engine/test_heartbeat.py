"""Signs of life and news from a worker that computes."""

import threading
import time
from collections.abc import Sequence

import msgspec

from engine.connections import Connections
from engine.heartbeat import Heartbeat
from engine.link import Abort, FrameReader, Load, Sampling, Submit, ToWorker, decode_to_gateway

IDLE = Load(waiting=0, running=0, waiting_tokens=0, kv_used=0, kv_total=9, backlog=0.0, prefill_rate=100.0)
BUSY = msgspec.structs.replace(IDLE, running=3)


class Beats(Connections):
    """Notes what is sent."""

    def __init__(self) -> None:
        self.seen: list[Load] = []
        self.sent = threading.Event()
        self.ahead: Sequence[ToWorker] = ()

    def beat(self, data: bytes | bytearray) -> None:
        (payload,) = FrameReader().feed(data)
        load = decode_to_gateway(payload)
        assert isinstance(load, Load)
        self.seen.append(load)
        self.sent.set()

    def read_ahead(self) -> list[ToWorker]:
        return list(self.ahead)

    def until(self, load: Load) -> None:
        while self.seen[-1:] != [load]:
            assert self.sent.wait(5)
            self.sent.clear()


def test_the_last_report_is_repeated() -> None:
    beats = Beats()
    heart = Heartbeat(beats, every=0.005, tick=0.005)
    heart.start()
    for load in (IDLE, BUSY):
        heart.repeat(load)
        beats.until(load)
    before = len(beats.seen)
    while len(beats.seen) < before + 3:
        assert beats.sent.wait(5)
        beats.sent.clear()
    heart.close()
    count = len(beats.seen)
    time.sleep(0.03)
    assert len(beats.seen) == count


def test_news_do_not_wait_and_what_was_said_is_not_said_again() -> None:
    beats = Beats()
    heart = Heartbeat(beats, every=60.0, tick=0.002)
    heart.repeat(IDLE, sent=True)
    heart.start()
    heart.repeat(BUSY)
    beats.until(BUSY)
    heart.repeat(IDLE, sent=True)
    time.sleep(0.02)
    heart.close()
    assert beats.seen == [BUSY]


def test_what_came_while_it_computes_counts() -> None:
    beats = Beats()
    heart = Heartbeat(beats, every=60.0, tick=0.002)
    heart.repeat(BUSY, sent=True)
    heart.start()
    ask = Submit(1, bytes(4 * 50), Sampling(max_tokens=1))
    beats.ahead = (ask, msgspec.structs.replace(ask, id=2, background=True), Abort([7]))
    beats.until(msgspec.structs.replace(BUSY, waiting=2, waiting_tokens=50, backlog=0.5))
    beats.ahead = ()
    beats.until(BUSY)
    heart.close()
    assert len(beats.seen) == 2


def test_it_falls_silent_when_the_loop_hangs() -> None:
    beats = Beats()
    heart = Heartbeat(beats, every=0.005, stuck=0.05, tick=0.005)
    heart.repeat(IDLE)
    heart.start()
    assert beats.sent.wait(5)
    while beats.sent.wait(0.1):
        beats.sent.clear()
    heart.seen()
    assert beats.sent.wait(5)
    heart.close()
