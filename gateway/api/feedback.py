"""How is ``/v1/feedback`` answered? What is said of an answer goes on record, and to the rollout that it is about."""

import asyncio
import time
from typing import Final

import msgspec

from flywheel.record import VERSION, Feedback
from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.request import decode
from gateway.wire import errors, feedback

_encode: Final = msgspec.json.Encoder().encode


async def give_feedback(context: Context, exchange: Exchange) -> None:
    """``POST /v1/feedback``: what somebody thinks of an answer, now or years later."""
    said = await decode(context, exchange, feedback.decoder)
    said.check()
    rollouts = context.rollouts
    counted = said.score is not None and rollouts is not None and await rollouts.rate(said.request_id, said.score)
    recorded = await _record(context, exchange, said)
    if not recorded and not counted:
        raise errors.unavailable("Feedback can't be taken: this server keeps no request log, or can't write it now.")
    taken = feedback.FeedbackTaken(request_id=said.request_id, recorded=recorded, counted=counted)
    await exchange.reply(200, _encode(taken))


async def _record(context: Context, exchange: Exchange, said: feedback.FeedbackRequest) -> bool:
    """Put feedback into the request log; whether it is there."""
    recorder = context.recorder
    if recorder is None:
        return False
    written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    made = Feedback(
        VERSION,
        said.request_id,
        time.time_ns() // 1000,
        score=said.score,
        label=said.label or "",
        correction=said.correction,
        preferred=said.preferred,
        comment=said.comment,
        key=exchange.key.id,
        user=said.user or "",
    )

    def done(is_written: bool) -> None:
        if not written.done():
            written.set_result(is_written)

    recorder.feedback(made, done)
    return await written
