"""How are all workers of a gateway kept together: started or reached, watched, restarted in turn, and let go?"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from engine.link import Progress
from gateway.fleet.remote import RemoteWorker
from gateway.fleet.worker import Watcher, Worker
from gateway.fleet.worker_process import WorkerProcess
from gateway.settings import Settings, SettingsError
from gateway.telemetry.metrics import Metrics

_LOOK_EVERY: Final = 0.25

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Of a target's workers among all that are started on this machine.

    ``gpus`` are taken by targets that come first, ``others`` are the workers of all other targets. ``names`` is what
    the workers' names begin with, ``number`` that of the first.
    """

    gpus: int = 0
    others: int = 0
    names: str = "w"
    number: int = 0


class Keeper(Protocol):
    """Keeps one worker connected."""

    worker: Worker

    async def run(self) -> None:
        """Do so until it is stopped."""

    async def stop(self, timeout: float) -> None:
        """Let the worker go; what it has may take ``timeout`` seconds."""

    async def restart(self, timeout: float) -> None:
        """Have the worker started anew, if that is ours to do, and wait until it is there."""

    def kill(self) -> None:
        """Let the worker go without waiting."""


class Crew:
    """The workers of a gateway, with whatever keeps each of them.

    Args:
        keepers: one for each worker.
        lost_after: seconds of silence after which a worker is taken for lost.
    """

    def __init__(self, keepers: Sequence[Keeper], lost_after: float) -> None:
        self._keepers = list(keepers)
        self._lost_after = lost_after
        self._restarting = asyncio.Lock()

    @property
    def workers(self) -> list[Worker]:
        """All of them, whether they are there or not."""
        return [keeper.worker for keeper in self._keepers]

    async def run(self) -> None:
        """Keep the workers, until all have been stopped.

        Raises:
            WorkerStartError: one of ours ended before it ever said `Hello`.
        """
        watching = asyncio.create_task(self._watch())
        keeping = [asyncio.create_task(keeper.run()) for keeper in self._keepers]
        try:
            await asyncio.gather(*keeping)
        finally:
            watching.cancel()
            for task in keeping:
                task.cancel()
            await asyncio.gather(watching, *keeping, return_exceptions=True)

    async def greeted(self) -> None:
        """Wait until every worker that we start, or one of the others, has said what it is."""
        waiting = [asyncio.create_task(worker.greeted.wait()) for worker in self.workers]
        ours = all(isinstance(keeper, WorkerProcess) for keeper in self._keepers)
        try:
            await asyncio.wait(waiting, return_when=asyncio.ALL_COMPLETED if ours else asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def restart(self, timeout: float) -> None:
        """Start every worker of ours anew, one after the other; nothing that runs is lost.

        What a worker has may take ``timeout`` seconds to finish; then the others go on with it.
        """
        async with self._restarting:
            for keeper in self._keepers:
                log.info("worker=%s restarting", keeper.worker.name)
                await keeper.restart(timeout)

    async def stop(self, timeout: float) -> None:
        """Let all go; what they have may take ``timeout`` seconds."""
        await asyncio.gather(*(keeper.stop(timeout) for keeper in self._keepers))

    def kill(self) -> None:
        """Let all go without waiting."""
        for keeper in self._keepers:
            keeper.kill()

    async def _watch(self) -> None:
        """Look four times a second whether the workers give signs of life."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            now = loop.time()
            # If it was us who slept, then what workers said meanwhile waits to be read.
            if now - last < 2 * _LOOK_EVERY:
                for worker in self.workers:
                    worker.check(now, self._lost_after)
            last = now


def recruit(
    settings: Settings,
    directory: Path,
    command_of: Callable[[Settings, str], list[str]],
    metrics: Metrics,
    watcher: Watcher | None,
    on_progress: Callable[[Progress], None] | None = None,
    place: Place = Place(),  # noqa: B008 - it can't be changed
) -> Crew:
    """The crew that the settings ask for: replicas in processes of ours, their sockets in ``directory``, or others.

    ``on_progress`` is told how the first one loads.

    Raises:
        SettingsError: a secret isn't set, or a certificate can't be read.
    """
    keepers: list[Keeper] = []
    if settings.worker:
        secret, tls = worker_secret(settings), _trust(settings)
        for name, address in zip(_names(settings.worker), settings.worker, strict=True):
            worker = Worker(name, metrics, on_progress if not keepers else None, watcher)
            keepers.append(RemoteWorker(worker, address, secret, tls))
    else:
        for index in range(settings.replicas):
            name = f"{place.names}{place.number + index}"
            worker = Worker(name, metrics, on_progress if not keepers else None, watcher)
            address = f"unix:{directory / f'w{index}.sock'}"
            own, environment = share(settings, index, place)
            keepers.append(WorkerProcess(worker, command_of(own, address), address, metrics, environment=environment))
    return Crew(keepers, settings.worker_timeout)


def share(
    settings: Settings,
    index: int,
    place: Place = Place(),  # noqa: B008 - it can't be changed
) -> tuple[Settings, dict[str, str]]:
    """The settings and the additional environment of one of several workers: its part of this machine.

    On a CPU they divide the cores. Each gets a GPU of its own, or as many as vLLM is told to use, in turn, where there
    are several; where replicas meet on one they divide its memory. How much of it each of several targets takes is
    theirs to say.
    """
    workers = settings.replicas + place.others
    if workers == 1:
        return settings, {}
    gpus = visible_gpus()
    environment: dict[str, str] = {}
    changed: dict[str, object] = {}
    if gpus and settings.device != "cpu":
        width = gpus_of(settings)
        first = place.gpus + index * width
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            dict.fromkeys(gpus[number % len(gpus)] for number in range(first, first + width))
        )
        each = -(-settings.replicas * width // len(gpus))
        if each > 1 and settings.kv_memory is None:
            changed["gpu_memory"] = (settings.gpu_memory or 0.9) / each
    elif settings.threads is None:
        changed["threads"] = max(1, len(os.sched_getaffinity(0)) // workers)
    if settings.kv_events is not None:
        changed |= {
            name: _next_port(value, index)
            for name in ("kv_events", "kv_replay")
            if (value := getattr(settings, name)) is not None
        }
    return msgspec.structs.replace(settings, **changed), environment


def gpus_of(settings: Settings) -> int:
    """How many GPUs one worker uses."""
    try:
        said = msgspec.json.decode(settings.vllm_args or "{}", type=_Parallel)
    except msgspec.MsgspecError:
        return 1  # vLLM will say what is wrong with it
    return max(1, said.tensor_parallel_size) * max(1, said.pipeline_parallel_size)


class _Parallel(msgspec.Struct):
    """What vLLM's arguments say of GPUs."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1


def visible_gpus() -> list[str]:
    """The GPUs that a worker would find here, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip()]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def worker_secret(settings: Settings) -> bytes:
    """What our workers and we both know.

    Raises:
        SettingsError: the environment variable that is to have it isn't set.
    """
    if settings.worker_secret_env is None:
        if any(address.startswith("tcp:") for address in settings.worker):
            raise SettingsError("--worker tcp://… needs --worker-secret-env: the secret that the worker was given")
        return b""
    secret = os.environ.get(settings.worker_secret_env, "")
    if not secret:
        raise SettingsError(f"--worker-secret-env {settings.worker_secret_env}: this variable is empty or not set")
    return secret.encode()


def _trust(settings: Settings) -> ssl.SSLContext | None:
    if settings.worker_tls_ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=settings.worker_tls_ca)
    except OSError as error:
        raise SettingsError(f"--worker-tls-ca {settings.worker_tls_ca}: {error}") from error


def _names(addresses: Sequence[str]) -> list[str]:
    """The workers' names in log lines and metrics: host and port, or that of the socket's file."""
    names = [
        address.removeprefix("tcp://") if address.startswith("tcp:") else Path(address.removeprefix("unix:")).stem
        for address in addresses
    ]
    return names if len(set(names)) == len(names) else list(addresses)


def _next_port(endpoint: str, index: int) -> str:
    """Where replica ``index`` publishes, if the first one does at ``endpoint``: two ports further on, each."""
    head, colon, port = endpoint.rpartition(":")
    with contextlib.suppress(ValueError):
        return f"{head}{colon}{int(port) + 2 * index}" if int(port) else endpoint
    return f"{endpoint}.{index}" if index else endpoint
