"""What do all batches of a gateway share? The application, the disk's threads, the places for requests, the end."""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.api.inside import Application
from gateway.batches.files import FileStore
from gateway.batches.folder import Threads

_CHECKED: Final = 2  # inputs that are checked at a time; each takes its share of a core
_ACTIVE: Final = 64  # batches with open files and a block of input in memory


class Stopped(Exception):
    """The server shuts down; the batch goes on after the next start."""


class Shared:
    """One per gateway process.

    Args:
        concurrency: most requests of all batches that are under way at a time.
        max_body: largest body of a request in bytes.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        app: Application,
        store: FileStore,
        threads: Threads,
        *,
        concurrency: int,
        max_body: int,
        clock: Callable[[], float],
    ) -> None:
        self.app = app
        self.store = store
        self.threads = threads
        self.max_body = max_body
        self.clock = clock
        # Those who wait get their place in the order they came: batches take turns, whatever their size.
        self.places = asyncio.Semaphore(concurrency)
        self.checked = asyncio.Semaphore(_CHECKED)
        self.active = asyncio.Semaphore(_ACTIVE)
        self.stopping = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopped: the server shuts down, now or meanwhile.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
        raise Stopped
