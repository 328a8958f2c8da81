"""How does a load test use several cores, and keep its clock free of its own display? Clients are own processes.

The parent makes the requests, feeds them ahead of time through a pipe to ``python -m bench.load.processes``, and shows
progress; each client has an event loop for its share, and writes its records to a file. Closing the pipe stops it.
"""

import asyncio
import contextlib
import gc
import heapq
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bench.load.client import Api, Client
from bench.load.driver import Driver, Progress, drive, merged
from bench.load.http import parse_url
from bench.load.records import Ask, Record, write_line

PERIOD = 0.25
"""Seconds between two reports of a client's progress."""
# How far requests are made ahead of their time: making them may take a second of CPU for each thousand.
_AHEAD_SECONDS = 5.0
_AHEAD_MOST = 20.0
_AHEAD_REQUESTS = 4096
_AHEAD_BYTES = 128 * 2**20
_HEAD_START = 0.05


class ClientsError(Exception):
    """A client process ended before it was done; the message is for the person at the terminal."""


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag="setup"):
    """What a client must know before it begins. ``records`` is the file that it writes; the rest is `Driver`'s."""

    api: Api
    timeout: float
    records: str
    concurrency: int | None = None
    duration: float | None = None


class _Next(msgspec.Struct, tag="ask"):
    # Not an Ask: a union of two kinds of lists, as its prompt is, can't be decoded by type.
    fields: dict[str, Any]


class _Filled(msgspec.Struct, tag="filled"):
    """The first requests have been fed: say so once they are read."""


class _Go(msgspec.Struct, tag="go"):
    """When the run begins, on the machine's monotonic clock."""

    zero: float


class _End(msgspec.Struct, tag="end"):
    """There are no more requests."""


_Frame = Setup | _Next | _Filled | _Go | _End
_decode = msgspec.msgpack.Decoder(_Frame).decode


def _pack(frame: _Frame) -> bytes:
    data = msgspec.msgpack.encode(frame)
    return len(data).to_bytes(4, "little") + data


class _Inbox:
    """The client's end of the pipe: a `Source` of the requests that have come through it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.zero: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self._reader = reader
        self._asks: asyncio.Queue[Ask | None] = asyncio.Queue()

    async def take(self) -> Ask | None:
        """The next request; None after the last."""
        ask = await self._asks.get()
        if ask is None:
            self._asks.put_nowait(None)  # there may be several who ask
        return ask

    async def frame(self) -> _Frame:
        """The next frame."""
        size = int.from_bytes(await self._reader.readexactly(4), "little")
        frame: _Frame = _decode(await self._reader.readexactly(size))
        return frame

    async def listen(self) -> None:
        """Take frames in until the pipe is closed."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                frame = await self.frame()
                if isinstance(frame, _Next):
                    self._asks.put_nowait(Ask(**frame.fields))
                elif isinstance(frame, _Filled):
                    _say(Progress())
                elif isinstance(frame, _Go):
                    self.zero.set_result(frame.zero)
                elif isinstance(frame, _End):
                    self._asks.put_nowait(None)
        self.closed.set()
        if not self.zero.done():
            self.zero.set_result(0.0)


def _say(progress: Progress) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(progress) + b"\n")
    sys.stdout.buffer.flush()


async def _report(driver: Driver) -> None:
    while True:
        await asyncio.sleep(PERIOD)
        _say(driver.read())


async def _client() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    inbox = _Inbox(reader)
    setup = await inbox.frame()
    assert isinstance(setup, Setup)
    listening = asyncio.ensure_future(inbox.listen())
    client = Client(setup.api, parse_url(setup.api.url), setup.timeout)
    with Path(setup.records).open("wb", buffering=2**20) as file:
        driver = Driver(client, inbox, lambda record: _keep(file, record), setup.concurrency, setup.duration)
        client.zero = await inbox.zero
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)  # what a request leaves behind has hardly any cycles
        await asyncio.sleep(max(0.0, -client.now()))
        reporting = asyncio.ensure_future(_report(driver))
        progress = await drive(driver, inbox.closed)
    for task in (reporting, listening):
        task.cancel()
    _say(progress)


def _keep(file: BinaryIO, record: Record) -> None:
    file.write(write_line(record))


def _main() -> int:
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_client())
    return 0


