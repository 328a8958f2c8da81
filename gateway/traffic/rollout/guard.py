"""What may a canary not be worse at? One measure, the evidence that it is worse, and the evidence that it isn't.

A guard is asked two questions that are no opposites. *Is it worse?* ends a rollout, and is bet on against the
hypothesis that the canary is worse by ``max_regression`` at most. *Is it shown to be harmless?* lets a rollout go on,
and is bet on against the hypothesis that the canary is worse by ``exclude`` or more. Between the two nothing has been
shown yet, and the rollout holds.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import exp, log
from statistics import fmean, median
from typing import Final, Literal

import msgspec

from gateway.traffic.rollout.blocks import Compared, Outcome
from gateway.traffic.rollout.evidence import EventEvidence, Evidence, RankEvidence, RateEvidence

Better = Literal["lower", "same"]
_RARE: Final = 0.01  # an event that is shown to be rarer is harmless, however rare the control's is
_ODDS: Final = 2.0  # what must be excluded of events, at least: to exclude less takes tens of thousands of requests
_REFERENCE: Final = 400  # control values that a quantile is taken of
_ENOUGH: Final = 50  # of them, before there is a quantile

EVENTS: Final[Mapping[str, str]] = {
    "error_rate": "error",
    "refusal_rate": "refusal",
    "bad_outcome_rate": "bad_outcome",
}
"""Guards of how often something happens, and the event."""
VALUES: Final[Mapping[str, Better]] = {
    "ttft": "lower",
    "itl": "lower",
    "e2e": "lower",
    "uncertainty": "lower",
    "length": "same",
}
"""Guards of a value, and whether a lower one is better, or neither that nor a higher one."""
QUANTILES: Final[Mapping[str, str]] = {"ttft_p95": "ttft", "itl_p95": "itl", "e2e_p95": "e2e"}
"""Guards of how often a value is above 95 % of the control's."""
FEEDBACK: Final = "feedback"
"""The guard of what users say of answers."""
LATE: Final = frozenset({FEEDBACK})
"""Guards of what becomes known minutes after the answer, if at all."""
_LEVEL: Final = 0.95
ALIASES: Final[Mapping[str, str]] = {"hallucination": "uncertainty"}
"""Other names of guards: hallucinations show in the model's own uncertainty."""


class GuardState(msgspec.Struct):
    """A guard's memory, for a restart."""

    stakes: list[float]
    worse: list[list[list[float]]]
    harmless: list[list[float]]
    numbers: list[float]
    reference: list[float] = []


class Guard(ABC):
    """One measure that a canary may not be worse at.

    Capital against the canary is staked in parts, one at the beginning of each step of a rollout, so that what
    happens only under a higher weight isn't weighed against what was seen under a lower one. As the stakes add up to
    1, so does the promise for the rollout as a whole.

    Args:
        name: one of `EVENTS`, `VALUES` and `QUANTILES`, or `FEEDBACK`.
        max_regression: what the canary may be worse by, as a share of the control's.
        exclude: what it must be shown not to be worse by, before it gets more traffic.
    """

    def __init__(self, name: str, max_regression: float, exclude: float) -> None:
        self.name = name
        self.max_regression = max_regression
        self.exclude = exclude
        self._stakes: list[float] = []
        self._worse: list[list[Evidence]] = []
        self._harmless = self._bets_on_harmless()
        self._numbers = [0.0] * 4

    def stake(self, share: float) -> None:
        """A step begins: bet ``share`` of the capital anew against the canary, and forget what spoke for it."""
        self._stakes.append(share)
        self._worse.append(self._bets_on_worse())
        self._harmless = self._bets_on_harmless()

    @abstractmethod
    def add(self, block: Compared) -> None:
        """Take in a block."""

    @property
    def worse(self) -> float:
        """The capital of bets that the canary is worse; at most 1 / alpha, but for a chance of alpha, if it is not."""
        return sum(
            share * fmean(bet.capital for bet in bets) for share, bets in zip(self._stakes, self._worse, strict=True)
        )

    @property
    @abstractmethod
    def harmless(self) -> float:
        """The capital of bets in this step that the canary is not worse by `exclude`."""

    @abstractmethod
    def describe(self) -> str:
        """Both arms' figures in words."""

    @property
    def hope(self) -> str:
        """What must be shown before the canary gets more traffic, in words."""
        return f"worse by less than {self.exclude:.0%}, if at all"

    def save(self) -> GuardState:
        worse = [[bet.state for bet in bets] for bets in self._worse]
        return GuardState(self._stakes, worse, [bet.state for bet in self._harmless], self._numbers)

    def load(self, state: GuardState) -> None:
        """Go on from where another one of the same kind was."""
        self._stakes, self._numbers = state.stakes, state.numbers
        self._worse = [self._bets_on_worse() for _ in state.worse]
        for bets, states in zip([*self._worse, self._harmless], [*state.worse, state.harmless], strict=True):
            for bet, its in zip(bets, states, strict=True):
                bet.state = its

    @abstractmethod
    def _bets_on_worse(self) -> list[Evidence]: ...

    @abstractmethod
    def _bets_on_harmless(self) -> list[Evidence]: ...

    def _bets(self) -> Iterator[Evidence]:
        """All that are running."""
        return chain(*self._worse, self._harmless)


