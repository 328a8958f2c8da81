"""Are penalties, biases and bans those that were asked for, however long the answer, and do they cost nobody else?"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from engine.edits import Edits, Row
from engine.link import Sampling
from engine.runner import Runner
from tests.engine.driving import job, run
from tests.engine.families import RUNNERS, VOCABULARY, Pair, prompt, save

COUNT = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=RUNNERS)
def runner(pair: Pair, request: pytest.FixtureRequest) -> Runner:
    return pair.runner(request.param, num_blocks=80)


def edits(prompt: list[int], stops: frozenset[int] = frozenset(), **sampling: object) -> Edits:
    made = Edits.of(Sampling(max_tokens=9, **sampling), prompt, stops)  # type: ignore[arg-type]
    assert made is not None
    return made


def offsets(row: Row) -> dict[int, float]:
    return dict(zip(row.tokens.tolist(), row.offset.tolist(), strict=True))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.5])
def test_repetition_penalty_is_that_of_transformers(pair: Pair, runner: Runner, penalty: float) -> None:
    prompts = [prompt(seed, 4 + 9 * seed) for seed in range(4)]
    sampling = Sampling(max_tokens=COUNT, temperature=0.0, repetition_penalty=penalty)
    jobs = [job(uid, tokens, COUNT, sampling=sampling) for uid, tokens in enumerate(prompts)]
    plain = [job(uid + 10, tokens, COUNT) for uid, tokens in enumerate(prompts)]
    result = run(runner, [*jobs, *plain], num_blocks=80)
    config = GenerationConfig(
        max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, repetition_penalty=penalty, pad_token_id=0
    )
    for uid, tokens in enumerate(prompts):
        judged = pair.judge.generate(torch.tensor([tokens]), generation_config=config)
        assert result.tokens[uid] == judged[0, len(tokens) :].tolist()
        assert result.tokens[uid + 10] == pair.greedy(tokens, COUNT)


def test_penalties_and_biases_against_a_loop_over_the_logits(pair: Pair, runner: Runner) -> None:
    """Greedy, step by step, with transformers' logits edited the slow way."""
    tokens = prompt(7, 12)
    sampling = Sampling(
        max_tokens=COUNT, temperature=0.0, presence_penalty=0.8, frequency_penalty=0.6, repetition_penalty=1.2,
        logit_bias={3: 4.0, 17: -2.5},
    )  # fmt: skip
    drawn = run(runner, [job(0, tokens, COUNT, sampling=sampling)]).tokens[0]
    assert len(set(drawn)) > 4, "the example says little if nothing is said twice or everything is the same"
    for place, token in enumerate(drawn):
        logits = pair.logits(tokens + drawn[:place])[-1].double()
        for known in set(tokens + drawn[:place]):
            logits[known] = logits[known] / 1.2 if logits[known] > 0 else logits[known] * 1.2
        for said in set(drawn[:place]):
            logits[said] -= 0.8 + 0.6 * drawn[:place].count(said)
        logits[3] += 4.0
        logits[17] -= 2.5
        assert int(logits.argmax()) == token


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_a_negative_penalty_repeats_itself(runner: Runner, field: str) -> None:
    sampling = Sampling(max_tokens=COUNT, temperature=0.0, **{field: -100.0})  # type: ignore[arg-type]
    drawn = run(runner, [job(0, prompt(8, 5), COUNT, sampling=sampling)]).tokens[0]
    assert len(set(drawn)) == 1


def test_preemption_forgets_no_penalty(runner: Runner) -> None:
    sampling = Sampling(max_tokens=COUNT, temperature=0.0, presence_penalty=1.0, repetition_penalty=1.1)
    prompts = [prompt(seed, 10 + seed % 5) for seed in range(20, 25)]
    alone = [run(runner, [job(0, tokens, COUNT, sampling=sampling)]).tokens[0] for tokens in prompts]
    jobs = [job(uid, tokens, COUNT, sampling=sampling) for uid, tokens in enumerate(prompts)]
    crowded = run(runner, jobs, num_blocks=15)
    assert crowded.preemptions > 0
    assert [crowded.tokens[uid] for uid in range(5)] == alone


