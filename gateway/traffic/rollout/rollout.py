"""When does a canary get more traffic, and when does it lose what it has? The rollout, step by step, with its reasons.

Pure: requests and times come in, decisions come out. A rollout begins at its first weight. It is rolled back as soon as
one guard's evidence that the canary is worse reaches the number of guards divided by ``alpha``; if the canary is not
worse at anything, this happens in the whole rollout with a probability of at most alpha, however often somebody looks.
It goes on to the next weight once all guards have shown it to be harmless at this one, at a level of ``promote_alpha``
each, and it has stayed for a while; after the last weight it is promoted. Until either happens it holds.
"""

from typing import Final, Literal

import msgspec

from gateway.traffic.rollout.blocks import Blocks, Outcome
from gateway.traffic.rollout.guard import Guard, GuardState, make_guard

Status = Literal["running", "promoted", "rolled_back"]
_FIRST_STAKE: Final = 0.7  # of the capital is bet in the first step, where the canary is least known


class RolloutConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a canary becomes the stable model, or doesn't."""

    guard: tuple[str, ...] = ("error_rate", "ttft_p95")
    max_regression: float = 0.05
    exclude: float = 0.1
    alpha: float = 0.05
    promote_alpha: float = 0.01
    steps: tuple[float, ...] = (5, 25, 50, 100)
    dwell: float = 600.0


class RolloutState(msgspec.Struct):
    """A rollout's memory, for a restart. Times are seconds since the epoch."""

    step: int = 0
    since: float = 0.0
    status: Status = "running"
    reason: str = ""
    canaries: int = 0
    guards: dict[str, GuardState] = {}


class Rollout:
    """One canary's way.

    Args:
        config: its steps and guards.
        now: seconds since the epoch.
        state: of the rollout that this one goes on from, with the same ``config``.
    """

    def __init__(self, config: RolloutConfig, now: float, state: RolloutState | None = None) -> None:
        self.config = config
        self._blocks = Blocks()
        self.guards: list[Guard] = [
            make_guard(name, config.max_regression, config.exclude) for name in dict.fromkeys(config.guard)
        ]
        self._state = state or RolloutState(since=now)
        if state is None:
            self._begin_step()
        else:
            for guard in self.guards:
                guard.load(state.guards[guard.name])

    @property
    def weight(self) -> float:
        """The share of traffic that is the canary's now, in percent."""
        if self._state.status == "rolled_back":
            return 0.0
        return 100.0 if self._state.status == "promoted" else self.config.steps[self._state.step]

    @property
    def status(self) -> Status:
        return self._state.status

    @property
    def reason(self) -> str:
        """Why it is where it is, in words and numbers."""
        return self._state.reason

    def came(self, uid: int, canary: bool, unit: str, now: float) -> None:
        """A request was given its arm, by nothing but chance. ``unit``: what the arm sticks to, "" for the request."""
        self._blocks.came(uid, canary, unit, now)

    def ended(self, uid: int, outcome: Outcome) -> None:
        """All is known of a request."""
        self._blocks.ended(uid, outcome)

    def look(self, now: float) -> bool:
        """Weigh what has become known; True when the rollout's step or status is another one now."""
        if self._state.status != "running":
            return False
        for block in self._blocks.compared(now):
            self._state.canaries += len(block.canary)
            for guard in self.guards:
                guard.add(block)
        return self._roll_back() or self._go_on(now)

    def save(self) -> RolloutState:
        """What a rollout that goes on after a restart must know."""
        return msgspec.structs.replace(self._state, guards={guard.name: guard.save() for guard in self.guards})

    def _roll_back(self) -> bool:
        limit = len(self.guards) / self.config.alpha
        worst = max(self.guards, key=lambda guard: guard.worse)
        if worst.worse < limit:
            return False
        self._state.status = "rolled_back"
        self._state.reason = (
            f"rolled back from {self._weight_of_step:g} % after {self._state.canaries} requests to the canary: "
            f"{worst.describe()}; evidence {_odds(worst.worse)} that it is worse by more than "
            f"{self.config.max_regression:.0%} (limit {_odds(limit)})"
        )
        return True

    def _go_on(self, now: float) -> bool:
        if now - self._state.since < self.config.dwell:
            return False
        limit = 1 / self.config.promote_alpha
        if any(guard.harmless < limit for guard in self.guards):
            return False
        shown = "; ".join(guard.describe() for guard in self.guards)
        before = self._weight_of_step
        self._state.step += 1
        self._state.since = now
        if self._state.step >= len(self.config.steps) or self._weight_of_step >= 100:
            self._state.status = "promoted"
        else:
            self._begin_step()
        self._state.reason = f"from {before:g} % to {self.weight:g} % after {self._state.canaries} requests: {shown}"
        return True

    @property
    def _weight_of_step(self) -> float:
        steps = self.config.steps
        return steps[min(self._state.step, len(steps) - 1)]

    def _begin_step(self) -> None:
        later = sum(weight < 100 for weight in self.config.steps[1:])
        first = _FIRST_STAKE if later else 1.0
        self._blocks.restart()
        for guard in self.guards:
            guard.stake((1 - first) / later if self._state.step else first)


def _odds(capital: float) -> str:
    return f"{capital:.0f} : 1" if capital < 1e6 else "over a million : 1"
