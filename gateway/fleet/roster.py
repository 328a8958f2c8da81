"""Which model does each worker serve?

Workers say themselves what they serve. The roster puts each into the `Fleet` of its model, once it has loaded the
adapters that it should have, and makes a `ServedModel` of what the first one says.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping

from engine.link import Blocks, Hello
from gateway.fleet.fleet import Fleet
from gateway.fleet.native import RequestFailed, WorkerLink, WorkerLost
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker import Worker
from gateway.settings import SettingsError
from gateway.text.template import TemplateError
from gateway.text.tokenizer import TokenizerError

Loader = Callable[[Hello, Fleet], Awaitable[ServedModel]]

log = logging.getLogger(__name__)


class Roster:
    """All workers of a gateway. It is their `Watcher`.

    Args:
        models: what is served, by name; models come in here when the first of their workers does.
        make_fleet: makes the fleet of the model that it is given the name of.
        load: makes what it takes to serve a model, see `ServedModel.load`.
        adapters: what every worker loads before it gets requests: folders, by the adapters' names.
    """

    def __init__(
        self,
        models: MutableMapping[str, ServedModel],
        make_fleet: Callable[[str], Fleet],
        load: Loader,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        self.fault: BaseException | None = None
        self._models = models
        self._make_fleet = make_fleet
        self._load = load
        self._adapters = adapters or {}
        self._fleets: dict[str, Fleet] = {}
        self._fleet_of: dict[Worker, Fleet] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def loaded(self) -> None:
        """Wait until every model that a worker has named so far can be served.

        Raises:
            TokenizerError, TemplateError: one can't be.
            SettingsError: a worker can't load an adapter.
        """
        while self._loading:
            await asyncio.wait(self._loading.values())
        if self.fault is not None:
            raise self.fault

    def close(self) -> None:
        """Load nothing any more."""
        for task in self._loading.values():
            task.cancel()

    def worker_up(self, worker: Worker) -> None:
        hello = worker.hello
        assert hello is not None
        if not self._adapters:
            self._join(worker, hello)
        elif worker.link is not None:
            worker.preparing = True
            task = asyncio.get_running_loop().create_task(self._prepare(worker, worker.link, hello))
            self._loading[f"worker {worker.name}"] = task

    async def _prepare(self, worker: Worker, link: WorkerLink, hello: Hello) -> None:
        """Have a worker load the adapters; then it gets requests."""
        try:
            for name, folder in self._adapters.items():
                try:
                    if "adapters" not in hello.capabilities:
                        raise SettingsError(f"worker {worker.name} can't load any (--engine vllm and --adapters can)")
                    await link.load_adapter(name, folder)
                except (RequestFailed, SettingsError) as fault:
                    self.fault = SettingsError(f"--adapter {name}={folder}: {fault}")
                    log.error("worker=%s gets no requests: %s", worker.name, self.fault)
                    return
            if worker.link is link:
                self._join(worker, hello)
        except WorkerLost:
            log.debug("worker=%s was lost while it loaded adapters", worker.name)
        finally:
            worker.preparing = False
            worker.settled.set()
            self._loading.pop(f"worker {worker.name}", None)

    def _join(self, worker: Worker, hello: Hello) -> None:
        """Put a worker into the fleet of its model."""
        before = self._fleet_of.get(worker)
        if before is not None and before.name != hello.model:
            before.forget(worker)
        fleet = self._fleets.get(hello.model)
        if fleet is None:
            fleet = self._fleets[hello.model] = self._make_fleet(hello.model)
        fault = fleet.misfit(worker, hello)
        if fault:
            log.error("worker=%s gets no requests for %s: %s", worker.name, hello.model, fault)
            self._fleet_of.pop(worker, None)
            return
        self._fleet_of[worker] = fleet
        fleet.worker_up(worker)
        if hello.model not in self._models and hello.model not in self._loading:
            self._loading[hello.model] = asyncio.get_running_loop().create_task(self._serve(hello, fleet))

    def worker_changed(self, worker: Worker) -> None:
        fleet = self._fleet_of.get(worker)
        if fleet is not None:
            fleet.worker_changed(worker)

    def worker_reported(self, worker: Worker) -> None:
        fleet = self._fleet_of.get(worker)
        if fleet is not None:
            fleet.worker_reported(worker)

    def worker_cached(self, worker: Worker, blocks: Blocks) -> None:
        fleet = self._fleet_of.get(worker)
        if fleet is not None:
            fleet.worker_cached(worker, blocks)

    def worker_down(self, worker: Worker) -> None:
        fleet = self._fleet_of.get(worker)
        if fleet is not None:
            fleet.worker_down(worker)

    async def _serve(self, hello: Hello, fleet: Fleet) -> None:
        try:
            model = await self._load(hello, fleet)
        except (TokenizerError, TemplateError) as fault:
            log.error("can't serve %s: %s", hello.model, fault)
            self.fault = fault
        else:
            self._models[model.name] = model
            self.fault = None
        finally:
            del self._loading[hello.model]