def test_bad_words_never_come(pair: Pair, runner: Runner) -> None:
    tokens = prompt(9, 6)
    free = pair.greedy(tokens, COUNT)
    words = (tuple(free[3:5]), tuple(free[10:13]), (free[0],))
    sampling = Sampling(max_tokens=COUNT, temperature=0.0, bad_words=words)
    drawn = run(runner, [job(0, tokens, COUNT, sampling=sampling)]).tokens[0]
    assert drawn != free
    for word in words:
        assert not any(tuple(drawn[i : i + len(word)]) == word for i in range(COUNT))


def test_a_bad_word_may_not_end_but_may_begin_and_counts_in_the_answer_only() -> None:
    made = edits([1, 2], bad_words=((1, 2, 3), (2, 4), (9,)))
    banned = float("-inf")
    # (1, 2) and (2,) are in the prompt, not in the answer.
    assert offsets(made.row([1, 2], False)) == {3: 0.0, 4: 0.0, 9: banned}
    assert offsets(made.row([1, 2, 2], False)) == {3: 0.0, 4: banned, 9: banned}
    assert offsets(made.row([1, 2, 2, 1, 2], False)) == {3: banned, 4: banned, 9: banned}
    assert offsets(made.row([1, 2, 2, 1, 2, 5], False)) == {3: 0.0, 4: 0.0, 9: banned}


def test_stops_are_banned_when_told() -> None:
    made = edits([1], frozenset({5}), min_tokens=2, logit_bias={5: 1.0, 6: 2.0})
    assert offsets(made.row([1], True)) == {5: float("-inf"), 6: 2.0}
    assert offsets(made.row([1, 4, 4], False)) == {5: 1.0, 6: 2.0}


def test_who_asks_for_nothing_has_no_edits() -> None:
    assert Edits.of(Sampling(max_tokens=1, top_p=0.5, stop_token_ids=(3,), min_p=0.1), [1, 2], {3}) is None


@given(
    said=st.lists(st.integers(0, VOCABULARY - 1), max_size=300),
    given_prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=80),
    cuts=st.lists(st.integers(0, 300), max_size=5),
    repetition=st.sampled_from([1.0, 1.5]),
    presence=st.sampled_from([0.0, 0.25]),
    frequency=st.sampled_from([0.0, 0.5]),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-1.0, 2.0]), max_size=5),
)
def test_counting_as_it_comes_equals_counting_all(
    said: list[int],
    given_prompt: list[int],
    cuts: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
) -> None:
    sampling = Sampling(
        max_tokens=1, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency,
        logit_bias=bias, bad_words=((0,),),
    )  # fmt: skip
    made = Edits.of(sampling, given_prompt, ())
    assert made is not None
    for cut in sorted(cuts):
        made.row(given_prompt + said[:cut], False)
    row = made.row(given_prompt + said, False)
    assert len(set(row.tokens.tolist())) == len(row.tokens)
    scale, offset = np.ones(VOCABULARY, np.float32), np.zeros(VOCABULARY, np.float32)
    scale[row.tokens], offset[row.tokens] = row.scale, row.offset
    for token in range(1, VOCABULARY):
        count = said.count(token)
        assert scale[token] == (repetition if token in said or token in given_prompt else 1.0)
        assert offset[token] == bias.get(token, 0.0) - (presence + frequency * count if count else 0.0)
    assert offset[0] == float("-inf")


def test_many_biases_all_hold() -> None:
    biases = {token: float(token % 100) for token in range(500)}
    edits = Edits.of(Sampling(max_tokens=1, logit_bias=biases), [1, 2], ())
    assert edits is not None
    row = edits.row([1, 2], stops_banned=False)
    assert dict(zip(row.tokens.tolist(), row.offset.tolist(), strict=True)) == biases
