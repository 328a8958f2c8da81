"""Is the gateway alive, would it answer, and how is it doing? ``/health/live``, ``/health/ready``, ``/metrics``."""

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.telemetry.metrics import CONTENT_TYPE, OPEN_METRICS
from gateway.wire import errors


async def live(context: Context, exchange: Exchange) -> None:
    """``GET /health/live``: 200 as long as the process can answer anything."""
    await exchange.reply(200, b'{"status":"live"}')


async def well(context: Context, exchange: Exchange) -> None:
    """``GET /health``: the same as ``/health/ready``, where routers look for it."""
    await ready(context, exchange)


async def ready(context: Context, exchange: Exchange) -> None:
    """``GET /health/ready``: 200 when some model answers, with those that don't in ``away``; else 503 and why."""
    reason = context.not_ready
    if reason is not None:
        raise errors.unavailable(reason, 1)
    away = {name: fault for name, fault in context.faults().items() if fault is not None}
    await exchange.reply(200, msgspec.json.encode({"status": "ready", "away": away}))


async def metrics(context: Context, exchange: Exchange) -> None:
    """``GET /metrics``: the Prometheus page; for who accepts OpenMetrics, with trace ids as exemplars."""
    if any(name == b"accept" and b"application/openmetrics-text" in value for name, value in exchange.sent):
        await exchange.reply(200, context.metrics.open_page(), content_type=OPEN_METRICS)
    else:
        await exchange.reply(200, context.metrics.page(), content_type=CONTENT_TYPE)
