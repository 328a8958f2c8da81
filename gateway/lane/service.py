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
from gateway.lane.following import Following
from gateway.lane.lane import Lane
from gateway.lane.placing import CacheAware, Placing
from gateway.lane.precise import Precise
from gateway.lane.prompt_tokens import Reader

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
        group: the group's name, if there are several.

    Raises:
        ValueError: a source that can't be understood.
        TokenizerError, TemplateError: the options name a folder without what belongs there.
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
        group: str = "",
    ) -> None:
        self.targets = Targets(options or UpstreamOptions(), ANY_MODEL if named else models, group)
        self.lane = Lane(self.targets, placing or CacheAware(), context, model, named=named)
        given = [parse_source(one) for one in upstreams]
        self._sources = Sources(self.targets, given, Path(file) if file is not None else None)
        self._watches: dict[Target, list[asyncio.Task[None]]] = {}
        self._ready = asyncio.Event()
        self._reader = Reader(self._telling, self.targets.options.tokenizer)
        self.targets.on_added.append(self._watch)
        self.targets.on_removed.append(self._unwatch)
        self.targets.on_changed.append(self._changed)

    async def run(self) -> None:
        """Keep watch until cancelled."""
        try:
            await self._sources.look()
            await self._sources.run()
        finally:
            for task in [task for tasks in self._watches.values() for task in tasks]:
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
        loop = asyncio.get_running_loop()
        prober = Prober(target, self.targets.changed)
        self._watches[target] = [loop.create_task(prober.run())]
        placing = self.lane.placing
        if not target.address.kv_events:
            return
        if not isinstance(placing, Precise):
            log.warning("upstream=%s its KV events are of no use to this way of placing requests", target.name)
            return
        following = target.follower = Following(target, placing)
        self._watches[target].append(loop.create_task(following.run()))
        self.lane.reader = self._reader

    def _telling(self) -> list[Target]:
        """The targets that tell what they have cached and can be asked."""
        return [target for target in self.targets if target.follower is not None and target.up]

    def _unwatch(self, target: Target) -> None:
        for task in self._watches.pop(target, ()):
            task.cancel()
        if not any(one.follower is not None for one in self.targets):
            self.lane.reader = None

    def _changed(self) -> None:
        if self.lane.not_ready is None:
            self._ready.set()
