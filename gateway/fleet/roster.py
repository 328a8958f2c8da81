"""Which model does each worker serve?

Workers say themselves what they serve. The roster puts each into the `Fleet` of its model, and makes a `ServedModel` of
what the first one says.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping

from engine.link import Blocks, Hello
from gateway.fleet.fleet import Fleet
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker import Worker
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
    """

    def __init__(
        self, models: MutableMapping[str, ServedModel], make_fleet: Callable[[str], Fleet], load: Loader
    ) -> None:
        self.fault: BaseException | None = None
        self._models = models
        self._make_fleet = make_fleet
        self._load = load
        self._fleets: dict[str, Fleet] = {}
        self._fleet_of: dict[Worker, Fleet] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def loaded(self) -> None:
        """Wait until every model that a worker has named so far can be served.

        Raises:
            TokenizerError, TemplateError: one can't be.
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
