"""How is ``/v1/completions`` answered? One prompt or several, as text or as token ids."""

from gateway.api.completion_form import CompletionForm
from gateway.api.context import Context
from gateway.api.exchange import Exchange
from gateway.api.generation import Generation, Plan
from gateway.api.prompt import grammar_of
from gateway.api.request import decode
from gateway.wire import completions, errors


async def text_completions(context: Context, exchange: Exchange) -> None:
    """``POST /v1/completions``: the continuation of each prompt, whole or as a stream."""
    request = await decode(context, exchange, completions.decoder)
    request.check()
    model = context.model(request.model, exchange)
    exchange.model = model.name
    prompts = request.prompts(model.vocab_size)
    if len(prompts) * (request.n or 1) > completions.MAX_ANSWERS:
        raise errors.invalid_value("prompt", f"prompts times 'n' are more than {completions.MAX_ANSWERS} answers")
    form = CompletionForm(request, model.name, model.tokenizer)
    plan = Plan(
        prompt_param="prompt",
        add_special_tokens=request.add_special_tokens is not False,
        default_max_tokens=completions.DEFAULT_MAX_TOKENS,
        grammar=await grammar_of(model, request.shape()),
        echo=bool(request.echo),
        answered=request.answered or 0,
    )
    await Generation(context, exchange, model, request, form, plan).answer(prompts)
