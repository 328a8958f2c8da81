"""Is the gateway alive, would it answer, and how is it doing? ``/health/live``, ``/health/ready``, ``/metrics``."""

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.telemetry.metrics import CONTENT_TYPE, OPEN_METRICS
from gateway.wire import errors


async def live(context: Context, exchange: Exchange) -> None:
    """``GET /health/live``: 200 as long as the process can answer anything."""
    await exchange.reply(200, b'{"status":"live"}')


async def ready(context: Context, exchange: Exchange) -> None:
    """``GET /health/ready``: 200 when a request would be answered, else 503 and why."""
    reason = context.not_ready
    if reason is not None:
        raise errors.unavailable(reason, 1)
    await exchange.reply(200, b'{"status":"ready"}')


async def metrics(context: Context, exchange: Exchange) -> None:
    """``GET /metrics``: the Prometheus page; for who accepts OpenMetrics, with trace ids as exemplars."""
    if any(name == b"accept" and b"application/openmetrics-text" in value for name, value in exchange.sent):
        await exchange.reply(200, context.metrics.open_page(), content_type=OPEN_METRICS)
    else:
        await exchange.reply(200, context.metrics.page(), content_type=CONTENT_TYPE)
