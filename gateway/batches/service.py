"""What can be asked of the data folder? Files and batches, from the server's start to its end.

The folder is opened at the start where it is there, else by the first request that needs it; as long as that can't be
done (another process holds it, the disk is read-only) such requests are answered 503, and all others as always.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway.api.inside import Application
from gateway.batches import run
from gateway.batches.files import FileStore
from gateway.batches.folder import DataFolder, FolderUnavailable, Threads, reason
from gateway.batches.shared import Shared
from gateway.wire import errors
from gateway.wire.batches import Batch, CreateBatch
from gateway.wire.files import ListQuery

_WINDOW: Final = 24 * 3600.0
_SWEEP: Final = 60.0
_GRACE: Final = 1.0

log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    folder: DataFolder
    shared: Shared
    runs: dict[str, run.BatchRun]


class Batches:
    """Files and batches of one gateway process.

    Args:
        app: answers the requests in batches.
        path: the data folder, if there is one.
        concurrency: most requests of all batches that are under way at a time.
        max_body: largest body of a request in bytes.
        max_file: largest upload in bytes.
        window: seconds from a batch's creation to its expiry.
    """

    def __init__(
        self,
        app: Application,
        path: Path | None,
        *,
        concurrency: int = 64,
        max_body: int = 32 << 20,
        max_file: int = 8 << 30,
        clock: Callable[[], float] = time.time,
        window: float = _WINDOW,
    ) -> None:
        self.threads = Threads()
        self.max_file = max_file
        self._app = app
        self._path = path
        self._concurrency = concurrency
        self._max_body = max_body
        self._clock = clock
        self._window = window
        self._opening = asyncio.Lock()
        self._opened: _Opened | None = None
        self._started = False
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with the batches that there are. Requests can be answered from now on."""
        self._started = True
        if self._opened is not None:
            self._start_all(self._opened)
        elif self._path is not None and await self.threads.run(os.path.exists, self._path):
            try:
                await self._open()
            except errors.ApiError as error:
                log.warning("files and batches: %s", error.message)

    async def drain(self) -> None:
        """Begin no more requests, and return when those under way have ended."""
        opened = self._opened
        if opened is not None:
            opened.shared.stopping.set()
            for one in opened.runs.values():
                one.drain()
            tasks = {one.task for one in opened.runs.values() if one.task is not None}
            if tasks:
                await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop, whatever is under way, and let others have the folder."""
        opened, self._opened = self._opened, None
        if self._sweeper is not None:
            self._sweeper.cancel()
        if opened is not None:
            opened.shared.stopping.set()
            tasks = {one.task for one in opened.runs.values() if one.task is not None}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_GRACE)
            opened.folder.close()
        self.threads.close()

    async def files(self) -> FileStore:
        """The files.

        Raises:
            ApiError: 503, the data folder can't be used; the message says why.
        """
        return (await self._open()).shared.store

    async def create(self, asked: CreateBatch, key: str = "") -> Batch:
        """A new batch, which is under way from now on, for whoever has the API key with the id ``key``.

        Raises:
            ApiError: 400, the input is no file for batches; 503, the batch can't be kept.
        """
        opened = await self._open()
        store = opened.shared.store
        file = store.get(asked.input_file_id, key)
        if file is None:
            raise errors.invalid_value("input_file_id", f"no such file: '{asked.input_file_id}'")
        if file.purpose != "batch":
            raise errors.invalid_value("input_file_id", f"the file's purpose is '{file.purpose}', not 'batch'")
        try:
            input, now = store.path(file.id), self._clock()
            record = await self.threads.run(
                run.create, opened.folder.batches, input, asked, key=key, now=now, window=self._window
            )
        except OSError as error:
            raise disk_refused(error) from error
        found = opened.runs[record.batch.id] = run.BatchRun(opened.shared, opened.folder.batches, record)
        if self._started:
            found.start()
        return found.batch

    async def get(self, id: str, key: str = "") -> Batch | None:
        """The batch called ``id``, if the key has one."""
        found = await self._find(id, key)
        return None if found is None else found.batch

    async def list(self, query: ListQuery, key: str = "") -> list[Batch]:
        """What ``query`` asks for of the key's, and one more where there is more."""
        runs = (await self._open()).runs
        ids = [id for id in sorted(runs, reverse=query.newest_first) if query.reaches(id) and runs[id].key == key]
        return [runs[id].batch for id in ids[: query.limit + 1]]

    async def cancel(self, id: str, key: str = "") -> Batch | None:
        """The batch called ``id``, if the key has one, which ends early.

        Raises:
            ApiError: 409, it has ended already; 503, it can't be written down.
        """
        found = await self._find(id, key)
        if found is None:
            return None
        try:
            if not await found.cancel():
                raise errors.conflict(f"Cannot cancel a batch with status '{found.batch.status}'.")
        except OSError as error:
            raise disk_refused(error) from error
        return found.batch

    async def _find(self, id: str, key: str) -> run.BatchRun | None:
        found = (await self._open()).runs.get(id)
        return found if found is not None and found.key == key else None

    async def _open(self) -> _Opened:
        async with self._opening:
            if self._opened is None:
                try:
                    folder, store, records = await self.threads.run(self._load)
                except FolderUnavailable as error:
                    raise errors.unavailable(f"Files and batches can't be used: {error}.") from error
                shared = Shared(
                    self._app, store, self.threads,
                    concurrency=self._concurrency, max_body=self._max_body, clock=self._clock,
                )  # fmt: skip
                runs = {record.batch.id: run.BatchRun(shared, folder.batches, record) for record in records}
                self._opened = _Opened(folder, shared, runs)
                self._sweeper = asyncio.create_task(self._sweep(store))
                if self._started:
                    self._start_all(self._opened)
            return self._opened

    def _load(self) -> tuple[DataFolder, FileStore, Sequence[run.Record]]:
        if self._path is None:
            raise FolderUnavailable("there is no home folder to keep them in; name another with --data-dir")
        folder = DataFolder(self._path)
        try:
            return folder, FileStore(folder, self._clock), list(run.load(folder.batches))
        except OSError as error:
            folder.close()
            raise FolderUnavailable(f"the data folder {self._path} can't be read: {reason(error)}") from error

    def _start_all(self, opened: _Opened) -> None:
        for _, one in sorted(opened.runs.items()):
            one.start()

    async def _sweep(self, store: FileStore) -> None:
        while True:
            try:
                await self.threads.run(store.sweep)
            except OSError as error:
                log.warning("expired files can't be removed: %s", error)
            await asyncio.sleep(_SWEEP)


def disk_refused(error: OSError) -> errors.ApiError:
    """503: what a client sent can't be kept."""
    log.error("the data folder can't be written to: %s", error)
    return errors.unavailable(f"It can't be kept: {reason(error)}.")
