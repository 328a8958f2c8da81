"""What happens between ``penstock serve`` and its exit? Sockets, processes, signals, the drain.

The port is taken before anything is loaded, and answers from then on: ``/health/live`` with 200, everything that needs
a model with 503, until its worker has said `Hello` and the tokenizer is there, or an upstream can be reached. Only then
is the address printed.

The first SIGTERM or Ctrl-C closes the port, lets what runs finish for at most ``drain_timeout``, ends what is left with
an error that says so, and exits with status 0. A second Ctrl-C exits at once. SIGUSR1 restarts all workers, one after
the other, and no request fails. SIGHUP has a configuration file read again.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import uvicorn
import uvloop

from gateway.api.context import Context, ReloadError
from gateway.api.inside import Application
from gateway.app import App
from gateway.batches.service import Batches
from gateway.fleet.worker_process import runtime_directory, worker_command
from gateway.http_protocol import HttpProtocol, look_after
from gateway.lane.protocol import protocol
from gateway.owner import ToOwner
from gateway.serving import Serving, StartError
from gateway.settings import Settings, SettingsError, add_arguments, from_args
from gateway.startup import display
from gateway.telemetry.lines import set_up
from gateway.wire import errors

__all__ = ["add_arguments", "run", "serve"]

_BACKLOG: Final = 4096
KEEP_ALIVE: Final = 75  # seconds; longer than the 60 s after which load balancers commonly give a connection up
GRACE: Final = 2.0  # for errors to reach clients once the drain timeout is over, and for a drained worker's exit
_LOOK_EVERY: Final = 1.0

# A step's frame for 1,024 streams is 4,000 objects that die by themselves: to look among them every 700 is a fifth of a
# token's time (10-13 us with the defaults, 8-9 so; 2-core EPYC, ``python -m bench.link``).
COLLECT_AFTER: Final = (100_000, 20, 100)

CommandOf = Callable[[Settings, str], list[str]]

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """``penstock serve`` with the command line in ``args``; returns the exit status."""
    try:
        settings = from_args(args)
    except SettingsError as error:
        print(f"penstock serve: error: {error}", file=sys.stderr)
        return 2
    return serve(settings)


def serve(settings: Settings, command_of: CommandOf = worker_command) -> int:
    """Serve until a signal ends it; returns the exit status.

    ``command_of`` says what to run as a worker that listens on an address.
    """
    set_up(settings.log_level, settings.log_format)
    if settings.gateway_processes > 1:
        return _serve_in_processes(settings, command_of)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        print(f"penstock: error: {error}", file=sys.stderr)
        return 1
    _raise_open_files_limit()
    with contextlib.closing(listener), runtime_directory() as directory:
        try:
            server = GatewayServer(settings, listener, directory, command_of)
        except SettingsError as error:
            print(f"penstock serve: error: {error}", file=sys.stderr)
            return 2
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(server.run())


def serve_shared(settings: Settings, *, parent: int, keeps_data: bool, owner: Path) -> int:
    """Be one of several gateway processes on one port; returns the exit status.

    ``parent`` is the process that must be there for this one to go on. Files and batches are kept by one of them alone,
    which listens at ``owner`` to the others.
    """
    set_up(settings.log_level, settings.log_format)
    _raise_open_files_limit()
    listener = listen(settings.host, settings.port, shared=True)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        server = GatewayServer(
            settings, listener, Path("/"), worker_command, keeps_data=keeps_data, parent=parent, owner=owner
        )
        return runner.run(server.run())


def _serve_in_processes(settings: Settings, command_of: CommandOf) -> int:
    from gateway.processes import Parent, reserve

    try:
        reserved = reserve(settings.host, settings.port)
    except OSError as error:
        print(f"penstock: error: {error}", file=sys.stderr)
        return 1
    with contextlib.closing(reserved), runtime_directory() as directory:
        try:
            parent = Parent(settings, reserved.getsockname()[1], directory, command_of)
        except SettingsError as error:
            print(f"penstock serve: error: {error}", file=sys.stderr)
            return 2
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(parent.run())


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket on ``host`` and ``port``; port 0 takes a free one. ``shared``: with others of this user.

    Raises:
        OSError: the address is in use, or isn't ours; the message says so.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(f"--host {host} is no address of this machine: {error.strerror}") from error
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"can't listen on {host} port {port}: {reason}; choose another with --host and --port") from error


class GatewayHttpServer(uvicorn.Server):
    """uvicorn's, except that signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GatewayServer:
    """One gateway process with its targets.

    Args:
        listener: the socket that clients connect to.
        directory: where the workers' sockets go.
        keeps_data: files and batches are this process' business.
        parent: it ends when this process, its parent, has gone.
        owner: where the one of several gateway processes that keeps the data listens to the others.

    Raises:
        SettingsError: there is a fault in the settings or in the file that they name, or a key isn't set.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        directory: Path,
        command_of: CommandOf,
        *,
        keeps_data: bool = True,
        parent: int | None = None,
        owner: Path | None = None,
    ) -> None:
        self._settings = settings
        self._parent = parent
        self._owner = owner if keeps_data else None
        self._listener = listener
        self._context = Context(max_queue=settings.max_queue, max_body=settings.max_body)
        self._display = display()
        data = data_folder(settings)
        self._serving = serving = Serving(
            settings,
            self._context,
            directory,
            command_of,
            self._display.show,
            data,
            leads=keeps_data,
            leader=owner.with_name("leader.sock") if owner is not None else None,
        )
        app = App(self._context)
        serving.answer_with(app)
        make: Any = protocol(serving.lanes) if serving.lanes is not None else HttpProtocol
        keeping = bool(serving.plan.natives) or settings.config is not None
        here = ToOwner(app, owner) if keeping and owner is not None and not keeps_data else app
        self._http = GatewayHttpServer(http_config(here, make))
        self._batches: Batches | None = None
        if keeping:
            self._batches = self._context.batches = Batches(
                app,
                data if keeps_data else None,
                concurrency=settings.batch_concurrency,
                max_body=settings.max_body,
                max_file=settings.max_file,
            )
        if settings.config is not None:
            self._context.reload = self._reload
        self._background: set[asyncio.Task[Any]] = set()
        self._stop = asyncio.Event()
        self._abandon = asyncio.Event()

    async def run(self) -> int:
        """Serve until stopped; returns the exit status: 0 after a drain, 130 after a second Ctrl-C, else 1."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._restart_workers)
        if self._context.reload is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        looking = asyncio.create_task(self._look_after())
        others = await self._listen_to_others(self._owner) if self._owner is not None else None
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        serving = asyncio.create_task(self._serving.run())
        abandoned = asyncio.create_task(self._abandon.wait())
        life = asyncio.create_task(self._live(http, serving))
        try:
            await asyncio.wait({life, abandoned}, return_when=asyncio.FIRST_COMPLETED)
            if self._abandon.is_set():
                # It takes our leaving for requests' faults.
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                return 130
            return life.result()
        finally:
            if others is not None:
                others.close()
            self._serving.kill()
            tasks = (life, abandoned, looking, http, serving, *self._background)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, http: asyncio.Task[None], serving: asyncio.Task[None]) -> int:
        status = 0
        try:
            if await self._start(http, serving):
                await self._until_stopped(http, serving)
        except StartError as error:
            print(f"penstock: error: {error}", file=sys.stderr)
            status = 1
        await self._drain(http)
        return status

    async def _start(self, http: asyncio.Task[None], serving: asyncio.Task[None]) -> bool:
        """Get to the point where requests are answered; False when stopped before."""
        with self._display:
            ready = asyncio.create_task(self._serving.ready())
            try:
                await self._until_stopped(http, serving, ready)
            finally:
                ready.cancel()
            if self._stop.is_set():
                return False
            ready.result()
        if self._batches is not None:
            await self._batches.start()
        gc.collect()
        gc.freeze()  # what is here now stays: no later collection has to look at it
        gc.set_threshold(*COLLECT_AFTER)
        self._announce()
        return True

    async def _until_stopped(
        self, http: asyncio.Task[None], serving: asyncio.Task[None], *more: asyncio.Task[None]
    ) -> None:
        """Wait for a signal, the end of a task that should never end, or one of ``more``."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({stop, http, serving, *more}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        for task in (serving, http):
            if task.done():
                task.result()
                raise RuntimeError("the gateway's HTTP server or its targets' supervisor ended for no reason")

    async def _drain(self, http: asyncio.Task[None]) -> None:
        """Take no more requests, finish those at hand within the timeout, then let the workers go."""
        self._context.draining = True
        self._http.should_exit = True
        deadline = time.monotonic() + self._settings.drain_timeout
        tasks: set[asyncio.Task[None]] = {http}
        if self._batches is not None:
            tasks.add(asyncio.create_task(self._batches.drain()))
        _, running = await asyncio.wait(tasks, timeout=self._settings.drain_timeout)
        if running:
            log.warning("drain timeout: ending %d requests that still run", self._context.in_flight)
            self._context.interrupt_all(
                lambda: errors.unavailable("The server shut down before the answer was complete.")
            )
            await asyncio.wait(tasks, timeout=GRACE)
            self._http.force_exit = True
        if self._batches is not None:
            await self._batches.close()
        for task in tasks - {http}:
            task.cancel()
        await self._serving.stop(max(GRACE, deadline - time.monotonic()))
        await self._context.limits.store.leave()

    async def _listen_to_others(self, path: Path) -> asyncio.Server:
        """Let the other gateway processes come to what is kept here: their connections are like clients'."""
        config = self._http.config
        config.load()
        make: Any = config.http_protocol_class
        path.unlink(missing_ok=True)  # of one that was here before and died
        return await asyncio.get_running_loop().create_unix_server(
            lambda: make(config=config, server_state=self._http.server_state, app_state={}), path
        )

    async def _look_after(self) -> None:
        """Look for the parent, and for clients' connections on which nothing comes: no timer is armed for each."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self._parent is not None and os.getppid() != self._parent and not self._stop.is_set():
                log.warning("the parent process has gone: stopping")
                self._stop.set()
            look_after(self._http.server_state.connections, perf_counter(), KEEP_ALIVE)

    async def _reload(self) -> list[str]:
        """Read the configuration file again; where there are several processes, in all of them."""
        if self._parent is None:
            return await self._serving.reload()
        changes = self._serving.changes()
        os.kill(self._parent, signal.SIGHUP)
        return changes

    async def _reload_and_log(self) -> None:
        with contextlib.suppress(ReloadError):  # it is in the log
            await self._serving.reload()

    def _reload_soon(self) -> None:
        self._begin(self._reload_and_log())

    def _restart_workers(self) -> None:
        """Begin a rolling restart of all workers that are ours."""
        self._begin(self._serving.restart(self._settings.drain_timeout))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            self._abandon.set()
        elif not self._stop.is_set():
            log.info("%s: finishing the running requests; Ctrl-C again exits at once", number.name)
            self._stop.set()

    def _announce(self) -> None:
        """Say on standard output that requests are answered, and where."""
        url = f"http://{reachable(self._listener)}/v1"
        names = self._context.names()
        print(f"Penstock is ready: {url} ({self._serving.described(names)})", flush=True)
        if sys.stdout.isatty() and names:
            body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
            print(f"Try: curl {url}/chat/completions -H 'content-type: application/json' -d '{body}'", flush=True)


def http_config(app: Application, protocol: Any = HttpProtocol) -> uvicorn.Config:
    """How uvicorn is run: uvloop, httptools, no access log, no WebSockets. ``protocol`` is made for each connection."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
    )


def data_folder(settings: Settings) -> Path | None:
    """Where files and batches are kept: what the settings say, else in the user's own state; None without a home."""
    if settings.data_dir is not None:
        return Path(settings.data_dir)
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # a relative one is to be ignored, says the XDG Base Directory Specification
        return Path(state, "penstock")
    try:
        return Path.home() / ".local" / "state" / "penstock"
    except RuntimeError:
        return None


def reachable(listener: socket.socket) -> str:
    """``host:port`` under which a client on this machine reaches ``listener``."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _raise_open_files_limit() -> None:
    """Each stream is an open file: take as many as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems refuse their own hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
