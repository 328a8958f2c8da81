"""How does a batch get from its creation to its end, over any number of restarts?

What is known of a batch is in ``batch.json`` in its folder, and is changed there before it is changed here; the results
say for themselves which lines they are of. So a start takes up where the last process stopped, wherever that was.
"""

import asyncio
import contextlib
import errno
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from gateway.batches.files import new_id
from gateway.batches.folder import outlast, reason, same_file, sync_folder, write_whole
from gateway.batches.lines import Check, Lines, decode_line
from gateway.batches.results import Outcome, Results, unanswered
from gateway.batches.shared import Shared, Stopped
from gateway.batches.work import Work
from gateway.wire.batches import Batch, BatchError, BatchErrors, CreateBatch, RequestCounts, Status

ENDED: Final[frozenset[Status]] = frozenset({"failed", "completed", "expired", "cancelled"})
_RECORD: Final = "batch.json"
_INPUT: Final = "input.jsonl"
_DISK_PAUSE: Final = 5.0
_CANCELLED: Final = ("batch_cancelled", "The batch was cancelled before this request had ended.")
_EXPIRED: Final = ("batch_expired", "This request could not be executed before the completion window expired.")

T = TypeVar("T")

log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it is kept. Its files of results are called so once they are there; ``keep_results`` in seconds.

    ``key`` is the id of the API key that it was created with: its lines are answered as that key's requests, and others
    don't find it. It is empty where no key is needed.
    """

    batch: Batch
    output_id: str
    error_id: str
    keep_results: int | None = None
    key: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def create(folder: Path, input: Path, asked: CreateBatch, *, key: str = "", now: float, window: float) -> Record:
    """A new batch in a folder of its own within ``folder``, which keeps its input whatever becomes of the file.

    Raises:
        OSError: it can't be written down.
    """
    batch = Batch(
        id=new_id("batch_"),
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        status="validating",
        created_at=int(now),
        expires_at=int(now + window),
        metadata=asked.metadata,
    )
    keep = asked.output_expires_after
    record = Record(
        batch=batch,
        output_id=new_id("file-"),
        error_id=new_id("file-"),
        keep_results=None if keep is None else keep.seconds,
        key=key,
    )
    own = folder / batch.id
    own.mkdir(mode=0o700)
    try:
        same_file(input, own / _INPUT)
        write_whole(own / _RECORD, _encode(record))
        sync_folder(folder)
    except OSError:
        shutil.rmtree(own, ignore_errors=True)
        raise
    return record


def load(folder: Path) -> Iterator[Record]:
    """The batches in ``folder``. What a crash left of a creation or behind an end is removed."""
    for own in folder.iterdir():
        path = own / _RECORD
        try:
            record = _decode(path.read_bytes())
        except NotADirectoryError:
            continue  # not ours
        except FileNotFoundError:
            shutil.rmtree(own, ignore_errors=True)
        except msgspec.DecodeError as error:
            log.error("%s can't be read, its batch is not shown: %s", path, error)
        else:
            if record.batch.status in ENDED:
                _tidy(own)
            yield record


class BatchRun:
    """A batch, and what is being done for it. ``folder`` is that of all batches."""

    def __init__(self, shared: Shared, folder: Path, record: Record) -> None:
        self._shared = shared
        self._own = folder / record.batch.id
        self._record = record
        self._results: Results | None = None
        self._work: Work | None = None
        self._paused: BatchError | None = None
        self._changing = asyncio.Lock()
        self._cancelled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def batch(self) -> Batch:
        """The batch as clients see it now."""
        batch = self._record.batch
        if self._results is not None and batch.status not in ENDED:
            batch = msgspec.structs.replace(batch, request_counts=self._counts(), usage=self._results.usage)
        if self._paused is not None:
            batch = msgspec.structs.replace(batch, errors=BatchErrors([self._paused]))
        return batch

    @property
    def key(self) -> str:
        """The id of the API key that it belongs to."""
        return self._record.key

    def start(self) -> None:
        """Go on from where the batch is."""
        if self._record.batch.status not in ENDED:
            self.task = asyncio.create_task(self._live())

    def drain(self) -> None:
        """Begin nothing new; the server shuts down."""
        if self._work is not None:
            self._work.drain()
        elif self.task is not None:
            self.task.cancel()

    async def cancel(self) -> bool:
        """End the batch early; False when it is too late for that.

        Raises:
            OSError: it can't be written down.
        """
        async with self._changing:
            if self._record.batch.status in ("validating", "in_progress"):
                changed = self._with(status="cancelling", cancelling_at=self._now())
                await self._shared.threads.run(write_whole, self._own / _RECORD, _encode(changed))
                self._record = changed
                self._cancelled.set()
        return self._record.batch.status in ("cancelling", "cancelled")

    async def _live(self) -> None:
        try:
            await self._go_on()
        except Stopped:
            log.info("batch=%s goes on after the next start", self._record.batch.id)
        except OSError as error:
            log.error("batch=%s failed: %s", self._record.batch.id, error)
            await self._fail("storage_error", f"The batch's files can't be used: {reason(error)}.")
        except Exception:
            log.exception("batch=%s failed", self._record.batch.id)
            await self._fail("internal_error", "The server had a fault while it worked on the batch.")
        finally:
            if self._results is not None:
                self._results.close()

    async def _go_on(self) -> None:
        if self._record.batch.status == "validating":
            await self._unless_over(self._validate())
        if self._record.batch.in_progress_at is None:
            if self._record.batch.status not in ENDED:
                await self._finish()
            return
        active = await self._unless_over(self._wait_for_turn())
        try:
            await self._durably(self._recover)
            if active and self._record.batch.status == "in_progress":
                await self._unless_over(self._ask_all())
            await self._finish()
        finally:
            if active:
                self._shared.active.release()

    async def _wait_for_turn(self) -> None:
        await self._shared.active.acquire()

    async def _validate(self) -> None:
        batch = self._record.batch
        check = Check(batch.endpoint, self._shared.max_body)
        async with self._shared.checked:
            await self._shared.threads.go_through(self._look_at_lines(check))
        if check.errors:
            await self._change("validating", status="failed", failed_at=self._now(), errors=BatchErrors(check.errors))
            await self._shared.threads.run(_tidy, self._own)
        else:
            counts = RequestCounts(total=check.total)
            await self._change("validating", status="in_progress", in_progress_at=self._now(), request_counts=counts)

    def _look_at_lines(self, check: Check) -> Generator[None]:
        with contextlib.closing(Lines(self._own / _INPUT, self._shared.max_body)) as lines:
            while (block := lines.take()) is not None:
                check.look_at(block)
                yield
        check.finish()

    async def _recover(self) -> None:
        """Open the results, and find out which lines have theirs."""
        results = await self._shared.threads.run(Results, self._own, self._record.batch.id)
        try:
            await self._shared.threads.go_through(results.recover())
        except BaseException:
            results.close()
            raise
        self._results = results

    async def _ask_all(self) -> None:
        try:
            record = self._record
            self._work = Work(
                self._shared, record.batch, self._own / _INPUT, self._opened, self._durably, key=record.key
            )
            await self._work.run()
        finally:
            self._work = None

    async def _finish(self) -> None:
        """Bring the batch to its end: all lines have their result, or the others get it said why not."""
        if self._results is not None and self._counts().completed + self._counts().failed == self._counts().total:
            await self._change("in_progress", status="finalizing", finalizing_at=self._now())
        end: Status
        match self._record.batch.status:
            case "finalizing":
                end = "completed"
            case "cancelling":
                end = "cancelled"
                await self._give_up(*_CANCELLED)
            case _:
                end = "expired"
                await self._give_up(*_EXPIRED)
        await self._change(None, status=end, **{f"{end}_at": self._now()}, **await self._keep_results())
        log.info("batch=%s status=%s", self._record.batch.id, end)
        await self._shared.threads.run(_tidy, self._own)

    async def _give_up(self, code: str, message: str) -> None:
        """Write down for every line without a result that it will have none."""
        if self._results is not None:
            await self._durably(lambda: self._shared.threads.go_through(self._give_up_lines(code, message)))

    def _give_up_lines(self, code: str, message: str) -> Generator[None]:
        results, id = self._opened, self._record.batch.id
        with contextlib.closing(Lines(self._own / _INPUT, self._shared.max_body)) as lines:
            while (block := lines.take()) is not None:
                undone = [line for line in block if not results.done(line.number)]
                failed = [
                    (line.number, unanswered(id, line.number, decode_line(line.text).custom_id, code, message))
                    for line in undone
                ]
                results.append({"failed": failed})
                yield

    async def _keep_results(self) -> dict[str, Any]:
        """Make files of the results; what a batch that has ended says of them."""
        if self._results is None:
            return {}
        record, kept = self._record, {}
        ids: dict[Outcome, tuple[str, str, str]] = {
            "completed": ("output_file_id", record.output_id, f"{record.batch.id}_output.jsonl"),
            "failed": ("error_file_id", record.error_id, f"{record.batch.id}_error.jsonl"),
        }
        for outcome, (field, id, name) in ids.items():
            path = self._results.path(outcome)
            if path is not None:
                await self._durably(
                    lambda id=id, path=path, name=name: self._shared.threads.run(  # type: ignore[misc]
                        self._shared.store.adopt, id, path, name, "batch_output", record.keep_results, record.key
                    )
                )
                kept[field] = id
        return {"request_counts": self._counts(), "usage": self._results.usage, **kept}

    async def _fail(self, code: str, message: str) -> None:
        found = BatchErrors([BatchError(code=code, message=message)])
        changes = {"status": "failed", "failed_at": self._now(), "errors": found}
        try:
            await self._change(None, **changes, **await self._keep_results())
        except (OSError, Stopped):
            self._record = self._with(**changes)  # here at least; the next start tries again
        self._paused = None

    async def _change(self, before: Status | None, **changes: Any) -> None:
        """Change the batch, unless its status is another than ``before`` meanwhile."""
        async with self._changing:
            if before in (None, self._record.batch.status):
                changed = self._with(**changes)
                path, data = self._own / _RECORD, _encode(changed)
                await self._durably(lambda: self._shared.threads.run(write_whole, path, data))
                self._record = changed

    async def _unless_over(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work``, and leave it, returning False, where the batch is cancelled or its time is over."""
        doing = asyncio.create_task(work)
        cancelled = asyncio.create_task(self._cancelled.wait())
        left = self._record.batch.expires_at - self._shared.clock()
        try:
            await asyncio.wait({doing, cancelled}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
                return True
            return False
        finally:
            cancelled.cancel()
            doing.cancel()
            await outlast(doing)

    async def _durably(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do ``act`` again and again until the disk takes it, and say so meanwhile: what was computed isn't lost.

        Raises:
            Stopped: the server shuts down before that.
            OSError: what it needs is gone; waiting won't bring it back.
        """
        while True:
            try:
                done = await act()
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise
                message = f"The batch is paused until the disk can be used again: {reason(error)}."
                if self._paused is None:
                    log.error("batch=%s %s", self._record.batch.id, message)
                self._paused = BatchError(code="storage_error", message=message)
            else:
                self._paused = None
                return done
            await self._shared.pause(_DISK_PAUSE)

    @property
    def _opened(self) -> Results:
        if self._results is None:
            raise RuntimeError("the results have not been recovered")
        return self._results

    def _counts(self) -> RequestCounts:
        results = self._opened
        total = self._record.batch.request_counts.total
        return RequestCounts(total=total, completed=results.completed, failed=results.failed)

    def _with(self, **changes: Any) -> Record:
        return msgspec.structs.replace(self._record, batch=msgspec.structs.replace(self._record.batch, **changes))

    def _now(self) -> int:
        return int(self._shared.clock())


def _tidy(own: Path) -> None:
    """Remove what a batch that has ended needs no more: its results have become files."""
    for name in (_INPUT, "output.jsonl", "errors.jsonl"):
        with contextlib.suppress(OSError):
            (own / name).unlink()