class ValueGuard(Guard):
    """Of a value that each request has."""

    def __init__(self, name: str, better: Better, max_regression: float, exclude: float) -> None:
        self._better = better
        super().__init__(name, max_regression, exclude)

    @property
    def harmless(self) -> float:
        return min(bet.capital for bet in self._harmless)

    def add(self, block: Compared) -> None:
        control, canary = (_values(arm, self.name) for arm in block)
        if not control or not canary:
            return
        for bet in self._bets():
            assert isinstance(bet, RankEvidence)
            bet.add(control, canary)
        if (usual := median(control)) > 0 and (its := median(canary)) > 0:
            self._numbers[0] += log(its / usual)
            self._numbers[1] += 1

    def describe(self) -> str:
        sum_of_logs, blocks, *_ = self._numbers
        ratio = exp(sum_of_logs / blocks) if blocks else 1.0
        return f"{self.name} {ratio:.2f} times the control's (medians, {blocks:.0f} comparisons)"

    def _bets_on_worse(self) -> list[Evidence]:
        return self._bets_at(self.max_regression, worse=True)

    def _bets_on_harmless(self) -> list[Evidence]:
        return self._bets_at(self.exclude, worse=False)

    def _bets_at(self, margin: float, *, worse: bool) -> list[Evidence]:
        """What is bet on at the upper margin, and at the lower one where lower isn't better."""
        bets: list[Evidence] = [RankEvidence(1.0 + margin, below=not worse)]
        if self._better != "lower":
            bets.append(RankEvidence(1.0 / (1.0 + margin), below=worse))
        return bets


