"""What happens between ``penstock serve`` and its exit? Sockets, processes, signals, the drain.

The port is taken before anything is loaded, and answers from then on: ``/health/live`` with 200, everything that needs
the model with 503, until the worker has said `Hello` and the tokenizer is there. Only then is the address printed.

The first SIGTERM or Ctrl-C closes the port, lets what runs finish for at most ``drain_timeout``, ends what is left with
an error that says so, and exits with status 0. A second Ctrl-C exits at once. SIGUSR1 restarts all workers, one after
the other, and no request fails.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
import uvloop

from engine.link import Hello
from gateway.api.context import Context
from gateway.app import App
from gateway.batches.service import Batches
from gateway.fleet.crew import recruit
from gateway.fleet.fleet import Fleet
from gateway.fleet.roster import Roster
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker_process import WorkerStartError, runtime_directory, worker_command
from gateway.http_protocol import HttpProtocol
from gateway.keys import Keys, client_keys
from gateway.settings import Settings, SettingsError, add_arguments, from_args
from gateway.startup import display
from gateway.telemetry.metrics import Metrics
from gateway.text.template import TemplateError
from gateway.text.tokenizer import TokenizerError
from gateway.wire import errors
from scheduler.placement import PlacementConfig

__all__ = ["add_arguments", "run", "serve"]

_BACKLOG: Final = 4096
KEEP_ALIVE: Final = 75  # seconds; longer than the 60 s after which load balancers commonly give a connection up
GRACE: Final = 2.0  # for errors to reach clients once the drain timeout is over, and for a drained worker's exit

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
    _log(settings)
    if settings.gateway_processes > 1:
        return _serve_in_processes(settings, command_of)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        print(f"penstock: error: {error}", file=sys.stderr)
        return 1
    _raise_open_files_limit()
    if settings.upstream or settings.upstream_file:
        return _pass_through(settings, listener)
    with contextlib.closing(listener), runtime_directory() as directory:
        try:
            server = GatewayServer(settings, listener, directory, command_of)
        except SettingsError as error:
            print(f"penstock serve: error: {error}", file=sys.stderr)
            return 2
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(server.run())


def serve_shared(settings: Settings, *, parent: int, keeps_data: bool) -> int:
    """Be one of several gateway processes on one port; returns the exit status.

    ``parent`` is the process that must be there for this one to go on. Files and batches are kept by one of them alone.
    """
    _log(settings)
    _raise_open_files_limit()
    listener = listen(settings.host, settings.port, shared=True)
    if settings.upstream or settings.upstream_file:
        return _pass_through(settings, listener, parent)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        server = GatewayServer(settings, listener, Path("/"), worker_command, keeps_data=keeps_data, parent=parent)
        return runner.run(server.run())


def _pass_through(settings: Settings, listener: socket.socket, parent: int | None = None) -> int:
    """Serve in front of upstreams, without workers."""
    from gateway.lane.server import UpstreamServer

    with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(UpstreamServer(settings, listener, parent).run())
        except SettingsError as error:
            print(f"penstock serve: error: {error}", file=sys.stderr)
            return 2


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


def _log(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


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
    """One gateway process with its workers.

    Args:
        listener: the socket that clients connect to.
        directory: where the workers' sockets go.
        keeps_data: files and batches are this process' business.
        parent: it ends when this process, its parent, has gone.

    Raises:
        SettingsError: the workers' secret or clients' keys aren't set, or a certificate can't be read.
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
    ) -> None:
        self._settings = settings
        self._parent = parent
        self._listener = listener
        self._metrics = Metrics()
        self._context = Context(
            max_queue=settings.max_queue,
            max_body=settings.max_body,
            metrics=self._metrics,
            keys=Keys(client_keys(settings)),
        )
        app = App(self._context)
        self._http = GatewayHttpServer(http_config(app))
        self._batches = Batches(
            app,
            data_folder(settings) if keeps_data else None,
            concurrency=settings.batch_concurrency,
            max_body=settings.max_body,
            max_file=settings.max_file,
        )
        self._context.batches = self._batches
        self._display = display()
        self._roster = Roster(self._context.models, self._make_fleet, self._load)
        self._crew = recruit(settings, directory, command_of, self._metrics, self._roster, self._display.show)
        self._restarting: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._abandon = asyncio.Event()

    async def run(self) -> int:
        """Serve until stopped; returns the exit status: 0 after a drain, 130 after a second Ctrl-C, else 1."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._restart_workers)
        orphaned = asyncio.create_task(self._stop_when_orphaned())
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        supervisor = asyncio.create_task(self._crew.run())
        abandoned = asyncio.create_task(self._abandon.wait())
        life = asyncio.create_task(self._live(http, supervisor))
        try:
            await asyncio.wait({life, abandoned}, return_when=asyncio.FIRST_COMPLETED)
            if self._abandon.is_set():
                # uvicorn takes our leaving for the requests' own faults
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                return 130
            return life.result()
        finally:
            self._crew.kill()
            tasks = (life, abandoned, orphaned, http, supervisor, *self._restarting)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, http: asyncio.Task[None], supervisor: asyncio.Task[None]) -> int:
        status = 0
        try:
            if await self._start(http, supervisor):
                await self._until_stopped(http, supervisor)
        except (WorkerStartError, TokenizerError, TemplateError) as error:
            print(f"penstock: error: {error}", file=sys.stderr)
            status = 1
        await self._drain(http)
        return status

    async def _start(self, http: asyncio.Task[None], supervisor: asyncio.Task[None]) -> bool:
        """Get to the point where requests are answered; False when stopped before."""
        with self._display:
            greeted = asyncio.create_task(self._crew.greeted())
            try:
                await self._until_stopped(http, supervisor, greeted)
            finally:
                greeted.cancel()
            hello = next((worker.hello for worker in self._crew.workers if worker.hello is not None), None)
            if hello is None or self._stop.is_set():
                return False
            await self._roster.loaded()
        await self._batches.start()
        gc.collect()
        gc.freeze()  # what is here now stays: no later collection has to look at it
        gc.set_threshold(*COLLECT_AFTER)
        self._announce(hello)
        return True

    async def _until_stopped(
        self, http: asyncio.Task[None], supervisor: asyncio.Task[None], *more: asyncio.Task[None]
    ) -> None:
        """Wait for a signal, the end of a task that should never end, or one of ``more``."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({stop, http, supervisor, *more}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        for task in (supervisor, http):
            if task.done():
                task.result()
                raise RuntimeError("the gateway's HTTP server or its worker's supervisor ended for no reason")

    async def _drain(self, http: asyncio.Task[None]) -> None:
        """Take no more requests, finish those at hand within the timeout, then let the worker go."""
        self._context.draining = True
        self._http.should_exit = True
        deadline = time.monotonic() + self._settings.drain_timeout
        batches = asyncio.create_task(self._batches.drain())
        _, running = await asyncio.wait({http, batches}, timeout=self._settings.drain_timeout)
        if running:
            log.warning("drain timeout: ending %d requests that still run", self._context.in_flight)
            self._context.interrupt_all(
                lambda: errors.unavailable("The server shut down before the answer was complete.")
            )
            await asyncio.wait({http, batches}, timeout=GRACE)
            self._http.force_exit = True
        await self._batches.close()
        for model in self._context.models.values():
            model.close()
        batches.cancel()
        await self._crew.stop(max(GRACE, deadline - time.monotonic()))

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            self._abandon.set()
        elif not self._stop.is_set():
            log.info("%s: finishing the running requests; Ctrl-C again exits at once", number.name)
            self._stop.set()

    async def _stop_when_orphaned(self) -> None:
        while self._parent is not None:
            if os.getppid() != self._parent:
                log.warning("the parent process has gone: stopping")
                self._stop.set()
                return
            await asyncio.sleep(1.0)

    def _restart_workers(self) -> None:
        """Begin a rolling restart of all workers that are ours."""
        task = asyncio.get_running_loop().create_task(self._crew.restart(self._settings.drain_timeout))
        self._restarting.add(task)
        task.add_done_callback(self._restarting.discard)

    def _make_fleet(self, name: str) -> Fleet:
        settings = self._settings
        return Fleet(
            name,
            self._metrics,
            PlacementConfig(policy=settings.placement),
            patience=settings.failover_timeout,
            longest_wait=settings.max_wait,
        )

    async def _load(self, hello: Hello, fleet: Fleet) -> ServedModel:
        settings = self._settings
        if settings.worker and settings.model is not None:
            # The worker's folder is on its own host.
            hello = msgspec.structs.replace(hello, folder=settings.model)
        return await ServedModel.load(
            hello, fleet, tool_parser=settings.tool_parser, reasoning_parser=settings.reasoning_parser
        )

    def _announce(self, hello: Hello) -> None:
        """Say on standard output that requests are answered, and where."""
        url = f"http://{reachable(self._listener)}/v1"
        print(
            f"Penstock is ready: {url} (model {hello.model}, {hello.dtype} on {hello.device}, "
            f"context {hello.max_model_len:,} tokens, KV cache {hello.kv_tokens:,} tokens)",
            flush=True,
        )
        if sys.stdout.isatty():
            body = f'{{"model": "{hello.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
            print(f"Try: curl {url}/chat/completions -H 'content-type: application/json' -d '{body}'", flush=True)


def http_config(app: App, protocol: Any = HttpProtocol) -> uvicorn.Config:
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
