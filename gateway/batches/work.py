"""Which requests of a batch are asked now, which again, and when is an answer written down?

Requests are handed out as places become free, answers come in any order. They are collected for a moment and then
written together, so that the disk is waited for once for many.

They count for the API key that the batch was created with. Where one of its limits is reached they wait, in no place
that others could have, and not more of them are tried than are likely to be let in (`gateway.batches.pace`).
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.api.inside import Answer, ask
from gateway.batches.folder import outlast
from gateway.batches.lines import Line, Lines, decode_line
from gateway.batches.pace import Pace
from gateway.batches.results import Outcome, Results, answered
from gateway.batches.shared import Shared, Stopped
from gateway.wire import errors
from gateway.wire.batches import Batch

_LINGER: Final = 0.05
_MAX_PENDING: Final = 8 << 20  # bytes of answers that wait for the disk; no request is handed out beyond
_AGAIN: Final = frozenset({429, 503})
_LIMITED: Final = "rate_limit_exceeded"
_OF_KEYS: Final = frozenset({_LIMITED, "insufficient_quota"})  # of a day's tokens none come back within the window
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
        key: the id of the API key for which they are asked.
    """

    def __init__(
        self, shared: Shared, batch: Batch, input: Path, results: Results, durably: Durably, *, key: str = ""
    ) -> None:
        self._shared = shared
        self._batch = batch
        self._input = input
        self._results = results
        self._durably = durably
        self._key = key
        self._pace = Pace()
        self._again: deque[Line] = deque()
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
        places, pace = self._shared.places, self._pace

        def over(_: object) -> None:
            places.release()
            pace.leave()

        try:
            async with contextlib.aclosing(self._undone(lines)) as undone:
                async for line in undone:
                    await self._room.wait()
                    await pace.enter()
                    await places.acquire()
                    requests.create_task(self._answer(line)).add_done_callback(over)
        except OSError as error:
            fault.append(error)

    async def _undone(self, lines: Lines) -> AsyncGenerator[Line]:
        """The lines without a result, and again those for which a limit was reached, until all have one."""
        while (block := await self._shared.threads.run(lines.take)) is not None:
            for line in block:
                if not self._results.done(line.number):
                    yield line
                while self._again:
                    yield self._again.popleft()
        while self._again or self._pace.busy:
            if self._again:
                yield self._again.popleft()
            else:
                await self._pace.left()

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
        if answer.fault is not None and answer.fault.code == _LIMITED and answer.retry_after is not None:
            self._pace.slow_down(answer.retry_after)
            self._again.append(line)
            return
        self._pace.speed_up()
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
            answer = await ask(self._shared.app, self._batch.endpoint, body, key=self._key)
            if answer.status not in _AGAIN or (answer.fault is not None and answer.fault.code in _OF_KEYS):
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