class _Child:
    """One client process, seen from the parent."""

    def __init__(self, process: asyncio.subprocess.Process, concurrency: int | None) -> None:
        self.process = process
        self.progress = Progress()
        self.ready = asyncio.Event()
        self.sent = 0
        self._size = 0
        self._closed = concurrency is not None
        self._most = _AHEAD_REQUESTS if concurrency is None else max(512, 4 * concurrency)

    def write(self, frame: _Frame) -> None:
        data = _pack(frame)
        self.sent += isinstance(frame, _Next)
        self._size += len(data)
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            self.process.stdin.write(data)

    async def drain(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            await self.process.stdin.drain()

    def full(self) -> bool:
        """Whether it has as many requests as it should hold."""
        ahead = self.sent - self.progress.offered
        return ahead >= self._most or ahead * self._size > _AHEAD_BYTES * max(1, self.sent)

    def has_enough(self, early: float) -> bool:
        """Whether another request, due in so many seconds, is not needed yet."""
        if self._closed:
            return self.full()
        return early > _AHEAD_MOST or (early > _AHEAD_SECONDS and self.full())

    def stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()


class Clients:
    """Several client processes that share one workload.

    ``files`` are where they leave their records. ``notify`` gets the progress of all, several times a second; when it
    answers True, the run is stopped.
    """

    def __init__(self, setups: Sequence[Setup], notify: Callable[[Progress, "Clients"], bool]) -> None:
        self.interrupted = False
        self.fed = 0
        self.fed_until = 0.0
        self.all_fed = False
        self._setups = setups
        self._notify = notify
        self._children: list[_Child] = []
        self._zero = 0.0

    async def run(self, asks: Iterator[Ask]) -> Progress:
        """Until all requests have been asked, or the run was stopped; the progress in the end.

        Raises:
            ClientsError: a client failed.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError):  # only a main thread can
            loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            for setup in self._setups:
                self._children.append(await _start(setup))
            work = [asyncio.ensure_future(self._listen(child)) for child in self._children]
            feeding = asyncio.ensure_future(self._feed(asks))
            feeding.add_done_callback(lambda task: None if task.cancelled() or not task.exception() else self.stop())
            showing = asyncio.ensure_future(self._watch())
            await asyncio.gather(*work)
            for task in (feeding, showing):
                task.cancel()
            for result in await asyncio.gather(feeding, showing, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
            codes = [await child.process.wait() for child in self._children]
            if any(codes):
                raise ClientsError(f"a client process ended with status {next(filter(None, codes))}")
            return self.progress()
        finally:
            for child in self._children:
                if child.process.returncode is None:
                    child.process.kill()
                    await child.process.wait()
            with contextlib.suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(signal.SIGINT)

    def progress(self) -> Progress:
        """What all have done so far."""
        return merged([child.progress for child in self._children])

    def stop(self) -> None:
        """End the run; what is under way is dropped."""
        for child in self._children:
            child.stop()

    def _interrupt(self) -> None:
        if self.interrupted:  # the second time it is meant
            for child in self._children:
                child.process.kill()
        self.interrupted = True
        self.stop()

    async def _listen(self, child: _Child) -> None:
        assert child.process.stdout is not None
        async for line in child.process.stdout:
            child.progress = msgspec.json.decode(line, type=Progress)
            child.ready.set()
        child.ready.set()
        if await child.process.wait():
            self.stop()

    async def _feed(self, asks: Iterator[Ask]) -> None:
        """Hand requests out in turn (conversations whole), first as many as fit ahead, then as they are used up."""
        children, due, began = self._children, 0.0, False
        for ask in asks:
            child = children[(ask.index if ask.session is None else ask.session) % len(children)]
            due = due if ask.at is None else ask.at
            if not began and (child.full() or due > _AHEAD_SECONDS):
                began = await self._begin()
            while child.has_enough(due - (time.monotonic() - self._zero)):
                await asyncio.sleep(PERIOD / 5)
            child.write(_Next({name: getattr(ask, name) for name in Ask.__struct_fields__}))
            self.fed, self.fed_until = self.fed + 1, due
            await child.drain()
            if self.fed % 32 == 0:
                await asyncio.sleep(0)  # making requests takes time, and others want to run
        self.all_fed = True
        for child in children:
            child.write(_End())
        if not began:
            await self._begin()

    async def _begin(self) -> bool:
        for child in self._children:
            child.write(_Filled())
        for child in self._children:
            await child.ready.wait()
        self._zero = time.monotonic() + _HEAD_START
        for child in self._children:
            child.write(_Go(self._zero))
        return True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            if self._zero and self._notify(self.progress(), self):
                self.stop()


async def _start(setup: Setup) -> _Child:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "bench.load.processes",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
        env={**os.environ, "PYTHONPATH": path},
    )
    child = _Child(process, setup.concurrency)
    child.write(setup)
    return child


def read_parts(files: Sequence[Path]) -> Iterator[Record]:
    """The records of several files, in the order in which requests ended. A first line that is no record is skipped."""
    return heapq.merge(*(_read(file) for file in files), key=lambda record: record.end)


def _read(path: Path) -> Iterator[Record]:
    decode = msgspec.json.Decoder(Record).decode
    with path.open("rb") as file:
        for line in file:
            if not line.startswith(b'{"title":'):
                yield decode(line)


if __name__ == "__main__":
    sys.exit(_main())
