"""Which requests of a batch are asked now, which again, and when is an answer written down?

Requests are handed out as places become free, answers come in any order. They are collected for a moment and then
written together, so that the disk is waited for once for many.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.api.inside import Answer, ask
from gateway.batches.folder import outlast
from gateway.batches.lines import Line, Lines, decode_line
from gateway.batches.results import Outcome, Results, answered
from gateway.batches.shared import Shared, Stopped
from gateway.wire import errors
from gateway.wire.batches import Batch

_LINGER: Final = 0.05
_MAX_PENDING: Final = 8 << 20  # bytes of answers that wait for the disk; no request is handed out beyond
_AGAIN: Final = frozenset({429, 503})
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0

Durably = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

log = logging.getLogger(__name__)


class _Streams(msgspec.Struct):
    """All that has to be known of a body."""

    stream: Any = None


_decode_streams = msgspec.json.Decoder(_Streams).decode


class Work:
    """The requests of one batch that have no result yet.

    Args:
        durably: does what it is given until the disk takes it.
    """

    def __init__(self, shared: Shared, batch: Batch, input: Path, results: Results, durably: Durably) -> None:
        self._shared = shared
        self._batch = batch
        self._input = input
        self._results = results
        self._durably = durably
        self._handing_out: asyncio.Task[None] | None = None
        self._pending: dict[Outcome, list[tuple[int, bytes]]] = {"completed": [], "failed": []}
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._all_in = False

    async def run(self) -> None:
        """Ask, and return when every line has its result on the disk.

        Cancelled, it still writes the answers that it has.

        Raises:
            Stopped: the server shuts down; what was under way has been finished.
            OSError: the input can't be read.
        """
        lines = Lines(self._input, self._shared.max_body)
        writer = asyncio.create_task(self._write())
        fault: list[OSError] = []
        try:
            async with asyncio.TaskGroup() as requests:
                self._handing_out = requests.create_task(self._hand_out(lines, requests, fault))
                self.drain()
        finally:
            lines.close()
            self._all_in = True
            self._wake.set()
            await outlast(writer)
        writer.result()
        if fault:
            raise fault[0]
        if self._shared.stopping.is_set():
            raise Stopped

    def drain(self) -> None:
        """Hand out no more requests, once the server shuts down."""
        if self._handing_out is not None and self._shared.stopping.is_set():
            self._handing_out.cancel()

    async def _hand_out(self, lines: Lines, requests: asyncio.TaskGroup, fault: list[OSError]) -> None:
        places = self._shared.places
        try:
            while (block := await self._shared.threads.run(lines.take)) is not None:
                for line in block:
                    if self._results.done(line.number):
                        continue
                    await self._room.wait()
                    await places.acquire()
                    requests.create_task(self._answer(line)).add_done_callback(lambda _: places.release())
        except OSError as error:
            fault.append(error)

    async def _answer(self, line: Line) -> None:
        """Get the answer to one line, and have it written down."""
        request = decode_line(line.text)
        try:
            answer = await self._ask(bytes(request.body))
        except Exception:
            log.exception("batch=%s line=%d", self._batch.id, line.number)
            answer = _refused(errors.internal_error())
        if answer is None:
            return
        text = answered(self._batch.id, line.number, request.custom_id, answer.status, answer.request_id, answer.body)
        self._pending["completed" if answer.status < 400 else "failed"].append((line.number, text))
        self._pending_bytes += len(text)
        if self._pending_bytes > _MAX_PENDING:
            self._room.clear()
        self._wake.set()

    async def _ask(self, body: bytes) -> Answer | None:
        """The answer to a request, asked again as long as another time may do; None if the server shuts down first."""
        if _streams(body):
            return _refused(errors.unsupported_parameter("stream", "the answers of a batch are collected in a file"))
        pause = _FIRST_PAUSE
        while True:
            answer = await ask(self._shared.app, self._batch.endpoint, body)
            if answer.status not in _AGAIN:
                return answer
            try:
                await self._shared.pause(max(answer.retry_after or 0.0, pause) * random.uniform(1.0, 1.5))
            except Stopped:
                return None
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            if not self._all_in:
                await asyncio.sleep(_LINGER)
            self._wake.clear()
            pending, self._pending = self._pending, {"completed": [], "failed": []}
            self._pending_bytes = 0
            if any(pending.values()):
                await self._durably(lambda pending=pending: self._shared.threads.run(self._results.append, pending))  # type: ignore[misc]
            self._room.set()
            if self._all_in and not any(self._pending.values()):
                return


def _streams(body: bytes) -> bool:
    """Whether ``body`` asks for a streamed answer. What can't be read is the endpoint's to refuse."""
    try:
        return bool(_decode_streams(body).stream)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _refused(error: errors.ApiError) -> Answer:
    return Answer(error.status, error.body, f"req-{secrets.token_hex(12)}", None)
