"""What may stand under ``models`` in a configuration file? Variants, fallbacks, timeouts, shadows, a rollout."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from flywheel.content import Mode
from gateway.config.document import Document, Fault, Path, listed
from gateway.config.values import Seconds, Share
from gateway.traffic.edit import Edit
from gateway.traffic.rollout.guard import ALIASES, guard_names
from gateway.traffic.rollout.rollout import RolloutConfig
from gateway.traffic.routes import (
    ONLY,
    USUAL,
    Cause,
    FallbackPlan,
    RoutePlan,
    VariantPlan,
)
from gateway.traffic.shadow.sampling import ShadowPlan

_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_RULES: Final = ("user", "session", "key", "none")
_STICKY: Final = re.compile(rf"{'|'.join(_RULES)}|header:[A-Za-z0-9-]+")
_USUAL: Final = RolloutConfig()

# What the reader sees to in its own words, as editors are told of it.
NOT_EMPTY: Final[dict[str, Any]] = {"minProperties": 1, "minItems": 1}
EITHER: Final[dict[str, Any]] = {
    "oneOf": [
        {"required": [name], "properties": {name: {"type": kind}}}
        for name, kind in (("target", "string"), ("variants", "object"))
    ]
}


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How answers are sampled where a request doesn't say."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the ways in which a model is answered for."""

    target: Annotated[str, Meta(description="the target that answers, by its name under targets")]
    weight: Annotated[
        Annotated[float, Meta(ge=0, le=1e6)] | None,
        Meta(description="its part of the requests, beside the other variants' weights; a rollout has its own"),
    ] = None
    system: Annotated[str | None, Meta(description="the system prompt of requests that come without one")] = None
    sampling: Annotated[Sampling, Meta(description="how answers are sampled where a request doesn't say")] = Sampling()


class Fallback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A target that answers instead of one that couldn't."""

    target: Annotated[str, Meta(description="the target, by its name under targets")]
    when: Annotated[
        tuple[Cause, ...],
        Meta(
            description="why: unavailable (nobody there, or broken off before the first byte), timeout, "
            "overloaded (429), error (other 5xx), context_length (the prompt is too long); default: all but the last",
            extra_json_schema=NOT_EMPTY,
        ),
    ] = tuple(sorted(USUAL))


