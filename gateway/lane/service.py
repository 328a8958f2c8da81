"""How is a group of upstreams kept under watch while requests pass through? Targets, their probes, and their lane."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from gateway.api.context import Context
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.fleet.upstream.probe import Prober
from gateway.fleet.upstream.sources import Sources, parse_source
from gateway.fleet.upstream.target import ANY_MODEL, Target
from gateway.fleet.upstream.targets import Targets
from gateway.lane.lane import Lane
from gateway.lane.placing import CacheAware, Placing

log = logging.getLogger(__name__)


class Passing:
    """All that passes requests through to a group of upstreams.

    Args:
        context: what is shared with other endpoints.
        upstreams: sources of targets, as `parse_source` reads them.
        file: a file with more of them.
        models: the names that upstreams serve; None: each is asked.
        model: what the upstreams call the model; None: what clients call it.
        named: requests come only for names that are configured.

    Raises:
        ValueError: a source that can't be understood.
    """

    def __init__(
        self,
        context: Context,
        upstreams: Sequence[str],
        file: str | None = None,
        options: UpstreamOptions | None = None,
        *,
        models: frozenset[str] | None = None,
        placing: Placing | None = None,
        model: str | None = None,
        named: bool = False,
    ) -> None:
        self.targets = Targets(options or UpstreamOptions(), ANY_MODEL if named else models)
        self.lane = Lane(self.targets, placing or CacheAware(), context, model, named=named)
        given = [parse_source(one) for one in upstreams]
        self._sources = Sources(self.targets, given, Path(file) if file is not None else None)
        self._watches: dict[Target, asyncio.Task[None]] = {}
        self._ready = asyncio.Event()
        self.targets.on_added.append(self._watch)
        self.targets.on_removed.append(self._unwatch)
        self.targets.on_changed.append(self._changed)

    async def run(self) -> None:
        """Keep watch until cancelled."""
        try:
            await self._sources.look()
            await self._sources.run()
        finally:
            for task in self._watches.values():
                task.cancel()

    async def ready(self) -> None:
        """Return once a request would be answered."""
        await self._ready.wait()

    def change(self, upstreams: Sequence[str], file: str | None) -> None:
        """Have other sources of targets; those that are in both stay as they are.

        Raises:
            ValueError: one can't be understood; nothing has changed then.
        """
        self._sources.change([parse_source(one) for one in upstreams], Path(file) if file is not None else None)

    def close(self) -> None:
        """Close all connections to upstreams that nothing runs on."""
        self.targets.close()

    def _watch(self, target: Target) -> None:
        prober = Prober(target, self.targets.changed)
        self._watches[target] = asyncio.get_running_loop().create_task(prober.run())

    def _unwatch(self, target: Target) -> None:
        task = self._watches.pop(target, None)
        if task is not None:
            task.cancel()

    def _changed(self) -> None:
        if self.lane.not_ready is None:
            self._ready.set()
