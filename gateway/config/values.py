"""How are amounts written in a configuration file, and what do they become? Bytes, seconds, parts of a whole."""

from typing import Annotated, Any, Final

from msgspec import Meta

from gateway.config import keys
from gateway.settings import parse_part, parse_seconds, parse_share, parse_size

Count = Annotated[int, Meta(ge=1)]


class Size(int):
    """Bytes, written as a number or as ``2GiB``."""


class Seconds(float):
    """Seconds, written as a number or as ``200ms``."""


class Share(float):
    """A part of a whole, written as ``0.9`` or ``90%``."""


class Part(float):
    """A part of a whole that may be nothing, written as ``0.01`` or ``1%``."""


_PARSERS: Final[dict[type, Any]] = {
    Size: lambda text: Size(parse_size(text)),
    Seconds: lambda text: Seconds(parse_seconds(text)),
    Share: lambda text: Share(parse_share(text)),
    Part: lambda text: Part(parse_part(text)),
    **keys.PARSERS,
}
_SHARE: Final = r"^\s*[\d.]+(e-?\d+)?\s*%?$"
_SCHEMAS: Final[dict[type, dict[str, Any]]] = {
    Size: {"minimum": 1, "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgG][iI]?)?[bB]?\s*$", "examples": ["2GiB"]},
    Seconds: {
        "minimum": 0,
        "pattern": r"^\s*(\d+(\.\d+)?|\.\d+)\s*([mM]?[sS]|[mMhHdD])?\s*$",
        "examples": ["500ms", 1.5],
    },
    Share: {"exclusiveMinimum": 0, "maximum": 1, "pattern": _SHARE, "examples": [0.9, "90%"]},
    Part: {"minimum": 0, "maximum": 1, "pattern": _SHARE, "examples": [0.01, "1%"]},
    **keys.SCHEMAS,
}
"""As far as JSON schema can tell: nothing that the parsers take is refused."""


def decode_value(kind: type, value: Any) -> Any:
    """A `Size`, `Seconds`, `Share`, `Part` or one of `keys` as msgspec wants it of a hook.

    Raises:
        ValueError: ``value`` is none; the message says what would be right.
    """
    return _PARSERS[kind](str(value))


def describe_value(kind: type) -> dict[str, Any]:
    """The JSON schema of such a value."""
    return {"type": ["string", "number"], **_SCHEMAS[kind]}
