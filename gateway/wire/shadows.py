"""What is said of shadows? How far their answers agree with those that clients got, and pairs that can be looked at."""

from typing import Final

import msgspec

from gateway.traffic.answers import Answer
from gateway.traffic.shadow.compare import Comparison

MAX_PAIRS: Final = 200
"""So many are listed at most."""


class ShadowStanding(msgspec.Struct, frozen=True, kw_only=True):
    """How a shadow's answers compare with a model's own, at one endpoint.

    ``agreement`` is the share of pairs in which whoever acts on the answers does the same with both, null before there
    is one; the true share lies between ``agreement_low`` and ``agreement_high``, at every moment together, with a
    probability of 95 %. ``exact`` and ``normalised``: shares of pairs with equal texts, letter by letter or but for
    case, spaces and punctuation. ``edits``: mean share of words that would have to change. ``length``: mean of the
    shadow's words for each of the model's. ``model_refused``, ``shadow_refused``, ``calls_differ``, ``json_differ``
    count pairs; ``fields`` are the paths within JSON that differ most often. Copies of which no pair came: ``dropped``
    (no room, or a target at rest), ``failed`` (by ``failures``: the status, or what else went wrong), ``unread`` (one
    of the answers was an error, incomplete, or can't be read).
    """

    endpoint: str
    compared: int
    agreement: float | None
    agreement_low: float
    agreement_high: float
    exact: float | None
    normalised: float | None
    edits: float | None
    length: float | None
    model_refused: int
    shadow_refused: int
    calls_differ: int
    json_differ: int
    fields: dict[str, int]
    dropped: int
    failed: int
    unread: int
    failures: dict[str, int]


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """A target that gets copies of a model's requests.

    ``sample``: of which share; ``keep``: pairs for review, or none. ``waiting`` copies wait for the target, whichever
    model's they are, and ``under_way`` it is answering; for ``rest`` seconds it is left alone, since it kept failing.
    """

    model: str
    target: str
    sample: float
    keep: str
    waiting: int
    under_way: int
    rest: float
    endpoints: list[ShadowStanding]


class ShadowList(msgspec.Struct, frozen=True):
    """All shadows. ``unwritten``: pairs that are missing in the files for review, because the disk didn't take them.

    Of several gateway processes, standings and pairs are those of all, the rest that of the one that leads.
    """

    shadows: list[Shadow]
    unwritten: int


class ShadowPair(msgspec.Struct, frozen=True, kw_only=True):
    """A request that two have answered.

    ``at``: Unix time in seconds. ``request`` is what the shadow was asked, as JSON text; null where that is too long.
    Of ``answer``, the model's own, and ``shadow`` the first 65,536 characters are kept.
    """

    request_id: str
    model: str
    target: str
    endpoint: str
    at: float
    agrees: bool
    request: str | None
    answer: Answer
    shadow: Answer
    comparison: Comparison


class ShadowPairList(msgspec.Struct, frozen=True):
    """Pairs that were kept, the newest first."""

    pairs: list[ShadowPair]
