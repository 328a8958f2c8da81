"""What happens between ``penstock serve --upstream URL`` and its exit? A gateway that has no worker of its own.

The port answers from the start, and the address is printed once an upstream can be reached. SIGTERM and Ctrl-C mean
what they mean to `gateway.server`: running streams finish, for as long as the drain timeout lasts.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from time import perf_counter
from typing import Any, Final

from gateway.api.context import Context
from gateway.app import App
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.keys import Keys, client_keys, secret
from gateway.lane.lanes import Lanes
from gateway.lane.placer import placing
from gateway.lane.protocol import close_idle, protocol
from gateway.lane.service import Passing
from gateway.server import GRACE, KEEP_ALIVE, GatewayHttpServer, http_config, reachable
from gateway.settings import Settings, SettingsError
from gateway.wire import errors

_GC: Final = (20_000, 20, 20)  # requests leave no cycles behind: there is nothing to look for after each few of them
_SWEEP: Final = 1.0  # seconds between two looks at idle connections

log = logging.getLogger(__name__)


class UpstreamServer:
    """One gateway process in front of upstreams.

    Args:
        listener: the socket that clients connect to.
        parent: it ends when this process, its parent, has gone.

    Raises:
        SettingsError: an environment variable that should have a key has none, or there is something else to serve.
    """

    def __init__(self, settings: Settings, listener: socket.socket, parent: int | None = None) -> None:
        check_upstreams(settings)
        self._settings = settings
        self._parent = parent
        self._listener = listener
        self._context = Context(
            max_queue=settings.max_queue, max_body=settings.max_body, keys=Keys(client_keys(settings))
        )
        name = settings.served_model_name
        self._passing = Passing(
            self._context,
            settings.upstream,
            settings.upstream_file,
            options(settings),
            models=frozenset((name,)) if name is not None else None,
            placing=placing(settings.placement),
        )
        self._lanes = Lanes(self._context)
        self._lanes.lead({}, self._passing.lane)
        make = protocol(self._lanes)
        self._http = GatewayHttpServer(http_config(App(self._context), make))
        self._stop = asyncio.Event()
        self._abandon = asyncio.Event()

    async def run(self) -> int:
        """Serve until stopped; returns the exit status: 0 after a drain, 130 after a second Ctrl-C."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        watching = asyncio.create_task(self._passing.run())
        sweeping = asyncio.create_task(self._sweep())
        ticking = asyncio.create_task(self._lanes.tick())
        abandoned = asyncio.create_task(self._abandon.wait())
        stopped = asyncio.create_task(self._stop.wait())
        ready = asyncio.create_task(self._passing.ready())
        tasks = (http, watching, sweeping, ticking, abandoned, stopped, ready)
        try:
            forever: set[asyncio.Task[Any]] = {http, watching, sweeping, ticking}
            await asyncio.wait({*forever, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not stopped.done():
                gc.collect()
                gc.freeze()
                gc.set_threshold(*_GC)
                self._announce()
                await asyncio.wait({*forever, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in forever:
                if task.done():
                    task.result()
                    raise RuntimeError("the gateway's HTTP server or its watch over upstreams ended for no reason")
            drain = asyncio.create_task(self._drain(http))
            await asyncio.wait({drain, abandoned}, return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            return 130 if abandoned.done() else 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._passing.close()

    async def _drain(self, http: asyncio.Task[None]) -> None:
        self._context.draining = True
        self._http.should_exit = True
        _, running = await asyncio.wait({http}, timeout=self._settings.drain_timeout)
        if running:
            log.warning("drain timeout: ending %d requests that still run", self._context.in_flight)
            self._context.interrupt_all(
                lambda: errors.unavailable("The server shut down before the answer was complete.")
            )
            await asyncio.wait({http}, timeout=GRACE)
            self._http.force_exit = True

    async def _sweep(self) -> None:
        """Close clients' connections that nothing comes on (the lane arms no timer for each); look for the parent."""
        while True:
            await asyncio.sleep(_SWEEP)
            if self._parent is not None and os.getppid() != self._parent:
                self._stop.set()
            close_idle(self._http.server_state.connections, perf_counter(), KEEP_ALIVE)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            self._abandon.set()
        elif not self._stop.is_set():
            log.info("%s: finishing the running requests; Ctrl-C again exits at once", number.name)
            self._stop.set()

    def _announce(self) -> None:
        names = ", ".join(self._passing.targets.names()) or "any model"
        count = len(self._passing.targets)
        print(
            f"Penstock is ready: http://{reachable(self._listener)}/v1 (passing through to {count} "
            f"upstream{'' if count == 1 else 's'}: {names})",
            flush=True,
        )


def check_upstreams(settings: Settings) -> None:
    """Look at what belongs to upstreams, before anything is started.

    Raises:
        SettingsError: an environment variable that should have a key has none, or there is something else to serve.
    """
    if settings.model is not None or settings.worker:
        raise SettingsError("a model or workers can't be served beside --upstream: give one of the two")
    options(settings)
    client_keys(settings)


def options(settings: Settings) -> UpstreamOptions:
    """What the settings say about upstreams.

    Raises:
        SettingsError: there is no key where one should be.
    """
    name = settings.upstream_api_key_env
    return UpstreamOptions(
        connect=settings.upstream_connect_timeout,
        first_byte=settings.upstream_first_byte_timeout,
        idle=settings.upstream_idle_timeout,
        hedge=settings.hedge or 0.0,
        key=secret("--upstream-api-key-env", name) if name is not None else None,
    )
