"""How is ``/v1/batches`` answered?"""

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.wire import errors
from gateway.wire.batches import MAX_LISTED, Batch, decoder
from gateway.wire.files import ListQuery, page

_encode = msgspec.json.Encoder().encode


async def create_batch(context: Context, exchange: Exchange) -> None:
    """``POST /v1/batches``: answer the requests on the lines of a file, behind everybody who waits for an answer."""
    request = decoder.decode(await exchange.body(context.max_body))
    request.check()
    await exchange.reply(200, _encode(await context.batches_or_503().create(request, exchange.key.id)))


async def list_batches(context: Context, exchange: Exchange) -> None:
    """``GET /v1/batches``: the batches, the newest first unless ``order`` is asc, a page at a time."""
    query = ListQuery(exchange.query, default=20, most=MAX_LISTED)
    found = await context.batches_or_503().list(query, exchange.key.id)
    await exchange.reply(200, _encode(page(found, query.limit)))


async def show_batch(context: Context, exchange: Exchange) -> None:
    """``GET /v1/batches/ID``: how far a batch is, and where its results are."""
    await _reply(exchange, await context.batches_or_503().get(exchange.params["batch_id"], exchange.key.id))


async def cancel_batch(context: Context, exchange: Exchange) -> None:
    """``POST /v1/batches/ID/cancel``: end a batch early; the results that there are can be downloaded."""
    await _reply(exchange, await context.batches_or_503().cancel(exchange.params["batch_id"], exchange.key.id))


async def _reply(exchange: Exchange, batch: Batch | None) -> None:
    if batch is None:
        raise errors.unknown_id("Batch", exchange.params["batch_id"], "batch_id")
    await exchange.reply(200, _encode(batch))
