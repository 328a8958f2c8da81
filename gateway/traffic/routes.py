"""What does a model's name lead to? Its variants, what a request may fall back to, and how long it may take.

A name that leads to one target and nothing else has no route: its requests take the shortest way. For all others a
`Route` says, for each request, which targets may answer it, in their order: that of the variant which the request was
assigned to, then the fallbacks, each for the causes that it is meant for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from gateway.traffic.edit import Edit
from gateway.traffic.rollout.rollout import RolloutConfig
from gateway.traffic.shadow.sampling import ShadowPlan
from gateway.traffic.variants import SESSION, Asking, Variants, Weighted, sticky_key
from gateway.wire import errors

Cause = Literal["unavailable", "timeout", "overloaded", "error", "context_length"]
"""Why a target did not answer a request."""

USUAL: Final[frozenset[Cause]] = frozenset({"unavailable", "timeout", "overloaded", "error"})
"""What a request falls back for unless the configuration says otherwise."""
ONLY: Final = "default"
"""What a model's only variant is called where it has no name."""
HEADER: Final = "x-penstock-variant"
_BY_STATUS: Final[Mapping[int, Cause]] = {429: "overloaded", 502: "unavailable", 503: "unavailable", 504: "timeout"}
_LIMITS: Final = frozenset({"rate_limit_exceeded", "insufficient_quota"})


def cause_of(status: int, code: str | None = None) -> Cause | None:
    """Why a request has failed that was answered like this; None where another target can't do better."""
    if code == "context_length_exceeded":
        return "context_length"
    if status < 429 or (status == 429 and code in _LIMITS):
        return None
    return _BY_STATUS.get(status, "error" if status >= 500 else None)


def is_turned_away(error: errors.ApiError) -> bool:
    """Whether no variant had to do with it: a limit of the client's key is reached, or too many wait here already."""
    return error.code in _LIMITS or isinstance(error, errors.QueueFull)


def failed_code(status: int, body: bytes) -> str | None:
    """The code of an error that a target answered with, as far as it tells causes apart.

    Servers have no code for prompts that are too long, but all say so in OpenAI's words.
    """
    if status in (400, 413) and (b"context_length" in body or b"maximum context length" in body):
        return "context_length_exceeded"
    return None


class VariantPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A variant as it is configured. ``edit`` is what requests get that don't say."""

    name: str
    target: str
    weight: float = 1.0
    edit: Edit = Edit()


class FallbackPlan(msgspec.Struct, frozen=True):
    """A target that requests fall back to, and for what."""

    target: str
    on: frozenset[Cause] = USUAL


class RoutePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A route as it is configured. Times in seconds; None: as long as it takes."""

    variants: tuple[VariantPlan, ...]
    sticky: str = "none"
    fallbacks: tuple[FallbackPlan, ...] = ()
    first_token: float | None = None
    total: float | None = None
    shadows: tuple[ShadowPlan, ...] = ()
    rollout: RolloutConfig | None = None

    @property
    def by_preference(self) -> list[str]:
        """All that may answer a client's request, those of variants first."""
        return list(dict.fromkeys([one.target for one in self.variants] + [one.target for one in self.fallbacks]))

    @property
    def targets(self) -> frozenset[str]:
        """The same, in no order."""
        return frozenset(self.by_preference)

    @property
    def all_targets(self) -> frozenset[str]:
        """Those, and the ones that get copies."""
        return self.targets | {one.target for one in self.shadows}


class Way(NamedTuple):
    """A target that may answer. ``variant``: what the answer says of it; ``on``: what it may be fallen back to for."""

    target: str
    variant: str
    edit: Edit
    on: frozenset[Cause]


class Assignment(NamedTuple):
    """What a request was assigned to: the ``ways``, in order.

    ``by_chance`` tells whether nothing but chance chose, so that arms may be compared; ``unit`` is what the choice
    sticks to, "" for the request alone; ``drawn`` the number in [0, 1) that decided, where one did.
    """

    route: "Route"
    ways: tuple[Way, ...]
    by_chance: bool
    unit: str
    drawn: float | None = None

    @property
    def variant(self) -> str:
        """The variant's name."""
        return self.ways[0].variant

    def after(self, place: int, cause: Cause | None) -> int | None:
        """The place of the way that follows the one at ``place``, which failed for ``cause``; None if none does."""
        if cause is None:
            return None
        return next((one for one in range(place + 1, len(self.ways)) if cause in self.ways[one].on), None)


