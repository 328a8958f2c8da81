"""How are ``/tokenize`` and ``/detokenize`` answered?"""

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.prompt import render
from gateway.fleet.served_model import ServedModel
from gateway.wire import errors, tokenize
from gateway.wire.generation import check_token_ids

_encode = msgspec.json.Encoder().encode


async def tokenize_text(context: Context, exchange: Exchange) -> None:
    """``POST /tokenize``: the token ids of a prompt, or of messages once the chat template has put them together."""
    request = tokenize.decoder.decode(await exchange.body(context.max_body))
    request.check()
    model = _model(context, exchange, request.model)
    if request.messages is not None:
        text = render(
            model,
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            variables=request.chat_template_kwargs or {},
        )
        special = bool(request.add_special_tokens)
    else:
        text = request.prompt or ""
        special = request.add_special_tokens is not False
    ids = await model.tokenizer.encode_async(text, add_special_tokens=special)
    shown = None
    if request.return_token_strs:
        shown = [model.tokenizer.decode([id], skip_special_tokens=False) for id in ids]
    await exchange.reply(200, _encode(tokenize.TokenizeResponse(len(ids), model.max_model_len, ids, shown)))


async def detokenize_ids(context: Context, exchange: Exchange) -> None:
    """``POST /detokenize``: the text of token ids."""
    request = tokenize.detokenize_decoder.decode(await exchange.body(context.max_body))
    model = _model(context, exchange, request.model)
    check_token_ids("tokens", request.tokens, model.vocab_size)
    text = model.tokenizer.decode(request.tokens, skip_special_tokens=False)
    await exchange.reply(200, _encode(tokenize.DetokenizeResponse(text)))


def _model(context: Context, exchange: Exchange, name: str | None) -> ServedModel:
    """The model that was named; without a name the only one there is."""
    if name is None:
        if len(context.models) > 1:
            raise errors.invalid_value("model", "several models are served here; name one")
        name = next(iter(context.models), "")
    model = context.model(name, exchange)
    exchange.model = model.name
    return model
