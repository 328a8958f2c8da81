"""What can be set about placement?"""

from dataclasses import dataclass

from scheduler.policies import POLICIES


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """How a fleet's requests are placed. Times in seconds.

    Attributes:
        policy: one of `POLICIES`.
        dearest: the highest price of capacity (alpha): how many seconds of waiting a second of spared work is worth.
        horizon: over which the fleet's use is averaged, which sets that price.
        decode: how much a second of decoding that a placement slows down weighs, beside a second of waiting; on
            workers that don't keep the pace of their decodes by themselves.
        ageing: held requests go by their work, less so much for each second that they have waited.
        oldest_share: of the prefill that others get, so much is owed to whoever has waited longest.
        work_left: a held request goes to a worker that has less than so much prefill to do.
        kv_share: and whose KV cache it would not fill beyond this.
        patience: a held request that has waited so long for room in a worker's KV keeps others from taking it.
        quantum: seconds of prefill that a tenant may get ahead of another one that waits.
        window: so many held requests in a row that found no worker, and none behind them is tried.
        refresh: for so long, what the index said about a held request is good enough.
        step: how long a worker's steps last while there is prefill to do.
        settle: so long after a first token, what a placement was expected to leave in the cache must be confirmed.
    """

    policy: str = "held"
    dearest: float = 12.0
    horizon: float = 20.0
    decode: float = 0.1
    ageing: float = 0.02
    oldest_share: float = 0.05
    work_left: float = 0.15
    kv_share: float = 0.95
    patience: float = 0.5
    quantum: float = 2.0
    window: int = 32
    refresh: float = 0.05
    step: float = 0.25
    settle: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what can't work.

        Raises:
            ValueError: naming the field and what would be right.
        """
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r}: none of {', '.join(POLICIES)}")
        for name in ("horizon", "work_left", "quantum", "step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be more than 0 seconds")
        for name in ("decode", "ageing", "oldest_share", "patience", "refresh", "settle"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must not be negative")
        if not self.dearest >= 1:
            raise ValueError(f"dearest {self.dearest}: a second spared is worth a second at least")
        if not 0 < self.kv_share <= 1:
            raise ValueError(f"kv_share {self.kv_share}: must be more than 0 and at most 1")
        if self.window < 1:
            raise ValueError(f"window {self.window}: must be at least 1")