class Route:
    """What one name leads to.

    Args:
        name: what clients call the model.
        passes: whether all its targets are upstreams, so that requests pass through without being understood.
    """

    def __init__(self, name: str, plan: RoutePlan, *, passes: bool) -> None:
        self.name = name
        self.plan = plan
        self.passes = passes
        usual = tuple(Way(one.target, one.target, Edit(), one.on) for one in plan.fallbacks)
        self._ways = {
            one.name: (
                Way(one.target, one.name, one.edit, frozenset()),
                *(way for way in usual if way.target != one.target),
            )
            for one in plan.variants
        }
        self.stable = plan.variants[0].name
        self.canary = plan.variants[1].name if plan.rollout is not None else None
        self._variants: Variants
        self._withdrawn: str | None
        self.weigh(None)

    def weigh(self, percent: float | None) -> None:
        """Give the canary so many percent of the requests; None: all variants what the configuration says."""
        variants = self.plan.variants
        self._withdrawn = self.canary if percent == 0 else None
        weights = [one.weight for one in variants] if percent is None else [100.0 - percent, percent]
        weighted = [Weighted(one.name, weight) for one, weight in zip(variants, weights, strict=True)]
        self._variants = Variants(self.name, weighted)

    def assign(self, asking: Asking, wanted: str = "") -> Assignment:
        """Who answers a request; ``wanted`` is the variant that it names itself, as testers' do.

        Raises:
            ApiError: 400, there is no such variant.
        """
        if wanted:
            ways = self._ways.get(wanted)
            if ways is None:
                there = ", ".join(repr(name) for name in self._ways)
                raise errors.invalid_value(HEADER, f"'{self.name}' has no variant {wanted!r}; there are {there}")
            return Assignment(self, ways, by_chance=False, unit="")
        key, sticks = sticky_key(self.plan.sticky, asking)
        variant, drawn = self._variants.draw(key)
        return Assignment(self, self._ways[variant], by_chance=True, unit=key if sticks else "", drawn=drawn)

    def where_held(self, assignment: Assignment, holds: Callable[[str], bool]) -> Assignment:
        """Lead a request to the targets alone that hold what it goes on from: its own variant's if that is one of them.

        It is no evidence then, as chance has not chosen. Where no target holds anything, or only a canary that was
        rolled back, it goes where it went.
        """
        own, *fallbacks = assignment.ways
        held: dict[str, Way] = {}
        for way in (own, *(ways[0] for ways in self._ways.values()), *fallbacks):
            if holds(way.target) and way.variant != self._withdrawn:
                held.setdefault(way.target, way)
        return assignment._replace(ways=tuple(held.values()), by_chance=False) if held else assignment

    def to(self, target: str) -> Assignment:
        """Lead a request to one target alone, whatever is configured."""
        return Assignment(self, (Way(target, target, Edit(), frozenset()),), by_chance=False, unit="")


class _Said(msgspec.Struct):
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    metadata: Any = None


_said: Final = msgspec.json.Decoder(_Said)


def asking(
    rule: str, body: bytes, headers: Iterable[tuple[bytes, bytes]], key: str, request_id: str, user: Any = None
) -> Asking:
    """Who asks, as far as ``rule`` wants to know: the body is only looked at where it has to be, and can be.

    A user is OpenAI's ``user`` or ``safety_identifier``, or Anthropic's ``metadata.user_id``; a session the header
    ``x-session-id``, or OpenAI's ``prompt_cache_key``. The argument ``user`` is what is known of the first of these.
    """
    if rule == "key":
        return Asking(key=key, request=request_id)
    if rule == "user":
        if isinstance(user, str) and user:
            return Asking(user=user, request=request_id)
        return Asking(user=user_of(body), request=request_id)
    if rule == "session" or rule.startswith("header:"):
        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        session = named.get(SESSION.decode(), "")
        if rule == "session" and not session:
            session = _first([_read(body).prompt_cache_key])
        return Asking(session=session, headers=named, request=request_id)
    return Asking(request=request_id)


def user_of(body: bytes) -> str:
    """Whose words are in a request, by its own account; empty where it doesn't say, or can't be read."""
    return _first(_users(_read(body)))


def _read(body: bytes) -> _Said:
    try:
        return _said.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Said()  # who answers says what is wrong with it


def _users(said: _Said) -> Iterator[Any]:
    yield said.user
    yield said.safety_identifier
    if isinstance(said.metadata, dict):
        yield said.metadata.get("user_id")


def _first(values: Iterable[Any]) -> str:
    return next((value for value in values if isinstance(value, str) and value), "")
