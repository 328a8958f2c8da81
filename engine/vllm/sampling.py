"""What is a request's sampling in vLLM's terms?

Everything of `engine.link.Sampling` has a counterpart. Where vLLM means something slightly else:

- it has the greedy choice, and no ``top_p`` of 0, which is the same thing;
- end-of-sequence tokens are handed over as stop tokens: the model's configuration names them, not its tokenizer;
- a ``temperature`` below 0.01 counts as 0.01, and one above 2 or a penalty beyond ±2 is refused, by vLLM itself;
- ``logit_bias`` is added before penalties are applied, not after: that differs where a ``repetition_penalty`` meets it.

An answer that another worker has begun goes on as if it were part of the prompt. Greedy ones are what they would have
been. Frequency penalties are carried over as a bias, which is exact, and presence penalties too, which counts a token
twice that is drawn on both sides. A seeded one goes on with other draws than an undisturbed run's: vLLM's generators
can't be wound forward. A grammar can't be resumed.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from engine.link import Sampling

_SEEDS: Final = 2**63
_ONLY_ITS_OWN: Final = "start: @grammar"


def sampling_params(wish: Sampling, answered: Sequence[int], eos: Sequence[int], vocab_size: int) -> Any:
    """vLLM's ``SamplingParams`` for a request, the first tokens of whose answer have been ``answered`` already.

    Raises:
        ValueError: vLLM can't do this; the message says what.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    if wish.grammar and answered:
        raise ValueError("vLLM can't go on with an answer that has to match a grammar")
    params = SamplingParams(
        **fields(wish, answered, eos, vocab_size),
        structured_outputs=StructuredOutputsParams(grammar=plain_grammar(wish.grammar)) if wish.grammar else None,
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
        flat_logprobs=True,
        skip_clone=True,
    )
    if wish.bad_words:
        # There is no public way to say it in tokens. With words in text, vLLM fills in the same field.
        params._bad_words_token_ids = [list(word) for word in wish.bad_words]
    return params


def fields(wish: Sampling, answered: Sequence[int], eos: Sequence[int], vocab_size: int) -> dict[str, Any]:
    """The fields of ``SamplingParams`` that hold plain values."""
    ignored = wish.ignore_eos and not wish.grammar
    stops = wish.stop_token_ids if ignored else (*wish.stop_token_ids, *eos)
    greedy = wish.temperature == 0 or wish.top_p == 0
    left = wish.max_tokens - len(answered)
    return {
        "max_tokens": left,
        "min_tokens": min(max(0, wish.min_tokens - len(answered)), left),
        "temperature": 0.0 if greedy else wish.temperature,
        "top_p": wish.top_p or 1.0,
        "top_k": max(0, wish.top_k),
        "min_p": wish.min_p,
        "seed": None if wish.seed is None else (wish.seed + len(answered)) % _SEEDS,
        "stop_token_ids": [token for token in stops if 0 <= token < vocab_size],
        "ignore_eos": True,
        "presence_penalty": wish.presence_penalty,
        "frequency_penalty": wish.frequency_penalty,
        "repetition_penalty": wish.repetition_penalty,
        "logit_bias": _bias(wish, answered) or None,
        "allowed_token_ids": list(wish.allowed_token_ids) or None,
        "logprobs": wish.top_logprobs,
        "prompt_logprobs": None if wish.prompt_logprobs < 0 or answered else wish.prompt_logprobs,
    }


def plain_grammar(grammar: str) -> str:
    """A grammar of llguidance's as vLLM takes it: in Lark, not in JSON.

    The gateway writes JSON for a client's own grammar, which it keeps apart from the rules that it writes itself. Where
    it has written none, the client's is all there is.

    Raises:
        ValueError: the grammar consists of several.
    """
    if not grammar.lstrip().startswith("{"):
        return grammar
    try:
        parts = json.loads(grammar)["grammars"]
        first = parts[0]["lark_grammar"]
        if len(parts) == 1:
            return str(first)
        lines = [line for line in first.splitlines() if line.strip() and not line.startswith("%llguidance")]
        if len(parts) == 2 and parts[1]["name"] == "grammar" and lines == [_ONLY_ITS_OWN]:
            return str(parts[1]["lark_grammar"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"the grammar is neither Lark nor a JSON object with Lark grammars in it: {error}") from error
    raise ValueError("vLLM can't combine a grammar of one's own with tool calls or reasoning")


def _bias(wish: Sampling, answered: Sequence[int]) -> dict[int, float]:
    """The ``logit_bias``, and what the answer so far owes to penalties."""
    bias = dict(wish.logit_bias)
    if wish.frequency_penalty or wish.presence_penalty:
        for token, count in Counter(answered).items():
            owed = wish.presence_penalty + wish.frequency_penalty * count
            bias[token] = bias.get(token, 0.0) - owed
    return bias
