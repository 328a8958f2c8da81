"""How is ``/v1/responses`` answered? As the chat request that asks for the same, written in this endpoint's form."""

import time
from typing import Final
from urllib.parse import parse_qs

import msgspec

from gateway.api.chat import answer_chat
from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.request import decode
from gateway.api.response_form import ResponseForm
from gateway.api.response_request import chat_request, own_fault, read_conversation
from gateway.api.response_store import Kept
from gateway.api.scores import TokenNames
from gateway.wire import errors, responses
from gateway.wire.responses_answer import DeletedResponse, ItemList, Response
from gateway.wire.responses_items import Item, new_id

PAGE: Final = 20
MOST_PER_PAGE: Final = 100

_encode: Final = msgspec.json.Encoder().encode


async def create_response(context: Context, exchange: Exchange) -> None:
    """``POST /v1/responses``: what the model says next, whole or as a stream; kept unless ``store`` is false."""
    request = await decode(context, exchange, responses.decoder)
    request.check()
    model = context.model(request.model, exchange)
    store = context.responses
    conversation = read_conversation(request, store, exchange.key.id)

    def keep(response: Response) -> None:
        if response.store and not exchange.background:  # a batch's answers are kept in its files
            store.put(response, conversation.input, exchange.key.id)

    response = Response.under_way(
        request,
        id=new_id("resp"),
        created=int(time.time()),
        model=model.name,
        temperature=_in_force(request.temperature, model.defaults.get("temperature")),
        top_p=_in_force(request.top_p, model.defaults.get("top_p")),
    )
    names = TokenNames(model.tokenizer)
    describe = (lambda scores: names.chat(scores).content) if request.wants_logprobs else None
    form = ResponseForm(response, keep=keep, describe=describe)
    try:
        await answer_chat(context, exchange, chat_request(request, conversation.messages), form)
    except errors.ApiError as error:
        raise own_fault(error, conversation.paths) from error


async def show_response(context: Context, exchange: Exchange) -> None:
    """``GET /v1/responses/{response_id}``: a response that is kept."""
    kept = _find(context, exchange)
    if _query(exchange).get("stream") == "true":
        raise errors.unsupported_parameter("stream", "the events of a response are sent once, as it is made")
    await exchange.reply(200, kept.body)


async def delete_response(context: Context, exchange: Exchange) -> None:
    """``DELETE /v1/responses/{response_id}``: keep it no longer."""
    _find(context, exchange)
    id = exchange.params["response_id"]
    context.responses.delete(id)
    await exchange.reply(200, _encode(DeletedResponse(id)))


async def cancel_response(context: Context, exchange: Exchange) -> None:
    """``POST /v1/responses/{response_id}/cancel``: refused, since all that are kept are complete."""
    _find(context, exchange)
    raise errors.ApiError(
        400,
        "Cannot cancel a synchronous response: only one that is made in the background can be, and there are none.",
        code="invalid_value",
        param="response_id",
    )


async def list_input(context: Context, exchange: Exchange) -> None:
    """``GET /v1/responses/{response_id}/input_items``: the items of its own request, newest first unless asked for."""
    items = _find(context, exchange).input
    query = _query(exchange)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise errors.invalid_value("order", f"{order!r} is neither 'asc' nor 'desc'")
    if order == "desc":
        items.reverse()
    page, rest = _page(items, query.get("after"), query.get("limit"))
    ends = (page[0].id, page[-1].id) if page else (None, None)
    await exchange.reply(200, _encode(ItemList(data=page, first_id=ends[0], last_id=ends[1], has_more=rest)))


def _page(items: list[Item], after: str | None, limit: str | None) -> tuple[list[Item], bool]:
    """The items ``after`` the one of that id, and whether more follow."""
    start = 0
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise errors.invalid_value("after", f"no item of this response has the id {after!r}")
        start = ids.index(after) + 1
    most = PAGE
    if limit is not None:
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST_PER_PAGE):
            raise errors.invalid_value("limit", f"{limit!r} is not from 1 to {MOST_PER_PAGE}")
        most = int(limit)
    return items[start : start + most], len(items) > start + most


def _find(context: Context, exchange: Exchange) -> Kept:
    id = exchange.params["response_id"]
    kept = context.responses.get(id, exchange.key.id)
    if kept is None:
        raise errors.unknown_id("Response", id, "response_id")
    return kept


def _query(exchange: Exchange) -> dict[str, str]:
    """The query's parameters; of one that is there twice, the last."""
    found = parse_qs(exchange.query.decode("latin-1"), keep_blank_values=True)
    return {name: values[-1] for name, values in found.items()}


def _in_force(asked: float | None, own: float | None) -> float:
    if asked is not None:
        return asked
    return 1.0 if own is None else own
