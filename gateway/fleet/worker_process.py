"""How is a worker's process started, watched, and started again when it dies?

A worker that dies before it has ever answered will not do better the next time: it has said on stderr why, and the
gateway gives up with it. One that dies later is started again after a pause that doubles from 1 s to 30 s, until it
has lived for a while. A worker never outlives its gateway: it is told its parent's process id and stops when that is
no longer its parent.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from gateway.fleet.worker import Worker
from gateway.settings import Settings, flag
from gateway.telemetry.metrics import Metrics

_CONNECT_EVERY: Final = 0.05
_KILL_AFTER: Final = 3.0
_SOCKET_PATH_LIMIT: Final = 100  # the kernel's is 108 bytes

log = logging.getLogger(__name__)


class WorkerStartError(Exception):
    """A worker ended before it could ever answer. ``status`` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the worker {describe_exit(status)} before it was ready; its own message stands above")
        self.status = status


class Backoff:
    """How long to wait before the next start: 1 s, 2 s, 4 s, … at most 30 s, and 1 s again after a stable minute."""

    def __init__(self, first: float = 1.0, most: float = 30.0, stable: float = 60.0) -> None:
        self._first, self._most, self._stable = first, most, stable
        self._next = first

    def after(self, lived: float) -> float:
        """Seconds to wait after a process that lived for ``lived`` seconds."""
        if lived >= self._stable:
            self._next = self._first
        pause, self._next = self._next, min(2 * self._next, self._most)
        return pause


class WorkerProcess:
    """Runs ``command`` for as long as the gateway lives, and keeps ``worker`` connected to it.

    Args:
        worker: gets the link of each process in turn.
        command: what to run; it must listen on ``address``.
        address: of the link, ``unix:PATH``.
        backoff: pauses between a death and the next start.
        environment: variables that its environment has beside ours.
    """

    def __init__(
        self,
        worker: Worker,
        command: Sequence[str],
        address: str,
        metrics: Metrics,
        backoff: Backoff | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.worker = worker
        self._command = list(command)
        self._address = address
        self._metrics = metrics
        self._backoff = backoff or Backoff()
        self._environment = {**package_environment(), **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._restarting = False

    @property
    def pid(self) -> int | None:
        """The process id of the worker that runs now."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Keep a worker running until `stop`.

        Raises:
            WorkerStartError: the first one ended before it said `Hello`.
        """
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_once()
            if self._stopping.is_set():
                return
            if self.worker.hello is None:
                raise WorkerStartError(status)
            if self._restarting:
                self._restarting = False
                continue
            pause = self._backoff.after(time.monotonic() - started)
            log.error("worker=%s %s; starting another in %g s", self.worker.name, describe_exit(status), pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if not self._stopping.is_set():
                self._metrics.worker_restarted(self.worker.name)

    async def stop(self, timeout: float) -> None:
        """Let the worker finish what it has, for at most ``timeout`` seconds; then end it, by force if need be."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        if self.worker.link is not None:
            self.worker.drain()
            if await _exited(process, timeout):
                return
        await _end(process)

    async def restart(self, timeout: float) -> None:
        """Start the worker anew, without losing a request, and wait until it is there.

        What it has may take ``timeout`` seconds to finish; the rest of it goes on elsewhere, or waits.
        """
        process = self._process
        if process is None or self.worker.link is None:
            return  # it is being started as it is
        self._restarting = True
        self.worker.greeted.clear()
        self.worker.settled.clear()
        self.worker.drain()
        if not await _exited(process, timeout):
            await _end(process)
        await self.worker.greeted.wait()
        await self.worker.settled.wait()

    def kill(self) -> None:
        """End the worker at once, without waiting."""
        self._stopping.set()
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)

    async def _run_once(self) -> int:
        """Run one process to its end and return its exit status."""
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.DEVNULL,
            stdout=2,  # our own standard output carries the ready line alone
            env=self._environment,
        )
        try:
            if await self._connect(process):
                lost = asyncio.ensure_future(self.worker.lost.wait())
                ended = asyncio.ensure_future(process.wait())
                await asyncio.wait({lost, ended}, return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
                if not self._stopping.is_set() and not await _exited(process, _KILL_AFTER):
                    log.error("worker=%s lives but its link broke: ending it", self.worker.name)
                    await _end(process)
                await ended
            return await process.wait()
        except asyncio.CancelledError:
            _signal(process, signal.SIGKILL)
            await process.wait()
            raise
        finally:
            self.worker.close()

    async def _connect(self, process: asyncio.subprocess.Process) -> bool:
        """Try until the worker listens: False when it ended first."""
        while process.returncode is None:
            try:
                await self.worker.connect(self._address)
            except OSError:
                await asyncio.sleep(_CONNECT_EVERY)
            else:
                return True
        return False


def worker_command(settings: Settings, address: str) -> list[str]:
    """The command line of a worker: what is set, and nothing else."""
    command = [sys.executable, "-P", "-m", "engine"]
    if settings.engine == "vllm":
        # By its path, and without PYTHONPATH: that Python's environment may be another one than ours.
        start = Path(__file__).resolve().parents[2] / "engine" / "vllm" / "__main__.py"
        quiet = ["-W", "ignore:resource_tracker:UserWarning"]  # said at the end by processes that vLLM leaves to others
        command = [settings.vllm_python or sys.executable, "-P", "-E", *quiet, str(start)]
    if settings.model is not None:
        command.append(settings.model)
    command += ["--listen", address, "--parent-pid", str(os.getpid())]
    options = {
        "--name": settings.served_model_name,
        "--device": settings.device,
        "--dtype": settings.dtype,
        "--quantization": settings.quantization,
        "--kv-dtype": settings.kv_dtype,
    }
    for field in (
        *("max_model_len", "max_running", "kv_memory", "gpu_memory", "block_size", "threads", "ttft", "tpot"),
        *("kv_events", "kv_replay", "vllm_args"),
    ):
        options[flag(field)] = getattr(settings, field)
    if settings.merged_adapter is not None:
        options["--adapter"] = settings.merged_adapter
    elif settings.adapter:
        options["--adapters"] = str(len(settings.adapter))
    for option, value in options.items():
        if value is not None:
            command += [option, str(value)]
    return command


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """A folder for sockets that only this user may enter; gone afterwards."""
    path = tempfile.mkdtemp(prefix="penstock-")
    if len(path) > _SOCKET_PATH_LIMIT - len("/w0.sock"):
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix="penstock-", dir="/tmp")
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def describe_exit(status: int) -> str:
    """``exited with status 1`` or ``was ended by SIGKILL``."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def package_environment() -> dict[str, str]:
    """Ours, and the folder of our packages: the worker finds them wherever `penstock` was started."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}


async def _exited(process: asyncio.subprocess.Process, timeout: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), timeout)
    except TimeoutError:
        return False
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    _signal(process, signal.SIGTERM)
    if not await _exited(process, _KILL_AFTER):
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        process.send_signal(number)
