"""What can be set about one worker's scheduling? Each idea has a switch, so that its effect can be measured."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

Order = Literal["work", "prefix", "arrival"]
ORDERS: Final[tuple[Order, ...]] = get_args(Order)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How one worker schedules. Times in seconds, sizes in tokens unless stated otherwise.

    Switches:
        time_budget: a step is filled up to a time; off: up to ``token_budget`` tokens, as Sarathi-Serve does.
        deadlines: that time is the tightest slack of a decode's deadline; off: ``tpot``.
        fairness: tenants take turns by deficit round robin; off: they are one.
        order: of one tenant's prompts. "work": the least left to compute first, and a prompt whose prefix is being
            computed waits for it; "prefix": the longest cached prefix first; "arrival": as they came.
        lookahead: admission looks at the pool's expected use; off: at what is free now.
        prefix_cache: full blocks are found again.
        background: background requests run only in steps that nobody else needs, in blocks that nobody else needs;
            off: they are requests like any other.

    Limits:
        max_running: requests that hold KV at a time; as many background requests may hold some besides.
        max_batch_tokens: what one step may compute at most.
        token_budget: the step's size where ``time_budget`` is off.
        min_prefill_tokens: what prefill gets in every step, however late the decodes are.
        max_step: how long a step may take where no deadline is nearer; a newcomer waits that long.
        background_kv: the share of the pool that background requests may hold when one more is admitted; the others
            keep what the foreground has cached.
        background_step: how long a step of background work may take, for the same reason; where an empty step takes
            more than half of that, twice as long as an empty one.

    Weights:
        ttft, tpot: the deadlines of requests that come without any, for whoever builds them.
        margin: the share of the slack that is kept for errors of the prediction.
        quantum: service (in tokens) that a tenant gets in one turn.
        cached_cost, output_cost: what a cached prompt token and a drawn token cost a tenant, a computed one being 1.
        oldest_share: of a tenant's prefill, that goes to whoever came first, however long its prompt is.
        window: how many waiting requests of a tenant are compared.
        quantile: of the distribution of output lengths, that admission reckons with.
        background_share: by how much steps of the foreground may be lengthened for background work, as a share of
            their time, so that a batch ends however busy the worker is. 0: it runs when nothing else does.
    """

    time_budget: bool = True
    deadlines: bool = True
    fairness: bool = True
    order: Order = "work"
    lookahead: bool = True
    prefix_cache: bool = True
    background: bool = True

    max_running: int = 256
    max_batch_tokens: int = 8192
    token_budget: int = 512
    min_prefill_tokens: int = 64
    max_step: float = 0.25
    background_step: float = 0.01
    background_kv: float = 0.5

    ttft: float = 1.0
    tpot: float = 0.05
    margin: float = 0.1
    quantum: int = 2048
    cached_cost: float = 0.1
    output_cost: float = 2.0
    oldest_share: float = 0.05
    window: int = 32
    quantile: float = 0.75
    background_share: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what can't work.

        Raises:
            ValueError: naming the field and what would be right.
        """
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}: must be one of {', '.join(ORDERS)}")
        for name in ("max_running", "min_prefill_tokens", "token_budget", "quantum", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("max_step", "background_step", "ttft", "tpot"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be more than 0 seconds")
        for name in ("cached_cost", "output_cost", "oldest_share", "background_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must not be negative")
        for name in ("margin", "quantile"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 0 and below 1")
        if not 0 < self.background_kv <= 1:
            raise ValueError(f"background_kv {self.background_kv}: must be more than 0 and at most 1")
        if self.max_batch_tokens < self.max_running + self.min_prefill_tokens:
            raise ValueError(
                f"max_batch_tokens {self.max_batch_tokens}: a step must hold one token of each of max_running"
                f" {self.max_running} requests and min_prefill_tokens {self.min_prefill_tokens}"
            )