class EventGuard(Guard):
    """Of how often something happens.

    Args:
        happened: whether it happened to a request; None where that can't be said of this one.
    """

    def __init__(
        self, name: str, happened: Callable[[Outcome], bool | None], max_regression: float, exclude: float
    ) -> None:
        self._happened = happened
        super().__init__(name, max_regression, exclude)

    @property
    def harmless(self) -> float:
        return fmean(bet.capital for bet in self._harmless)

    def add(self, block: Compared) -> None:
        numbers = self._numbers_of(block)
        for bet in self._bets():
            if isinstance(bet, EventEvidence):
                bet.add(*numbers)
            elif isinstance(bet, RateEvidence):
                bet.add(numbers[1], numbers[3])
        self._numbers = [sum(pair) for pair in zip(self._numbers, numbers, strict=True)]

    def describe(self) -> str:
        controls, canaries, control_events, canary_events = self._numbers
        its, usual = canary_events / max(canaries, 1), control_events / max(controls, 1)
        return f"{self._event} {its:.1%} of {canaries:.0f} requests, the control's {usual:.1%} of {controls:.0f}"

    @property
    def _event(self) -> str:
        """What happens, in words."""
        return self.name

    @property
    def hope(self) -> str:
        return f"less than {self._excluded:g} times as frequent, or rarer than {_RARE:.0%}"

    @property
    def _excluded(self) -> float:
        return max(1.0 + self.exclude, _ODDS)

    def _bets_on_worse(self) -> list[Evidence]:
        return [EventEvidence(1.0 + self.max_regression)]

    def _bets_on_harmless(self) -> list[Evidence]:
        return [EventEvidence(self._excluded, below=True), RateEvidence(_RARE)]

    def _numbers_of(self, block: Compared) -> tuple[int, int, int, int]:
        """Controls, canaries, and how many of each had the event."""
        control, canary = ([one for one in map(self._happened, arm) if one is not None] for arm in block)
        return len(control), len(canary), sum(control), sum(canary)


class QuantileGuard(EventGuard):
    """Of how often a value is above the quantile that 95 % of the control's are below.

    The quantile is that of earlier blocks' controls alone, so that within a block it is a fixed number.
    """

    def __init__(self, name: str, value: str, max_regression: float, exclude: float) -> None:
        self._value = value
        self._reference: deque[float] = deque(maxlen=_REFERENCE)
        self._limit: float | None = None
        super().__init__(name, self._is_beyond, max_regression, exclude)

    def add(self, block: Compared) -> None:
        super().add(block)
        self._reference.extend(_values(block.control, self._value))
        self._find_limit()

    def save(self) -> GuardState:
        return msgspec.structs.replace(super().save(), reference=list(self._reference))

    def load(self, state: GuardState) -> None:
        super().load(state)
        self._reference.extend(state.reference)
        self._find_limit()

    def _find_limit(self) -> None:
        if len(self._reference) >= _ENOUGH:
            self._limit = self._limit_of(self._reference)

    def _limit_of(self, reference: Sequence[float]) -> float:
        return sorted(reference)[int(_LEVEL * len(reference))]

    def _is_beyond(self, outcome: Outcome) -> bool | None:
        value = outcome.values.get(self._value)
        return None if value is None or self._limit is None else self._is_bad(value, self._limit)

    def _is_bad(self, value: float, limit: float) -> bool:
        return value > limit


class FeedbackGuard(QuantileGuard):
    """Of how often users think less of an answer than they do of the control's on average, on whatever scale.

    Scores are often 0 and 1, or few others, and may be negative: a margin that is a ratio means nothing to them.
    """

    def _limit_of(self, reference: Sequence[float]) -> float:
        return fmean(reference)

    def _is_bad(self, value: float, limit: float) -> bool:
        return value < limit

    @property
    def _event(self) -> str:
        return f"{self.name} below the control's average:"


def make_guard(name: str, max_regression: float, exclude: float) -> Guard:
    """The guard called ``name``, one of `guard_names`.

    Raises:
        KeyError: there is none of this name.
    """
    name = ALIASES.get(name, name)
    if name in EVENTS:
        event = EVENTS[name]
        return EventGuard(
            name,
            lambda outcome: None if event in outcome.unknown else event in outcome.events,
            max_regression,
            exclude,
        )
    if name in QUANTILES:
        return QuantileGuard(name, QUANTILES[name], max_regression, exclude)
    if name == FEEDBACK:
        return FeedbackGuard(name, FEEDBACK, max_regression, exclude)
    return ValueGuard(name, VALUES[name], max_regression, exclude)


def guard_names() -> list[str]:
    """All names that `make_guard` knows."""
    return sorted((*EVENTS, *VALUES, *QUANTILES, *ALIASES, FEEDBACK))


def _values(arm: Sequence[Outcome], name: str) -> list[float]:
    return [value for outcome in arm if (value := outcome.values.get(name)) is not None]
