"""How does a handler get its request? The body, decoded, with a debug line for what means nothing here."""

import logging

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.wire.decode import BodyDecoder, RequestT

log = logging.getLogger(__name__)


async def decode(context: Context, exchange: Exchange, decoder: BodyDecoder[RequestT]) -> RequestT:
    """Read the body and decode it.

    Raises:
        ApiError: 413, it is too large; 400, it is no JSON, or a field is missing or of the wrong type.
        ClientGone: the client left before it was complete.
    """
    body = await exchange.body(context.max_body)
    if exchange.recording is not None:
        exchange.recording.asked(body, exchange.key.id)
    request = decoder.decode(body)
    if log.isEnabledFor(logging.DEBUG) and (unknown := decoder.unknown_fields(body)):
        said = (exchange.request_id, ", ".join(unknown))
        log.debug("request=%s fields without meaning here: %s", *said, extra=exchange.about)
    return request
