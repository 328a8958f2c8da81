"""How do several gateway processes share one port and the same workers? ``--gateway-processes N``.

The parent starts the workers and looks after them, and starts N gateways, each of which listens on the same port
(SO_REUSEPORT: the kernel spreads connections over them) and has a link of its own to every worker. They don't know each
other: what one has placed, the others see in the workers' load reports. What is kept (files, batches, stored responses)
is the first one's business, to which the others send such requests on (`gateway.owner`). A gateway that dies is started
again; its clients' connections are gone with it, everybody else's are not touched.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.fleet.crew import Crew, recruit
from gateway.fleet.worker_process import Backoff, WorkerStartError, describe_exit, package_environment
from gateway.plan import make_plan
from gateway.settings import Settings, SettingsError
from gateway.startup import display
from gateway.telemetry.metrics import Metrics

_GRACE: Final = 3.0

log = logging.getLogger(__name__)


class GatewayStartError(Exception):
    """A gateway process ended before it was ready; it has said why."""


class GatewayProcess:
    """Runs ``command`` for as long as the parent lives. ``announced`` has the line that says that it is ready."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._command = command
        self._backoff = Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def run(self) -> None:
        """Keep it running until `stop`.

        Raises:
            GatewayStartError: the first one ended before it was ready.
        """
        while True:
            started = time.monotonic()
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=package_environment(),
            )
            assert process.stdout is not None
            try:
                while line := await process.stdout.readline():
                    if not self.announced.done():
                        self.announced.set_result(line.decode())
                status = await process.wait()
            except asyncio.CancelledError:
                self.kill()
                await process.wait()
                raise
            if self._stopping:
                return
            if not self.announced.done():
                raise GatewayStartError(f"gateway process {self.name} {describe_exit(status)} before it was ready")
            pause = self._backoff.after(time.monotonic() - started)
            log.error("gateway process %s %s; starting another in %g s", self.name, describe_exit(status), pause)
            await asyncio.sleep(pause)

    def stop(self) -> None:
        """Have it finish what it has, and end."""
        self._stopping = True
        self._signal(signal.SIGTERM)

    def reload(self) -> None:
        """Have it read the configuration file again."""
        self._signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it without waiting."""
        self._stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                self._process.send_signal(number)


class Parent:
    """What starts gateways and workers, and answers nobody itself.

    Args:
        port: that the gateways are to listen on.
        directory: where the workers' sockets go.

    Raises:
        SettingsError: a secret isn't set, a certificate can't be read, or what is to be served can't be shared.
    """

    def __init__(
        self, settings: Settings, port: int, directory: Path, command_of: Callable[[Settings, str], list[str]]
    ) -> None:
        self._settings = settings
        self._display = display()
        self._owner = directory / "owner.sock"
        self._crew = Crew((), settings.worker_timeout)
        addresses = settings.worker
        plan = make_plan(settings)
        if settings.config is not None and plan.started_here:
            raise SettingsError(
                "with --gateway-processes, workers can't be started by the targets of --config: start them with "
                "penstock worker, and name them under workers"
            )
        if plan.started_here:
            self._crew = recruit(settings, directory, command_of, Metrics(), None, self._display.show)
            addresses = tuple(f"unix:{directory / f'w{index}.sock'}" for index in range(settings.replicas))
        self._child = msgspec.structs.replace(
            settings, model=None, worker=addresses, replicas=1, port=port, gateway_processes=1
        )
        if not self._crew.workers:
            self._child = msgspec.structs.replace(self._child, model=settings.model)
        self._stop = asyncio.Event()
        self._abandon = asyncio.Event()
        self._restarting: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Run until stopped; returns the exit status: 0 after a drain, 130 after a second Ctrl-C, else 1."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._restart_workers)
        gateways = [
            GatewayProcess(f"g{index}", child_command(self._child, index, self._owner))
            for index in range(self._settings.gateway_processes)
        ]
        if self._settings.config is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reload, gateways)
        crew = asyncio.create_task(self._crew.run())
        running = [asyncio.create_task(gateway.run()) for gateway in gateways]
        life = asyncio.create_task(self._live(gateways, running, crew))
        abandoned = asyncio.create_task(self._abandon.wait())
        try:
            await asyncio.wait({life, abandoned}, return_when=asyncio.FIRST_COMPLETED)
            return 130 if self._abandon.is_set() else life.result()
        finally:
            for gateway in gateways:
                gateway.kill()
            self._crew.kill()
            tasks = (life, abandoned, crew, *running, *self._restarting)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(
        self, gateways: list[GatewayProcess], running: list[asyncio.Task[None]], crew: asyncio.Task[None]
    ) -> int:
        status = 0
        failing = {*running, crew} if self._crew.workers else set(running)
        stop = asyncio.create_task(self._stop.wait())
        try:
            with self._display:
                ready = asyncio.gather(*(gateway.announced for gateway in gateways))
                waited: set[asyncio.Future[Any]] = {ready, stop, *failing}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                print(gateways[0].announced.result(), end="", flush=True)
                await asyncio.wait({stop, *failing}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            for task in failing:
                if task.done():
                    task.result()
        except (GatewayStartError, WorkerStartError) as error:
            print(f"penstock: error: {error}", file=sys.stderr)
            status = 1
        finally:
            stop.cancel()
        for gateway in gateways:
            gateway.stop()
        await asyncio.wait(running, timeout=self._settings.drain_timeout + 2 * _GRACE)
        await self._crew.stop(_GRACE)
        return status

    def _restart_workers(self) -> None:
        task = asyncio.get_running_loop().create_task(self._crew.restart(self._settings.drain_timeout))
        self._restarting.add(task)
        task.add_done_callback(self._restarting.discard)

    def _reload(self, gateways: Sequence[GatewayProcess]) -> None:
        for gateway in gateways:
            gateway.reload()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            self._abandon.set()
        self._stop.set()


def reserve(host: str, port: int) -> socket.socket:
    """Take a port without listening on it, so that others may listen there too; port 0 takes a free one.

    Raises:
        OSError: the address is in use by somebody who doesn't share it, or isn't ours.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address[:2])
    except OSError as error:
        sock.close()
        raise OSError(f"can't listen on {host} port {port}: {error.strerror or error}") from error
    return sock


def child_command(settings: Settings, index: int, owner: Path) -> list[str]:
    """The command line of gateway process ``index``; the first one listens at ``owner`` to the others."""
    said = msgspec.json.encode(settings).decode()
    return [sys.executable, "-P", "-m", "gateway.processes", str(os.getpid()), str(index), str(owner), said]


def main(parent: str, index: str, owner: str, said: str) -> int:
    """One of several gateway processes."""
    from gateway.server import serve_shared

    settings = msgspec.json.decode(said, type=Settings)
    # Files and batches belong to one process: the data folder has one owner.
    return serve_shared(settings, parent=int(parent), keeps_data=index == "0", owner=Path(owner))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