class Timeout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long an answer may take."""

    first_token: Annotated[
        Seconds | None,
        Meta(
            description="to its first token, where that can be seen: of streams, and of all answers that are made "
            "here; then a fallback for timeout is asked"
        ),
    ] = None
    total: Annotated[Seconds | None, Meta(description="to its last one; then it ends with an error")] = None


class Shadow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A target that gets copies of requests, whose answers nobody sees but GET /admin/shadows."""

    target: Annotated[str, Meta(description="the target, by its name under targets")]
    sample: Annotated[Share, Meta(description="the part of the requests that is copied, such as 10%")]
    keep: Annotated[
        Literal["pairs", "none"],
        Meta(
            description="pairs: answers that differ are kept in the data folder for review; none: they are only counted"
        ),
    ] = "pairs"


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the second variant takes over from the first one by itself, or is rolled back."""

    guard: Annotated[
        tuple[Annotated[str, Meta(extra_json_schema={"enum": guard_names()})], ...] | None,
        Meta(
            description=f"what it may not be worse at; default: {', '.join(_USUAL.guard)}",
            extra_json_schema=NOT_EMPTY,
        ),
    ] = None
    max_regression: Annotated[
        Share | None,
        Meta(
            description="what it may be worse by; evidence that it is worse by more rolls it back; default: "
            f"{_USUAL.max_regression:.0%}"
        ),
    ] = None
    exclude: Annotated[
        Share | None,
        Meta(
            description="what it must be shown not to be worse by before it gets more of the requests; default: "
            f"{_USUAL.exclude:.0%}"
        ),
    ] = None
    alpha: Annotated[
        Share | None,
        Meta(description=f"the chance of rolling back a variant that is no worse; default: {_USUAL.alpha:.0%}"),
    ] = None
    promote_alpha: Annotated[
        Share | None,
        Meta(
            description="the chance, at each step, of going on with one that is worse by exclude; default: "
            f"{_USUAL.promote_alpha:.0%}"
        ),
    ] = None
    steps: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=100)], ...] | None,
        Meta(
            description=f"its part of the requests, in percent; default: {list(_USUAL.steps)}",
            extra_json_schema=NOT_EMPTY,
        ),
    ] = None
    dwell: Annotated[
        Seconds | None,
        Meta(description=f"how long it stays at each step, at least; default: {_USUAL.dwell:g}s"),
    ] = None

    @property
    def config(self) -> RolloutConfig:
        """The same, as the rollout itself has it."""
        said = {name: _plain(value) for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(_USUAL, **said)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, float) else value


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a name that clients send leads to: a target, or several variants, each with one."""

    target: Annotated[str | None, Meta(description="the target that answers, by its name under targets")] = None
    variants: Annotated[
        dict[str, Variant] | None,
        Meta(
            description="instead of target: variants by names of their own, the stable one first",
            extra_json_schema=NOT_EMPTY,
        ),
    ] = None
    sticky: Annotated[
        str,
        Meta(
            description="what keeps a request with the variant of earlier ones: user, session, key, header:NAME or "
            "none",
            extra_json_schema={"pattern": f"^({_STICKY.pattern})$"},
        ),
    ] = "none"
    fallback: Annotated[
        tuple[str | Fallback, ...], Meta(description="targets that answer instead, in this order, when one can't")
    ] = ()
    timeout: Annotated[Timeout, Meta(description="how long an answer may take")] = Timeout()
    shadow: Annotated[tuple[Shadow, ...], Meta(description="targets that get copies of requests")] = ()
    content: Annotated[
        Mode | None, Meta(description="what the request log keeps of what is said, if it is less than elsewhere")
    ] = None
    rollout: Annotated[
        Rollout | None, Meta(description="let the second of two variants take over step by step, or be rolled back")
    ] = None

    @property
    def plain(self) -> str | None:
        """The target's name, where there is nothing else to say of how requests go there."""
        bare = msgspec.structs.replace(self, target=None, variants=None, content=None) == Model()
        if not bare or self.target is not None:
            return self.target if bare else None
        if self.variants is None or self.variants.keys() != {ONLY}:
            return None
        variant = self.variants[ONLY]
        return variant.target if variant == Variant(target=variant.target, weight=variant.weight) else None

    @property
    def route(self) -> RoutePlan:
        """The same, as requests are routed by it."""
        named = self.variants or {ONLY: Variant(target=self.target or "")}
        return RoutePlan(
            variants=tuple(_variant(name, variant) for name, variant in named.items()),
            sticky=self.sticky,
            fallbacks=tuple(_fallback(one) for one in self.fallback),
            first_token=_seconds(self.timeout.first_token),
            total=_seconds(self.timeout.total),
            shadows=tuple(ShadowPlan(one.target, float(one.sample), one.keep) for one in self.shadow),
            rollout=self.rollout.config if self.rollout is not None else None,
        )


def _seconds(value: Seconds | None) -> float | None:
    return None if value is None else float(value)


def _variant(name: str, one: Variant) -> VariantPlan:
    return VariantPlan(
        name=name,
        target=one.target,
        weight=1.0 if one.weight is None else one.weight,
        edit=Edit(one.system, msgspec.to_builtins(one.sampling)),
    )


def _fallback(one: str | Fallback) -> FallbackPlan:
    return FallbackPlan(one) if isinstance(one, str) else FallbackPlan(one.target, frozenset(one.when))


