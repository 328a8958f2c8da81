"""How is ``/v1/models`` answered? What is served here, or one of it."""

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.fleet.served_model import ServedModel
from gateway.wire.models import Model, ModelList

_encode = msgspec.json.Encoder().encode


async def list_models(context: Context, exchange: Exchange) -> None:
    """``GET /v1/models``: what is served here."""
    await exchange.reply(200, _encode(ModelList([_shown(model) for model in context.models.values()])))


async def show_model(context: Context, exchange: Exchange) -> None:
    """``GET /v1/models/NAME``: one model of those served here. A name may have slashes in it."""
    await exchange.reply(200, _encode(_shown(context.model(exchange.params["model"]))))


def _shown(model: ServedModel) -> Model:
    return Model(model.name, model.created, model.max_model_len)
