"""Does a record that was acknowledged survive SIGKILL? A process that appends is killed at random moments, many times.

The process is forked, not started anew: a kill takes 50 ms instead of a second. What it was acknowledged, it says on a
pipe, which outlives it; what it had said when it was killed has to be in the log after recovery, once. After each kill
the log is opened again, as by a gateway that is started again, and that recovers what the killed one left.
"""

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from flywheel.log import Durability, Log
from flywheel.record import VERSION, Content, Record

IN_FLIGHT = 64


class Kills(msgspec.Struct):
    """What came of it.

    Attributes:
        kills: how often a process was killed.
        acknowledged: records that were said to be durable.
        records: all in the log afterwards: there are more, whose end nobody was told before the kill.
        aborted: requests that recovery gave an end.
        missing: acknowledged, and not in the log; ``twice``: in it more than once. Both have to be empty.
    """

    kills: int = 0
    acknowledged: int = 0
    records: int = 0
    aborted: int = 0
    missing: list[str] = []
    twice: list[str] = []


def run_kills(
    folder: Path,
    kills: int,
    read: Callable[[], list[str]],
    *,
    durability: Durability = "os",
    seed: int = 0,
    between: Callable[[int], None] | None = None,
) -> Kills:
    """Kill ``kills`` processes that append to the log in ``folder``.

    Args:
        folder: the log's.
        kills: how many.
        read: the id of every record that the log has, when all is over.
        durability: the log's.
        seed: of the random moments.
        between: is called after each kill with its number, to compact for instance.
    """
    draw = random.Random(seed)
    acknowledged: set[str] = set()
    aborted = 0
    for number in range(kills):
        acknowledged |= _one(folder, number, durability, draw.uniform(0.0, 0.04))
        aborted += recover_last(folder)
        if between is not None:
            between(number)
    if between is not None:
        between(kills)
    ids = read()
    found = Kills(kills, len(acknowledged), len(ids), aborted)
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            found.twice.append(name)
        seen.add(name)
    found.missing = sorted(acknowledged - seen)
    return found


def recover_last(folder: Path) -> int:
    """Open the log as the next process does, and close it; how many requests were given an end."""

    async def once() -> int:
        log = Log(folder)
        log.start()
        log.close()
        return log.recovered.aborted

    return asyncio.run(once())


def _one(folder: Path, number: int, durability: Durability, seconds: float) -> set[str]:
    """Have a process append, kill it ``seconds`` after its first record, and say what it was acknowledged."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            asyncio.run(_append(folder, number, durability, writer))
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb", buffering=0) as said:
        first = said.read(1)
        killing = time.monotonic() + seconds
        heard = bytearray(first)
        os.set_blocking(reader, False)
        while time.monotonic() < killing:
            heard += said.read(1 << 16) or b""
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := said.read(1 << 16):
            heard += more
    whole = bytes(heard).rpartition(b"\n")[0]
    return {f"{number}-{name.decode()}" for name in whole.split(b"\n") if name}


async def _append(folder: Path, number: int, durability: Durability, said: int) -> None:
    """What the process does: requests begin, end a little later, and are said to be durable."""
    logging.disable(logging.WARNING)
    log = Log(folder, durability=durability, segment_bytes=1 << 20, patience=60.0)
    log.start()
    loop = asyncio.get_running_loop()
    counter = iter(range(1 << 60))

    def next_request() -> None:
        name = f"{number}-{next(counter)}"
        received = time.time_ns() // 1000
        log.begin(Record(VERSION, name, received, model="chat"))
        text = b"x" * random.randrange(8000)
        record = Record(VERSION, name, received, "ok", 200, model="chat", content=Content("full", text))
        after = random.random() * 0.005
        loop.call_later(after, log.append, record, lambda written: acknowledged(name, written))

    def acknowledged(name: str, written: bool) -> None:
        if written:
            os.write(said, name.partition("-")[2].encode() + b"\n")
        next_request()

    for _ in range(IN_FLIGHT):
        next_request()
    await asyncio.Event().wait()
