"""Who brings the request log into its table, and removes what is too old? A process of its own, now and then.

It takes libraries and memory that a gateway is better without, and may be killed at any moment: what it does is done
once, however often it is begun (`flywheel.maintenance`).
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from flywheel.log.reading import anything_closed
from gateway.fleet.worker_process import package_environment

_LOOK_EVERY: Final = 15.0  # seconds between two looks whether there is anything to do
_AT_LEAST: Final = 3600.0  # seconds until it is done even if nothing new is there: days pass

log = logging.getLogger(__name__)


class Upkeep:
    """Looks after the log in ``folder``.

    Args:
        days: how many are kept; None: all.
        size: how many bytes the table may have; None: any.
    """

    def __init__(self, folder: Path, days: int | None, size: int | None) -> None:
        self._folder = folder
        self._words = ["--log", str(folder)]
        if days is not None:
            self._words += ["--keep-days", str(days)]
        if size is not None:
            self._words += ["--keep-bytes", str(size)]

    async def run(self) -> None:
        """Until cancelled."""
        done = monotonic()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self._waiting() or monotonic() - done > _AT_LEAST:
                done = monotonic()
                await self._once()

    def _waiting(self) -> bool:
        """Whether a closed segment is there."""
        return anything_closed(self._folder)

    async def _once(self) -> None:
        status, said = await _run([sys.executable, "-P", "-m", "penstock", "log", "compact", *self._words])
        if status != 0:
            log.error("the request log could not be brought into its table, and will be: %s", said)
        elif said:
            log.info("request log: %s", said)


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command at low priority; its exit status, and the end of what it said."""
    try:
        process = await asyncio.create_subprocess_exec(
            *("nice", "-n", "10", *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=package_environment(),
        )
    except OSError as error:
        return 1, str(error)
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return process.returncode or 0, out.decode("utf-8", "replace").strip()[-500:]
