"""What do requests for the same upstreams share? The targets, their placement, the budgets, what is usual."""

from time import perf_counter
from typing import Final

from gateway.api.context import Context
from gateway.fleet.upstream.budget import Budget
from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.quantile import RecentQuantile
from gateway.fleet.upstream.target import Target
from gateway.fleet.upstream.targets import Targets
from gateway.lane.exchange import Exchange
from gateway.lane.fingerprints import NONE, fingerprints
from gateway.lane.holding import Holding
from gateway.lane.placing import Placing, Prompt
from gateway.lane.precise import Precise
from gateway.lane.prompt_tokens import Reader
from gateway.lane.scan import Skimmed, Tally
from gateway.wire import errors

_SHORTEST_HEDGE: Final = 0.002  # seconds; less is noise


class Lane:
    """The way to one group of upstreams, any of which may answer what the others may.

    Args:
        targets: where requests go.
        placing: decides which of them.
        context: what the lane shares with all other endpoints.
        model: what the upstreams call the model; None: what clients call it.
        named: requests come here only for names that are configured.
    """

    def __init__(
        self,
        targets: Targets,
        placing: Placing,
        context: Context,
        model: str | None = None,
        *,
        named: bool = False,
    ) -> None:
        options = targets.options
        self.targets = targets
        self.placing = placing
        self.context = context
        self.model = model
        self.named = named
        self.passes_keys = not context.keys and options.key is None
        """Whether a client's ``Authorization`` is meant for the targets."""
        self.hedging = options.hedge > 0
        self.reader: Reader | None = None
        """Makes token ids of prompts, where targets tell which ones they have cached."""
        self.holding: Holding | None = None
        if isinstance(placing, Precise) and placing.holds:
            self.holding = Holding(placing, targets.ready, options.max_wait, options.first_byte)
            targets.on_removed.append(self.holding.forget)
        self.counts = context.metrics.upstreams
        self._retries = Budget(options.retry_share, reserve=10.0, trickle=1.0)
        self._hedges = Budget(options.hedge, reserve=1.0)
        self._usual = (RecentQuantile(), RecentQuantile())
        targets.on_added.append(placing.added)
        targets.on_removed.append(placing.removed)
        for target in targets:
            placing.added(target)

    @property
    def not_ready(self) -> str | None:
        """Why no request would be answered now; None when some would."""
        now = perf_counter()
        if any(target.available(now) and target.models is not None for target in self.targets):
            return None
        return "No upstream can be reached." if len(self.targets) else "There is no upstream."

    def fault(self, model: str) -> str | None:
        """Why a request for ``model`` would not be answered now; None when it would."""
        if self.targets.ready(model, perf_counter()):
            return None
        return self.not_ready or f"No upstream that serves '{model}' can be reached."

    # A request comes

    def ready(self, model: str, now: float) -> list[Target]:
        """The targets that a request for ``model`` may go to: at least one.

        Raises:
            ApiError: 404, nobody serves the model; 503, nobody who does can be reached.
        """
        found = self.targets.ready(model, now)
        if not found:
            raise self._nobody(model, now)
        return found

    def check_room(self) -> None:
        """See that one more request may wait.

        Raises:
            ApiError: 429, too many wait already.
        """
        context = self.context
        if context.queued >= context.max_queue:
            context.metrics.refused.inc()
            raise errors.queue_full(1.0)

    def arrived(self) -> None:
        """A request came that is to be sent to a target."""
        self._retries.request()

    def prompt(self, skimmed: Skimmed) -> Prompt:
        """What placement looks at."""
        said = skimmed.messages or skimmed.prompt or skimmed.input
        before = skimmed.system or skimmed.instructions
        text = bytes(before) + bytes(said) if before else bytes(said)
        session = skimmed.user if isinstance(skimmed.user, str) else ""
        return Prompt(
            len(text), fingerprints(text, hash(skimmed.model)) if self.placing.fingerprints else NONE, session
        )

    def take_retry(self, now: float) -> bool:
        """Whether one more may be sent elsewhere; it is counted then."""
        if not self._retries.take(now):
            return False
        self.counts.retries += 1
        return True

    def hedge_delay(self, streamed: bool) -> float | None:
        """How long a first byte may take before another target is asked; None while that isn't known."""
        self._hedges.request()
        usual = self._usual[streamed].value
        return None if usual is None else max(usual, _SHORTEST_HEDGE)

    def take_hedge(self, now: float) -> bool:
        """Whether one may be sent twice; it is counted then."""
        if not self._hedges.take(now):
            return False
        self.counts.hedges += 1
        return True

    def hedge_won(self) -> None:
        self.counts.hedges_won += 1

    def _nobody(self, model: str, now: float) -> errors.ApiError:
        serving = self.targets.serving(model)
        if serving:
            wait = min(max(1.0, target.breaker.opens_in(now)) for target in serving)
            return errors.unavailable(f"No upstream that serves '{model}' can be reached.", wait)
        if any(target.models is None for target in self.targets) or not len(self.targets):
            return errors.unavailable("The upstreams can't be reached.", 1.0)
        return errors.model_not_found(model, self.context.names())

    # An answer comes

    def answering(self, exchange: Exchange, connection: Connection, seconds: float, streamed: bool) -> None:
        """The first byte came, ``seconds`` after the request."""
        target, now = connection.target, connection.last
        if connection.status < 500:
            target.counts.answered += 1
            if target.breaker.succeeded(now):
                self.targets.changed()
        else:
            target.counts.failed += 1
        if self.holding is not None:
            self.holding.answered(connection)
        self.placing.answered(connection)
        if self.hedging:
            self._usual[streamed].add(seconds)
        if streamed and exchange.counters is not None:
            exchange.counters.first_token.observe(seconds)

    def goes_on(self, connection: Connection) -> None:
        """The first byte of the rest of an answer came that another target had broken off."""
        target = connection.target
        self.counts.continued += 1
        target.counts.answered += 1
        if target.breaker.succeeded(connection.last):
            self.targets.changed()
        self.placing.answered(connection)

    def count(self, exchange: Exchange, tally: Tally) -> None:
        """Note what a complete answer says of itself."""
        metrics = exchange.counters
        if metrics is not None and (tally.prompt_tokens or tally.output_tokens):
            metrics.prompt_tokens.value += tally.prompt_tokens
            metrics.cached_tokens.value += tally.cached_tokens
            metrics.output_tokens.value += tally.output_tokens

    def target_failed(self, target: Target, now: float) -> None:
        if target.breaker.failed(now):
            self.counts.breaker_openings += 1
            self.targets.changed()
