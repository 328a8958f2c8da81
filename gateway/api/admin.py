"""How does an operator change what is served, over HTTP? ``/admin/reload``."""

from typing import Final

import msgspec

from gateway.api.context import Context, ReloadError
from gateway.api.exchange import Exchange
from gateway.wire import errors
from gateway.wire.admin import Reloaded

_encode: Final = msgspec.json.Encoder().encode


async def reload(context: Context, exchange: Exchange) -> None:
    """``POST /admin/reload``: read the configuration file again; answered once what it says is in force."""
    if context.reload is None:
        raise errors.conflict("There is no configuration file to read again: this server was started without --config.")
    try:
        changes = await context.reload()
    except ReloadError as error:
        raise errors.invalid_configuration(str(error)) from error
    await exchange.reply(200, _encode(Reloaded(changes)))