def wrong_model(document: Document, name: str, model: Model, targets: Mapping[str, Any]) -> Iterator[Fault]:
    """What can be right in each field of a model, and is wrong beside the rest."""
    path: Path = ("models", name)
    if not name.strip():
        yield document.fault(path, "a model's name can't be empty")
    if (model.target is None) == (model.variants is None):
        yield document.fault(path, "a model has either target or variants")
        return
    for at, target in _targets(model):
        if target not in targets:
            there = f"the targets are {listed(targets)}" if targets else "there are none"
            yield document.fault((*path, *at), f"there is no target {target!r}: {there}")
    if model.variants is not None:
        yield from _wrong_variants(document, path, model, model.variants)
    if not _STICKY.fullmatch(model.sticky):
        yield document.fault((*path, "sticky"), f"this is {listed([*_RULES[:-1], 'header:NAME', 'none'])}")
    yield from _wrong_others(document, path, model)
    for field in ("first_token", "total"):
        if getattr(model.timeout, field) == 0:
            yield document.fault((*path, "timeout", field), "this has to be above 0")
    if model.rollout is not None:
        yield from _wrong_rollout(document, path, model, model.rollout)


def _targets(model: Model) -> Iterator[tuple[Path, str]]:
    """The targets that a model names, and where."""
    if model.target is not None:
        yield ("target",), model.target
    for name, variant in (model.variants or {}).items():
        yield ("variants", name, "target"), variant.target
    for index, one in enumerate(model.fallback):
        if isinstance(one, str):
            yield ("fallback", index), one
        else:
            yield ("fallback", index, "target"), one.target
    for index, shadow in enumerate(model.shadow):
        yield ("shadow", index, "target"), shadow.target


def _wrong_others(document: Document, path: Path, model: Model) -> Iterator[Fault]:
    """Fallbacks that nobody would ever ask, shadows that are there twice."""
    own = {variant.target for variant in model.route.variants}
    for index, fallback in enumerate(model.route.fallbacks):
        if own == {fallback.target}:
            yield document.fault((*path, "fallback", index), "nothing falls back to the target that it comes from")
        if not fallback.on:
            yield document.fault((*path, "fallback", index, "when"), f"this is for {listed(get_args(Cause))}")
    shadows = [shadow.target for shadow in model.shadow]
    for index, target in enumerate(shadows):
        if target in shadows[:index]:
            yield document.fault((*path, "shadow", index, "target"), "this target has a shadow's place here already")


def _wrong_variants(document: Document, path: Path, model: Model, variants: Mapping[str, Variant]) -> Iterator[Fault]:
    at: Path = (*path, "variants")
    if not variants:
        yield document.fault(at, "at least one variant has to be there")
    for name in variants:
        if not _NAME.fullmatch(name):
            yield document.fault((*at, name), "a variant's name has up to 64 letters, digits and any of _ . @ -")
    if len(variants) < 2 or model.rollout is not None:
        return
    for name, variant in variants.items():
        if variant.weight is None:
            yield document.fault((*at, name), "weight is missing: its part of the requests, such as 95")
    if not any(variant.weight != 0 for variant in variants.values()):
        yield document.fault(at, "one of the weights has to be above 0")


def _wrong_rollout(document: Document, path: Path, model: Model, rollout: Rollout) -> Iterator[Fault]:
    at: Path = (*path, "rollout")
    config, known = rollout.config, guard_names()
    if len(model.variants or ()) != 2:
        yield document.fault(at, "a rollout is between two variants: the stable one, and the canary after it")
    for index, guard in enumerate(config.guard):
        if guard not in known:
            yield document.fault((*at, "guard", index), f"there is no guard {guard!r}: it is {listed(known)}")
        if ALIASES.get(guard, guard) in [ALIASES.get(one, one) for one in config.guard[:index]]:
            yield document.fault((*at, "guard", index), f"{guard} is guarded already")
    if not config.guard:
        yield document.fault((*at, "guard"), "at least one guard has to be there")
    if not config.steps or list(config.steps) != sorted(set(config.steps)):
        yield document.fault((*at, "steps"), "steps are percentages, each above the one before, such as [5, 25, 100]")
    for field in ("alpha", "promote_alpha"):
        if getattr(config, field) >= 1:
            yield document.fault((*at, field), "this is a chance: below 100%")
    if config.max_regression > config.exclude:
        yield document.fault((*at, "exclude"), "this has to be at least max_regression")
