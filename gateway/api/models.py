"""How is ``/v1/models`` answered? What is served here, or one of it."""

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.fleet.served_model import ServedModel
from gateway.wire.models import Model, ModelList

_encode = msgspec.json.Encoder().encode


async def list_models(context: Context, exchange: Exchange) -> None:
    """``GET /v1/models``: what is served here, and meant for the client's key."""
    models = [*map(_shown, context.models.values()), *_routed(context), *_passed(context)]
    await exchange.reply(200, _encode(ModelList([model for model in models if exchange.key.may_use(model.id)])))


async def show_model(context: Context, exchange: Exchange) -> None:
    """``GET /v1/models/NAME``: one model of those served here. A name may have slashes in it."""
    name = exchange.params["model"]
    exchange.key.allow(name)
    found = next((model for model in [*_routed(context), *_passed(context)] if model.id == name), None)
    await exchange.reply(200, _encode(found or _shown(context.model(name))))


def _routed(context: Context) -> list[Model]:
    """The models with routes, as their first variant is that is served here."""
    models = ((name, context.usual(name)) for name in context.routes)
    return [Model(name, 0) if model is None else _shown(model) for name, model in models]


def _passed(context: Context) -> list[Model]:
    """The models of upstreams. When they were made is theirs to know."""
    names = context.upstreams.names() if context.upstreams is not None else []
    return [Model(name, 0, owned_by="upstream") for name in names]


def _shown(model: ServedModel) -> Model:
    return Model(model.name, model.created, model.max_model_len, parent=model.parent or None)
