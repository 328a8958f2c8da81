"""When does a canary get more traffic, and when does it lose what it has? The rollout, step by step, with its reasons.

Pure: requests and times come in, decisions come out. A rollout begins at its first weight. It is rolled back as soon as
one guard's evidence that the canary is worse reaches the number of guards divided by ``alpha``; if the canary is not
worse at anything, this happens in the whole rollout with a probability of at most alpha, however often somebody looks.
It goes on to the next weight once all guards have shown it to be harmless at this one, at a level of ``promote_alpha``
each, and it has stayed for a while; after the last weight it is promoted. Until either happens it waits.

An operator may decide otherwise: promote it, roll it back, or hold it at its weight. A rollout that is held is watched
as before, and is rolled back for the same reasons.
"""

from typing import Final, Literal

import msgspec

from gateway.traffic.rollout.blocks import Blocks, Outcome, Uid
from gateway.traffic.rollout.guard import FEEDBACK, LATE, Guard, GuardState, make_guard

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


class RolloutPlan(msgspec.Struct, frozen=True):
    """A rollout that is wanted.

    ``stable`` and ``canary`` are the names of the variants. ``what`` says what the canary is, and what it is compared
    with: a rollout of something else begins anew.
    """

    config: RolloutConfig
    stable: str
    canary: str
    what: str = ""


class RolloutState(msgspec.Struct):
    """A rollout's memory, for a restart.

    ``since``: when it came to its step or status, in seconds since the epoch. ``controls`` and ``canaries``: how many
    requests of each arm have been compared.
    """

    step: int = 0
    since: float = 0.0
    status: Status = "running"
    held: bool = False
    reason: str = ""
    controls: int = 0
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
        self.guards: list[Guard] = [
            make_guard(name, config.max_regression, config.exclude) for name in dict.fromkeys(config.guard)
        ]
        self._late = [guard for guard in self.guards if guard.name in LATE]
        self._soon = [guard for guard in self.guards if guard.name not in LATE]
        self._blocks = Blocks(late=bool(self._late))
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
    def held(self) -> bool:
        """Whether an operator keeps it from going on."""
        return self._state.held

    @property
    def step(self) -> int:
        """Which of ``config.steps`` it is at, from 0 on; their number once it is promoted."""
        return self._state.step

    @property
    def since(self) -> float:
        """When it came to its step or status, in seconds since the epoch."""
        return self._state.since

    @property
    def compared(self) -> tuple[int, int]:
        """How many requests of the control and of the canary have been compared."""
        return self._state.controls, self._state.canaries

    @property
    def reason(self) -> str:
        """Why it is where it is, in words and numbers."""
        return self._state.reason

    @property
    def worse_limit(self) -> float:
        """The evidence that a guard's canary is worse at which it is rolled back."""
        return len(self.guards) / self.config.alpha

    @property
    def harmless_limit(self) -> float:
        """The evidence that a guard's canary is harmless that each needs to go on."""
        return 1 / self.config.promote_alpha

    def came(self, uid: Uid, canary: bool, unit: str, now: float) -> None:
        """A request was given its arm, by nothing but chance. ``unit``: what the arm sticks to, "" for the request."""
        if self._state.status == "running":
            self._blocks.came(uid, canary, unit, now)

    def began(self, uid: Uid, ttft: float) -> None:
        """The first of a request's answer was there after ``ttft`` seconds."""
        self._blocks.began(uid, ttft)

    def ended(self, uid: Uid, outcome: Outcome, name: str = "") -> None:
        """All is known of a request but, for guards of it, what users say later of the request called ``name``."""
        self._blocks.ended(uid, outcome, name)

    def lose(self, process: int) -> None:
        """Nothing more will be known of what another process, ``process``, has told of."""
        self._blocks.lose(process)

    @property
    def takes_feedback(self) -> bool:
        """Whether `rate` makes a difference."""
        return bool(self._late)

    def rate(self, name: str, score: float) -> bool:
        """What a user says of a request, the higher the better; False where that doesn't count."""
        return self._blocks.add(name, FEEDBACK, score)

    def look(self, now: float) -> bool:
        """Weigh what has become known; True when the rollout's step or status is another one now."""
        if self._state.status != "running":
            return False
        return (self._weigh(now) and self._is_worse(now)) or self._go_on(now)

    def promote(self, reason: str, now: float) -> None:
        """Give the canary everything, whatever the guards say."""
        self._state.step = len(self.config.steps)
        self._end("promoted", reason, now)

    def roll_back(self, reason: str, now: float) -> None:
        """Take everything from the canary, whatever the guards say."""
        self._end("rolled_back", reason, now)

    def hold(self, held: bool = True) -> None:
        """Stay at this weight until told otherwise (``held`` False); guards go on."""
        self._state.held = held

    def missing(self, now: float) -> list[str]:
        """What it takes until the next step, a sentence each; nothing where there is none."""
        if self._state.status != "running":
            return []
        found = ["an operator holds it"] if self._state.held else []
        found += [
            f"{guard.name}: evidence {_odds(guard.harmless)} that it is {guard.hope}, of {_odds(self.harmless_limit)}"
            for guard in self.guards
            if guard.harmless < self.harmless_limit
        ]
        left = self._state.since + self.config.dwell - now
        return [*found, f"another {left:.0f} s at this weight"] if left > 0 else found

    def save(self) -> RolloutState:
        """What a rollout that goes on after a restart must know."""
        return msgspec.structs.replace(self._state, guards={guard.name: guard.save() for guard in self.guards})

    def _weigh(self, now: float) -> bool:
        """Give guards the blocks that are complete; whether there were any."""
        weighed = False
        for block in self._blocks.compared(now):
            self._state.controls += len(block.control)
            self._state.canaries += len(block.canary)
            for guard in self._soon:
                guard.add(block)
            weighed = True
        for block in self._blocks.late(now):
            for guard in self._late:
                guard.add(block)
            weighed = True
        return weighed

    def _is_worse(self, now: float) -> bool:
        """Roll back if one guard has shown the canary to be worse."""
        worst = max(self.guards, key=lambda guard: guard.worse)
        if worst.worse < self.worse_limit:
            return False
        self.roll_back(
            f"rolled back from {self._weight_of_step:g} % after {self._state.canaries} requests to the canary: "
            f"{worst.describe()}; evidence {_odds(worst.worse)} that it is worse by more than "
            f"{self.config.max_regression:.0%} (limit {_odds(self.worse_limit)})",
            now,
        )
        return True

    def _end(self, status: Status, reason: str, now: float) -> None:
        self._state.status, self._state.reason, self._state.since = status, reason, now
        self._state.held = False
        self._blocks = Blocks()

    def _go_on(self, now: float) -> bool:
        if self._state.held or now - self._state.since < self.config.dwell:
            return False
        if any(guard.harmless < self.harmless_limit for guard in self.guards):
            return False
        shown = "; ".join(guard.describe() for guard in self.guards)
        before = self._weight_of_step
        self._state.step += 1
        self._state.since = now
        done = self._state.step >= len(self.config.steps) or self._weight_of_step >= 100
        after = 100.0 if done else self._weight_of_step
        reason = f"from {before:g} % to {after:g} % after {self._state.canaries} requests to the canary: {shown}"
        if done:
            self.promote(reason, now)
        else:
            self._state.reason = reason
            self._begin_step()
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
