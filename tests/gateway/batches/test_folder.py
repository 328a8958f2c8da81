"""Threads that wait for disks: what is true of their work when whoever waits is cancelled."""

import asyncio
import contextlib
import threading
from collections.abc import Generator

from gateway.batches.folder import Threads
from tests.gateway.harness import run


def test_cancelled_however_often_it_waits_for_the_thread() -> None:
    async def scenario() -> None:
        threads, go_on, returned = Threads(), threading.Event(), threading.Event()

        def work() -> None:
            go_on.wait(10.0)
            returned.set()

        task = asyncio.create_task(threads.run(work))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert returned.is_set()
        threads.close()

    run(scenario())


def test_steps_that_are_left_are_closed() -> None:
    async def scenario() -> None:
        threads, stepped, closed = Threads(), asyncio.Event(), False
        loop = asyncio.get_running_loop()

        def steps() -> Generator[None]:
            nonlocal closed
            try:
                while True:
                    loop.call_soon_threadsafe(stepped.set)
                    yield
            finally:
                closed = True

        left = steps()  # a reference of ours: the collector is not to close it
        task = asyncio.create_task(threads.go_through(left))
        await stepped.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert closed
        threads.close()

    run(scenario())
