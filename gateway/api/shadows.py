"""How does an operator see what shadows have answered? ``/admin/shadows``."""

from typing import Final
from urllib.parse import parse_qsl

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.wire import errors
from gateway.wire.shadows import MAX_PAIRS, ShadowList, ShadowPairList

_encode: Final = msgspec.json.Encoder().encode
_DEFAULT: Final = 20
_FIELDS: Final = 16  # of a query are read


async def list_shadows(context: Context, exchange: Exchange) -> None:
    """``GET /admin/shadows``: how far the answers of all shadows agree with those that clients got."""
    shown = context.shadows.shown() if context.shadows is not None else ShadowList([], 0)
    await exchange.reply(200, _encode(shown))


async def list_pairs(context: Context, exchange: Exchange) -> None:
    """``GET /admin/shadows/pairs``: the newest pairs of answers of one ``target`` that is a ``model``'s shadow.

    They are those that differ, unless ``differing`` is false.
    """
    said = _read(exchange.query)
    model, target = _needed(said, "model"), _needed(said, "target")
    limit = said.get("limit", str(_DEFAULT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= MAX_PAIRS):
        raise errors.invalid_value("limit", f"it must be a whole number between 1 and {MAX_PAIRS}")
    differing = said.get("differing", "true")
    if differing not in ("true", "false"):
        raise errors.invalid_value("differing", f"'{differing}' is neither true nor false")
    found = None
    if context.shadows is not None:
        found = context.shadows.pairs(model, target, int(limit), differing=differing == "true")
    if found is None:
        raise errors.ApiError(404, f"The model '{model}' has no shadow '{target}'.", code="not_found", param="target")
    await exchange.reply(200, _encode(ShadowPairList(found)))


def _read(query: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(query.decode(), max_num_fields=_FIELDS, keep_blank_values=True))
    except ValueError:
        raise errors.invalid_value("query", "it can't be read") from None


def _needed(said: dict[str, str], name: str) -> str:
    if not said.get(name):
        raise errors.missing_field(name)
    return said[name]
