"""Is every request that could harm a worker refused, in words, and every sound one taken?"""

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checks import MOST_TOP, fault_of
from engine.edits import Edits
from engine.link import Pooling, Sampling, Slo, Submit

NAN, INFINITE = float("nan"), float("inf")
VOCABULARY = 100


def fault(count: int = 3, *, embed: Pooling = "", slo: Slo | None = None, age: float = 0.0, **sampling: Any) -> str:
    """What is wrong with a request, or nothing."""
    given = {"max_tokens": 1} | sampling
    message = Submit(1, array("i", [1] * count).tobytes(), Sampling(**given), embed=embed, slo=slo, age=age)
    found = fault_of(message, vocab_size=VOCABULARY, max_model_len=50)
    return found[1] if found else ""


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": NAN}, "temperature must be between 0 and 1e+06, not nan"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": INFINITE}, "min_p"),
        ({"presence_penalty": NAN}, "presence_penalty"),
        ({"frequency_penalty": -INFINITE}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"logit_bias": {5: NAN}}, "logit_bias must be"),
        ({"logit_bias": {VOCABULARY: 1.0}}, "logit_bias: token id 100 is outside the vocabulary of 100"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: token id -1"),
        ({"allowed_token_ids": (3, 2**62)}, "allowed_token_ids: token id 4611686018427387904"),
        ({"bad_words": ((1, 2), ())}, "bad_words: a word has no tokens"),
        ({"bad_words": ((1, 200),)}, "bad_words: token id 200"),
        ({"bad_words": ((1,) * 70_000,)}, "bad_words: more than"),
        ({"grammar": "x" * (4 * 1024 * 1024 + 1)}, "a grammar may have"),
        ({"top_logprobs": MOST_TOP + 1}, "top_logprobs must be between 0 and 128, not 129"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"prompt_logprobs": -2}, "prompt_logprobs must be between -1"),
    ],
)
def test_what_is_wrong_is_said(sampling: dict[str, Any], said: str) -> None:
    assert said in fault(**sampling)


def test_scores_too_large_for_a_frame_are_refused() -> None:
    message = Submit(1, array("i", [1] * 100_000).tobytes(), Sampling(max_tokens=1, prompt_logprobs=100))
    found = fault_of(message, vocab_size=VOCABULARY, max_model_len=200_000)
    assert found and "too many for a prompt of 100000 tokens" in found[1]


@pytest.mark.parametrize(
    ("slo", "age", "said"),
    [
        (None, NAN, "age"),
        (None, -1.0, "age"),
        (Slo(INFINITE, 0.1), 0.0, "ttft"),
        (Slo(1.0, NAN), 0.0, "tpot"),
    ],
)
def test_times_are_seconds(slo: Slo | None, age: float, said: str) -> None:
    assert said in fault(slo=slo, age=age)


def test_a_prompt_may_fill_the_context_only_to_be_embedded() -> None:
    assert "prompt and answer may have 50" in fault(50)
    assert fault(49) == ""
    assert fault(50, embed="mean") == ""
    assert "has 51 tokens, but may have 50" in fault(51, embed="last")


def test_an_embeddings_sampling_is_nobodys_business() -> None:
    assert fault(embed="mean", max_tokens=0, temperature=NAN) == ""


def test_what_may_be_asked_for_is_taken() -> None:
    assert (
        fault(
            temperature=2.0, top_p=0.0, top_k=-1, min_p=1.0, seed=-(2**62), min_tokens=2**40, presence_penalty=-2.0,
            frequency_penalty=2.0, repetition_penalty=1.8, logit_bias={99: -100.0}, allowed_token_ids=(0, 99),
            bad_words=((0,), (98, 99)), grammar="start: /x/", top_logprobs=20, prompt_logprobs=20,
        )
        == ""
    )  # fmt: skip


@given(
    bias=st.dictionaries(st.integers(-5, 105), st.floats(width=32), max_size=4),
    words=st.lists(st.lists(st.integers(-2, 102), max_size=4).map(tuple), max_size=4).map(tuple),
    penalties=st.tuples(st.floats(), st.floats(), st.floats()),
)
def test_whatever_is_taken_makes_sound_edits(
    bias: dict[int, float], words: tuple[tuple[int, ...], ...], penalties: tuple[float, float, float]
) -> None:
    repetition, presence, frequency = penalties
    asked: dict[str, Any] = {
        "logit_bias": bias, "bad_words": words, "repetition_penalty": repetition, "presence_penalty": presence,
        "frequency_penalty": frequency,
    }  # fmt: skip
    if fault(**asked):
        return
    made = Edits.of(Sampling(max_tokens=1, **asked), [1, 2, 3], (7,))
    if made is None:
        return
    row = made.row([1, 2, 3, 4, 4, 99], True)
    assert ((row.tokens >= 0) & (row.tokens < VOCABULARY)).all()
    assert (row.scale > 0).all() and (row.scale < INFINITE).all()
    assert (row.offset < INFINITE).all()
