"""What do all endpoints share? The models, the metrics, the limits, and whether we are shutting down."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

from engine.link import Failed
from gateway.api.exchange import Exchange
from gateway.api.response_store import ResponseStore
from gateway.batches.service import Batches
from gateway.fleet.native import RequestFailed, WorkerLost
from gateway.fleet.served_model import ServedModel
from gateway.record.recorder import Recorder
from gateway.telemetry.metrics import Metrics
from gateway.traffic.conversations import Conversations
from gateway.traffic.keys import Keyring
from gateway.traffic.limits.limiter import Limiter
from gateway.traffic.rollout.service import Rollouts
from gateway.traffic.routes import Route
from gateway.traffic.shadow.service import Shadows
from gateway.traffic.watching import Watching
from gateway.wire import errors

if TYPE_CHECKING:
    from gateway.lane.lane import Lane
    from gateway.lane.lanes import Lanes

_RETRY_LOST: Final = 2.0  # a dead worker's successor takes at least a second to come


class ReloadError(Exception):
    """The configuration stays as it was; the message says why."""


class Context:
    """One per gateway process.

    Args:
        max_queue: most requests without a first token; one more is refused.
        max_body: largest body in bytes.
        keys: those that clients must have; none: everybody may ask.
    """

    def __init__(
        self, *, max_queue: int, max_body: int, metrics: Metrics | None = None, keys: Keyring | None = None
    ) -> None:
        self.max_queue = max_queue
        self.max_body = max_body
        self.metrics = metrics or Metrics()
        self.keys = keys or Keyring()
        self.limits = Limiter(self.metrics)
        self.upstreams: Lanes | None = None
        """The way to models that others serve."""
        self.models: dict[str, ServedModel] = {}
        self.targets: dict[str, ServedModel] = {}
        """What routes lead to, by the names of targets."""
        self.routes: Mapping[str, Route] = {}
        """What names lead to that don't simply stand for one target."""
        self.recorder: Recorder | None = None
        """Where requests are recorded."""
        self.watching: Watching | None = None
        """Where requests of routes are reported to."""
        self.awaited_targets: Collection[str] = ()
        """Targets of routes of which workers are to come."""
        self.awaited: Collection[str] = ()
        """Names of models of which workers are to come, whether they are there or not."""
        self.exchanges: set[Exchange] = set()
        """Requests that are being answered here."""
        self.reload: Callable[[], Awaitable[list[str]]] | None = None
        """Reads the configuration file again and says what has changed."""
        self.responses = ResponseStore()
        self.conversations = Conversations()
        self.batches: Batches | None = None
        self.rollouts: Rollouts | None = None
        self.shadows: Shadows | None = None
        self.loading = False
        """Whether the gateway is starting: targets that were never there yet are waited for."""
        self.draining = False
        self.queued = 0
        self.in_flight = 0
        self.metrics.queued.set_function(lambda: self.queued)
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.metrics.models.faults = self.faults

    def model(self, name: str, exchange: Exchange | None = None) -> ServedModel:
        """The model that clients call ``name``; for one with a route, what it chose for this exchange, or else would.

        Raises:
            ApiError: 403, it is not meant for the client's key; 404, there is no such model; 503, it is still loaded.
        """
        if exchange is not None:
            exchange.key.allow(name)
            if exchange.served is not None:
                return exchange.served
        found = self.models.get(name) or self.usual(name)
        if found is None:
            if self._is_elsewhere(name):
                raise errors.ApiError(
                    404, f"The model '{name}' does not have this endpoint here.", code="model_not_found", param="model"
                )
            if name in self.awaited or name in self.routes or (not self.models and self.upstreams is None):
                raise errors.unavailable("The model is still being loaded.", 1)
            raise errors.model_not_found(name, self.names())
        return found

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a model is served, but not here."""
        route = self.routes.get(name)
        if route is not None:
            return not any(variant.target in self.awaited_targets for variant in route.plan.variants)
        return self.upstreams is not None and name in self.upstreams.names()

    def names(self) -> list[str]:
        """The names that clients may ask for."""
        return [*self.models, *self.routes, *(self.upstreams.names() if self.upstreams is not None else ())]

    def usual(self, name: str) -> ServedModel | None:
        """The first variant of a route that is served here, which says how text becomes tokens."""
        route = self.routes.get(name)
        if route is None:
            return None
        found = [self.targets[one.target] for one in route.plan.variants if one.target in self.targets]
        return found[0].named(name) if found else None

    def lane_to(self, target: str) -> "Lane | None":
        """The lane to a target, if it is one that requests pass through to."""
        return self.upstreams.lane_to(target) if self.upstreams is not None else None

    def lane_of(self, model: str) -> "Lane | None":
        """The lane that a model's name leads to, if it leads to one."""
        return self.upstreams.lane_of(model) if self.upstreams is not None else None

    def batches_or_503(self) -> Batches:
        """Files and batches.

        Raises:
            ApiError: 503, this gateway has no data folder.
        """
        if self.batches is None:
            raise errors.unavailable("Files and batches can't be used: this server has no data folder.")
        return self.batches

    @property
    def not_ready(self) -> str | None:
        """Why no request would be answered now; None when some would, while the start is over."""
        if self.draining:
            return "The server is shutting down."
        faults = self.faults()
        away = [fault for fault in faults.values() if fault is not None]
        if self.loading:
            return next(iter(away), "Targets are still being loaded.")
        if len(away) < len(faults):
            return None
        if not faults and (lane := self.lane_of("")) is not None:
            return lane.not_ready  # it takes any name, and knows none
        return " ".join(dict.fromkeys(away)) or "The model is still being loaded."

    def faults(self) -> dict[str, str | None]:
        """Of each name that clients may ask for, why nobody would answer now; None where somebody would."""
        return {name: self._fault(name) for name in (*self.names(), *self.awaited)}

    def _fault(self, name: str) -> str | None:
        if (route := self.routes.get(name)) is not None:
            faults = [self._fault_of_target(target) for target in route.plan.by_preference]
            return None if None in faults else faults[0]
        if (model := self.models.get(name)) is not None:
            return _fault_of_workers(model)
        lane = self.lane_of(name) if name not in self.awaited else None
        return lane.fault(name) if lane is not None else f"The model '{name}' is still being loaded."

    def _fault_of_target(self, target: str) -> str | None:
        if (model := self.targets.get(target)) is not None:
            return _fault_of_workers(model)
        lane = self.lane_to(target)
        return lane.not_ready if lane is not None else f"The target '{target}' is still being loaded."

    def seat(self, model: ServedModel, count: int, background: bool) -> "Seat":
        """A place in the queue for a request of ``count`` answers, which waits for its first token.

        Background work has its own bound elsewhere: it takes no place from those who wait here.

        Raises:
            ApiError: 429, too many wait already.
        """
        if background:
            return Seat(self, 0)
        if self.queued >= self.max_queue:
            self.metrics.refused.inc()
            raise errors.queue_full(model.fleet.backlog)
        return Seat(self, count)

    def interrupt_all(self, make_reason: Callable[[], errors.ApiError]) -> None:
        """End every request that still runs, with a reason."""
        for model in [*self.models.values(), *self.targets.values()]:
            model.fleet.interrupt_all(make_reason)
        if self.upstreams is not None:
            self.upstreams.interrupt_all(make_reason)


def _fault_of_workers(model: ServedModel) -> str | None:
    return None if model.fleet.ready else f"The worker of '{model.name}' is {model.fleet.state}."


class Seat:
    """A place in the queue, until `leave`: the request has its first token, or will never have one."""

    __slots__ = ("_context", "_count")

    def __init__(self, context: Context, count: int) -> None:
        self._context = context
        self._count = count
        context.queued += count

    def leave(self) -> None:
        """Give the place up; once is enough, more do no harm."""
        self._context.queued -= self._count
        self._count = 0


def api_error(fault: WorkerLost | RequestFailed) -> errors.ApiError:
    """What the client is told when a worker could not answer."""
    if isinstance(fault, WorkerLost):
        return errors.unavailable(f"The request could not be answered: {fault}.", _RETRY_LOST)
    failed: Failed = fault.failed
    match failed.code:
        case "context_length_exceeded":
            return errors.ApiError(400, failed.message, code="context_length_exceeded")
        case "invalid_request":
            return errors.ApiError(400, failed.message, code="invalid_value")
        case "overloaded":
            return errors.overloaded(failed.retry_after)
        case "draining":
            return errors.unavailable("The server is shutting down.", failed.retry_after or 1)
        case "internal":
            return errors.internal_error()
