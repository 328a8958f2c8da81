"""Which jobs wait for their grammars to be compiled, and how does the worker's loop hear that one is?"""

import contextlib
import socket
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

from llguidance import LLMatcher

from engine.job import Job


class Compiled(NamedTuple):
    """A job whose grammar has been compiled, or found to be impossible: the future has what came of it."""

    job: Job
    future: Future[LLMatcher]


class Compiling:
    """The jobs that wait. A byte goes through a socket for each that is ready, so that a loop can sleep on it.

    To be used from one thread; only the ends of compilations come from others.
    """

    def __init__(self) -> None:
        self._ready: deque[Compiled] = deque()
        self._awaited = 0
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)

    @property
    def descriptor(self) -> int:
        """Readable when a job is ready."""
        return self._here.fileno()

    def wait_for(self, job: Job, future: Future[LLMatcher]) -> None:
        """Let ``job`` come out of `take` once its grammar has been compiled."""
        self._awaited += 1
        future.add_done_callback(lambda future: self._finished(Compiled(job, future)))

    def take(self) -> list[Compiled]:
        """Those that have become ready since the last call."""
        if not self._awaited:
            return []
        try:
            count = len(self._here.recv(4096))
        except BlockingIOError:
            return []
        self._awaited -= count
        return [self._ready.popleft() for _ in range(count)]

    def close(self) -> None:
        """Hear of nothing any more."""
        self._here.close()
        self._there.close()

    def _finished(self, compiled: Compiled) -> None:
        self._ready.append(compiled)
        with contextlib.suppress(OSError):  # closed meanwhile: nobody waits any more
            self._there.send(b"\0")
