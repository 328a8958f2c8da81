"""How is one target with workers of ours run? Its crew, its fleet, and what it takes to answer for its model."""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.link import Hello, Progress
from gateway.fleet.crew import Place, recruit
from gateway.fleet.fleet import Fleet
from gateway.fleet.roster import Roster
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker_process import WorkerStartError
from gateway.settings import Settings, parse_adapter
from gateway.telemetry.metrics import Metrics
from scheduler.placement import PlacementConfig

log = logging.getLogger(__name__)


class RunningTarget:
    """A target's workers, from their start to their end.

    Args:
        settings: what the workers are told, and how requests are placed among them.
        directory: where their sockets go.
        command_of: says what to run as a worker that listens on an address.
        on_model: told of each model that can be answered for.
        on_progress: told how the first worker loads.
        place: of its workers among all that are started on this machine.
        name: its own, where it serves one model, which others name: workers that say that they have another are not
            used.

    Raises:
        SettingsError: a secret isn't set, or a certificate can't be read.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        command_of: Callable[[Settings, str], list[str]],
        metrics: Metrics,
        on_model: Callable[["RunningTarget", ServedModel], None],
        on_progress: Callable[[Progress], None] | None = None,
        *,
        place: Place | None = None,
        name: str = "",
    ) -> None:
        self.models: dict[str, ServedModel] = {}
        self.settings = settings
        self._metrics = metrics
        self._on_model = on_model
        self._name = name
        beside = settings.adapter if settings.merged_adapter is None else ()
        self._adapters = dict(parse_adapter(one) for one in beside)
        self._roster = Roster(self.models, self._make_fleet, self._load, self._adapters)
        self.crew = recruit(settings, directory, command_of, metrics, self._roster, on_progress, place or Place())

    async def run(self) -> None:
        """Keep the workers until `stop`.

        Raises:
            WorkerStartError: one ended before it ever said what it is.
        """
        try:
            await self.crew.run()
        except WorkerStartError as error:
            if self._name:
                error.args = (f"target {self._name}: {error}",)
            raise

    async def ready(self) -> None:
        """Wait until requests can be answered.

        Raises:
            TokenizerError, TemplateError: they can't be.
        """
        await self.crew.greeted()
        await self._roster.loaded()

    @property
    def hello(self) -> Hello | None:
        """What the first worker that is there said of itself."""
        return next((worker.hello for worker in self.crew.workers if worker.hello is not None), None)

    async def restart(self, timeout: float) -> None:
        """Start every worker of ours anew, one after the other; see `Crew.restart`."""
        await self.crew.restart(timeout)

    async def stop(self, timeout: float) -> None:
        """Let the workers go; what they have may take ``timeout`` seconds."""
        for model in self.models.values():
            model.close()
        await self.crew.stop(timeout)
        for worker in self.crew.workers:
            self._metrics.forget_worker(worker.name)

    def kill(self) -> None:
        """Let the workers go without waiting."""
        self._roster.close()
        self.crew.kill()

    def _make_fleet(self, name: str) -> Fleet:
        settings = self.settings
        return Fleet(
            name,
            self._metrics,
            PlacementConfig(policy=settings.placement),
            patience=settings.failover_timeout,
            longest_wait=settings.max_wait,
        )

    async def _load(self, hello: Hello, fleet: Fleet) -> ServedModel:
        settings = self.settings
        if settings.worker and settings.model is not None:
            # The worker's folder is on its own host.
            hello = msgspec.structs.replace(hello, folder=settings.model)
        model = await ServedModel.load(
            hello, fleet, tool_parser=settings.tool_parser, reasoning_parser=settings.reasoning_parser
        )
        if self._name and self.models:
            said = (self._name, model.name, *self.models)
            log.error("target=%s workers that serve %s get no requests: the others serve %s", *said)
            return model
        if self._name and self._adapters:  # who names the target means its adapter
            model = model.adapted(next(iter(self._adapters)), model.name)
            model.parent = settings.model or model.parent
        elif settings.merged_adapter is not None:
            model.parent = settings.model or ""
        self._on_model(self, model)
        for name in self._adapters if not self._name else ():
            adapted = self.models[name] = model.adapted(name, name)
            self._on_model(self, adapted)
        return model
