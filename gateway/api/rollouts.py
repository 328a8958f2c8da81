"""How does an operator see rollouts, and decide on them? ``/admin/rollouts``."""

from typing import Final

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.traffic.rollout.service import NotPossible, Rollouts
from gateway.wire import errors
from gateway.wire.rollouts import RolloutAction, RolloutList, RolloutShown, decoder

_encode: Final = msgspec.json.Encoder().encode


async def list_rollouts(context: Context, exchange: Exchange) -> None:
    """``GET /admin/rollouts``: how all rollouts stand, what was seen of each canary, and why it is where it is."""
    shown = context.rollouts.shown() if context.rollouts is not None else []
    await exchange.reply(200, _encode(RolloutList(shown)))


async def show_rollout(context: Context, exchange: Exchange) -> None:
    """``GET /admin/rollouts/MODEL``: how a model's rollout stands."""
    _, shown = _find(context, exchange.params["model"])
    await exchange.reply(200, _encode(shown))


async def change_rollout(context: Context, exchange: Exchange) -> None:
    """``POST /admin/rollouts/MODEL``: promote, roll back, restart or hold a model's rollout, or let it go on."""
    wanted = decoder.decode(await exchange.body(context.max_body))
    model = exchange.params["model"]
    rollouts, _ = _find(context, model)
    try:
        _change(rollouts, model, wanted)
    except NotPossible as error:
        raise errors.conflict(f"The rollout of '{model}' can't {wanted.action.replace('_', ' ')}: {error}.") from None
    await exchange.reply(200, _encode(_find(context, model)[1]))


def _find(context: Context, model: str) -> tuple[Rollouts, RolloutShown]:
    """All rollouts, and how that of ``model`` stands.

    Raises:
        ApiError: 404, it has none.
    """
    if context.rollouts is not None:
        for shown in context.rollouts.shown():
            if shown.model == model:
                return context.rollouts, shown
    raise errors.ApiError(404, f"The model '{model}' has no rollout.", code="not_found", param="model")


def _change(rollouts: Rollouts, model: str, wanted: RolloutAction) -> None:
    match wanted.action:
        case "promote":
            rollouts.promote(model, wanted.reason)
        case "roll_back":
            rollouts.roll_back(model, wanted.reason)
        case "restart":
            rollouts.restart(model, wanted.reason)
        case "hold":
            rollouts.hold(model, wanted.reason)
        case "go_on":
            rollouts.go_on(model, wanted.reason)
