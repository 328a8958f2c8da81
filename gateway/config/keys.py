"""What may stand under ``keys`` and ``limits`` in a configuration file? Who may ask, for what, and how much of it."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from flywheel.content import Mode
from gateway.config.document import Document, Fault, Path
from gateway.traffic.keys import HASH, Key, KeyHash, parse_hash
from gateway.traffic.limits.limit import SECONDS, Limits, Rate, parse_amount, parse_rate

_ID: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_MOST_PRIORITY: Final = 1_000_000
_SCHEMES: Final = ("redis", "rediss", "unix")

Count = Annotated[int, Meta(ge=1)]


class Amount(int):
    """So many, written as a number or as ``200k``."""


class Moment(float):
    """Seconds since the epoch, written as ``2027-01-31`` or ``2027-01-31T12:00:00+01:00``."""


class Hash(str):
    """The hash of a key, written as ``sha256:SALT:DIGEST``."""


def parse_moment(text: str) -> float:
    """The seconds since the epoch that an ISO 8601 date or time stands for; UTC unless it says otherwise.

    Raises:
        ValueError: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date: write 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


PARSERS: Final[dict[type, Any]] = {
    Rate: parse_rate,
    Amount: lambda text: Amount(parse_amount(text)),
    Moment: lambda text: Moment(parse_moment(text)),
    Hash: lambda text: Hash(parse_hash(text)),
}
_AMOUNT: Final = r"^\s*\d+(\.\d+)?\s*[kKmMgG]?\s*"
SCHEMAS: Final[dict[type, dict[str, Any]]] = {
    Rate: {"type": "string", "pattern": f"{_AMOUNT}/ *({'|'.join(SECONDS)}) *$", "examples": ["600/min", "200k/min"]},
    Amount: {"minimum": 0.5, "pattern": f"{_AMOUNT}$", "examples": [500_000, "5M"]},
    Moment: {"pattern": r"^\d{4}", "examples": ["2027-01-31"]},
    Hash: {"type": "string", "pattern": f"^{HASH.pattern}$", "examples": ["sha256:SALT:DIGEST"]},
}


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be used up; what isn't named isn't limited."""

    requests: Annotated[Rate | None, Meta(description="requests in a time, such as 600/min; all of them at once")] = (
        None
    )
    tokens: Annotated[
        Rate | None,
        Meta(
            description="tokens in a time, such as 200k/min; a request counts with its prompt and max_tokens until it "
            "is over, then with what it used"
        ),
    ] = None
    concurrent: Annotated[Count | None, Meta(description="requests at the same time")] = None
    tokens_per_day: Annotated[Amount | None, Meta(description="tokens from one midnight (UTC) to the next")] = None

    @property
    def limits(self) -> Limits:
        """The same, as it is counted."""
        return Limits(
            requests=self.requests,
            tokens=self.tokens,
            concurrent=self.concurrent,
            tokens_per_day=self.tokens_per_day,
        )


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that clients may send, and what it allows."""

    id: Annotated[
        str,
        Meta(
            description="what it is called in metrics and logs; clients don't see it",
            extra_json_schema={"pattern": f"^{_ID.pattern}$"},
        ),
    ]
    hash: Annotated[Hash, Meta(description="what is kept of it, as penstock key new and penstock key hash make it")]
    models: Annotated[
        tuple[str, ...] | None, Meta(description="the names under models that it may ask for; default: all of them")
    ] = None
    limits: Annotated[KeyLimits, Meta(description="limits of all its requests together")] = KeyLimits()
    model_limits: Annotated[
        dict[str, KeyLimits], Meta(description="further limits, of its requests for one model, by the model's name")
    ] = {}
    priority: Annotated[
        Annotated[int, Meta(ge=-_MOST_PRIORITY, le=_MOST_PRIORITY)],
        Meta(description="of its requests, the higher the earlier"),
    ] = 0
    expires: Annotated[Moment | None, Meta(description="when it ends, such as 2027-01-31; UTC unless it says so")] = (
        None
    )
    content: Annotated[
        Mode | None, Meta(description="what the request log keeps of its requests, if it is less than elsewhere")
    ] = None
    admin: Annotated[bool, Meta(description="whether it may use /admin as well")] = False

    @property
    def entry(self) -> tuple[KeyHash, Key]:
        """The same, as keyrings have it."""
        return parse_hash(self.hash), Key(
            id=self.id,
            models=frozenset(self.models) if self.models is not None else None,
            admin=self.admin,
            expires=self.expires,
            priority=self.priority,
            limits=self.limits.limits,
            model_limits={model: limits.limits for model, limits in self.model_limits.items()},
        )


class Counting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where limits are counted: without this section, by all gateway processes of this host together."""

    redis: Annotated[
        str | None,
        Meta(description="the Redis in which gateways of several hosts count together: redis://HOST:PORT"),
    ] = None
    redis_env: Annotated[
        str | None, Meta(description="instead of redis: the environment variable with its address, password and all")
    ] = None
    when_away: Annotated[
        Literal["open", "closed"],
        Meta(
            description="while Redis can't be reached: open, each gateway process allows its part of every limit; "
            "closed, requests of keys with limits are refused"
        ),
    ] = "open"


def wrong_keys(document: Document, keys: Iterable[tuple[int, ApiKey]], models: Iterable[str]) -> Iterator[Fault]:
    """What can be right in each key, and is wrong beside the rest."""
    known = list(models)
    seen: dict[str, set[str]] = {"id": set(), "hash": set()}
    for index, key in keys:
        if not _ID.fullmatch(key.id):
            yield document.fault(("keys", index, "id"), "an id has up to 64 letters, digits and any of _ . @ -")
        for field, values in seen.items():
            if (value := getattr(key, field)) in values:
                yield document.fault(("keys", index, field), f"another key has the same {field}")
            values.add(value)
        wanted: list[tuple[Path, str]] = [
            (("keys", index, "models", place), name) for place, name in enumerate(key.models or ())
        ]
        wanted += [(("keys", index, "model_limits", name), name) for name in key.model_limits]
        for path, name in wanted:
            if name not in known:
                yield document.fault(path, f"there is no model {name!r}: the models are {', '.join(known)}")


def wrong_counting(document: Document, counting: Counting) -> Iterator[Fault]:
    """What is wrong in where limits are counted."""
    if counting.redis is not None and counting.redis_env is not None:
        yield document.fault(("limits", "redis_env"), "redis and redis_env can't both be there")
    if counting.redis is None:
        if counting.redis_env is None and counting.when_away != "open":
            yield document.fault(("limits", "when_away"), "this is about a Redis, but none is named")
        return
    try:
        address = urlsplit(counting.redis)
    except ValueError as error:
        yield document.fault(("limits", "redis"), str(error))
        return
    if address.scheme not in _SCHEMES or not (address.netloc or address.path):
        yield document.fault(("limits", "redis"), "an address of Redis looks like redis://HOST:PORT")
    elif address.password:
        yield document.fault(
            ("limits", "redis"),
            "no password stands in a file: put the address into a variable, and name it in redis_env",
        )
