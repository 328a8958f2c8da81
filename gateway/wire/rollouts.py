"""What do operators see of rollouts, and what can they ask for? ``/admin/rollouts``."""

from typing import Final, Literal

import msgspec

from gateway.wire.decode import BodyDecoder

Status = Literal["running", "held", "promoted", "rolled_back"]
Action = Literal["promote", "roll_back", "restart", "hold", "go_on"]


class GuardShown(msgspec.Struct, frozen=True):
    """What one guard has seen.

    ``says`` has both arms' figures in words. ``worse`` is the evidence that the canary is worse, as odds to 1, and
    ``worse_limit`` that at which it is rolled back; ``harmless`` the evidence that it is ``hope``, and
    ``harmless_limit`` what it takes to go on.
    """

    name: str
    says: str
    worse: float
    worse_limit: float
    harmless: float
    harmless_limit: float
    hope: str


class ChangeShown(msgspec.Struct, frozen=True):
    """What happened to a rollout, when (seconds since the epoch) and why."""

    at: float
    what: str
    why: str


class RolloutShown(msgspec.Struct, frozen=True):
    """How a rollout stands.

    ``weight`` is the canary's share of traffic in percent, ``step`` which of ``steps`` weights that is, from 1 on.
    ``since``: when it came there, in seconds since the epoch. ``controls`` and ``canaries``: how many requests have
    been compared. ``missing``: what it takes until it gets more traffic. ``history``: the last changes, the newest
    first.
    """

    model: str
    stable: str
    canary: str
    status: Status
    weight: float
    step: int
    steps: int
    since: float
    reason: str
    controls: int
    canaries: int
    guards: list[GuardShown]
    missing: list[str]
    history: list[ChangeShown]


class RolloutList(msgspec.Struct, frozen=True):
    """All rollouts."""

    rollouts: list[RolloutShown]


class RolloutAction(msgspec.Struct):
    """What an operator wants of a rollout, and why.

    promote: give the canary everything; roll_back: take everything from it; restart: begin again at the first step,
    all evidence forgotten; hold: stay at this weight; go_on: no longer.
    """

    action: Action
    reason: str = ""


decoder: Final = BodyDecoder(RolloutAction)
