"""How is ``/v1/embeddings`` answered? Hidden states of the model that also answers chats, pooled by its worker.

The texts run through the scheduler like any others, a priority below those who wait for a first token.
"""

import asyncio
import base64
import time

import msgspec
import numpy as np

from engine.link import Output, Sampling
from gateway.api.context import Context, api_error
from gateway.api.exchange import ClientGone, Exchange
from gateway.api.generation import abort_when_gone
from gateway.api.request import decode
from gateway.fleet.native import OutputStream, RequestFailed, WorkerLost
from gateway.fleet.served_model import ServedModel
from gateway.wire import embeddings, errors
from gateway.wire.embeddings import Embedding, EmbeddingRequest

_encode = msgspec.json.Encoder().encode
_SAMPLING = Sampling(max_tokens=1)
_PRIORITY = -1


async def embed(context: Context, exchange: Exchange) -> None:
    """``POST /v1/embeddings``: a vector for each text or list of token ids."""
    request = await decode(context, exchange, embeddings.decoder)
    request.check()
    model = context.model(request.model, exchange)
    exchange.model = model.name
    if not model.embedding_size:
        raise errors.unsupported_parameter("model", f"'{model.name}' makes no embeddings")
    if request.dimensions is not None and request.dimensions > model.embedding_size:
        raise errors.invalid_value(
            "dimensions", f"{request.dimensions} are more than the {model.embedding_size} that this model has"
        )
    inputs = request.inputs(model.vocab_size)
    arrived = time.perf_counter()
    counters = context.metrics.model(exchange.path, model.name)
    seat = context.seat(model, len(inputs), exchange.background)
    stream: OutputStream | None = None
    watcher: asyncio.Task[None] | None = None
    tokens = used = 0
    try:
        ids = [await _tokens(model, request, index, text) for index, text in enumerate(inputs)]
        tokens = sum(map(len, ids))
        await exchange.tab.enter(context.limits, exchange.key, model.name, tokens)
        if exchange.recording is not None:
            exchange.recording.begin(model.name, model.target)
        stream = model.fleet.open()
        watcher = asyncio.create_task(abort_when_gone(exchange, stream))
        outputs = await _run(stream, request, ids, exchange, arrived)
        used = tokens
    except (WorkerLost, RequestFailed) as fault:
        raise api_error(fault) from fault
    except ClientGone:
        used = tokens
        raise
    finally:
        exchange.tab.settle(used)
        exchange.headers += [(name.encode(), value.encode()) for name, value in exchange.tab.headers.items()]
        seat.leave()
        if exchange.recording is not None and stream is not None and stream.placed is not None:
            exchange.recording.reached(stream.placed, stream.placements)
            exchange.recording.record.worker = stream.worker
        if watcher is not None:
            watcher.cancel()
        if stream is not None:
            stream.close()
    counters.prompt_tokens.inc(tokens)
    counters.cached_tokens.inc(sum(output.cached for output in outputs))
    counters.duration.observe(time.perf_counter() - arrived)
    data = [Embedding(index, _vector(output.embedding, request)) for index, output in enumerate(outputs)]
    usage = embeddings.EmbeddingUsage(tokens, tokens)
    await exchange.reply(200, _encode(embeddings.EmbeddingList(model.name, data, usage)))


async def _tokens(model: ServedModel, request: EmbeddingRequest, index: int, text: str | list[int]) -> list[int]:
    """The token ids of one input, cut to its last ones where the request says so."""
    if isinstance(text, str):
        special = request.add_special_tokens is not False
        text = await model.tokenizer.encode_async(text, add_special_tokens=special)
    most = request.truncate_prompt_tokens
    if most is not None:
        text = text[-(model.max_model_len if most == -1 else most) :]
    param = f"input.{index}" if isinstance(request.input, list) else "input"
    if not text:
        raise errors.invalid_value(param, "it has no tokens")
    if len(text) > model.max_model_len:
        raise errors.ApiError(
            400,
            f"This model's maximum context length is {model.max_model_len} tokens, but your input has {len(text)}. "
            "Shorten it, or have it cut with truncate_prompt_tokens.",
            code="context_length_exceeded",
            param=param,
        )
    return text


async def _run(
    stream: OutputStream, request: EmbeddingRequest, ids: list[list[int]], exchange: Exchange, arrived: float
) -> list[Output]:
    """Have the worker embed all inputs; its outputs in their order."""
    places = {
        stream.submit(
            tokens,
            _SAMPLING,
            tenant=request.user or exchange.key.id,
            priority=_PRIORITY + exchange.key.rank(request.priority),
            age=time.perf_counter() - arrived,
            salt=request.cache_salt or "",
            background=exchange.background,
            embed=request.pooling or "mean",
        ): place
        for place, tokens in enumerate(ids)
    }
    found: dict[int, Output] = {}
    while len(found) < len(places):
        for output in await stream.next():
            found[places[output.id]] = output
    return [found[place] for place in range(len(places))]


def _vector(data: bytes, request: EmbeddingRequest) -> list[float] | str:
    """An embedding as it is sent: its first ``dimensions``, of length 1 unless that is not wanted."""
    vector = np.frombuffer(data, "<f4")[: request.dimensions]
    if request.normalize is not False:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    out: list[float] = vector.tolist()
    return out
