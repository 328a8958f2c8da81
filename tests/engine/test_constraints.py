"""Is every constrained answer valid, whatever the model would rather say, and is nobody else's changed by it?"""

import json
import random
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config import ModelConfig
from engine.constraints import Constraint, Masks, bitmask
from engine.demo import MODEL_FOLDER
from engine.grammar import Grammars, fresh
from engine.job import Job
from engine.link import Sampling
from scheduler.batch import SchedulerConfig
from tests.engine.driving import job, run
from tests.engine.families import RUNNERS, Kind, make_runner
from tests.engine.schemas import grammar, random_schema

VOCABULARY = 3072
EOS = 2
LONGEST = 200


class Constrained:
    """A random model that reads as the demo model does."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
                eos_token_id=EOS,
            )
        ).save_pretrained(folder)  # fmt: skip
        shutil.copy(Path(MODEL_FOLDER) / "tokenizer.json", folder)
        config = ModelConfig.load(folder)
        loaded = Grammars.load(config)
        assert loaded is not None
        self.grammars = loaded
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.runner = make_runner(folder, kind, num_blocks=600, max_running=64)

    def constraint(self, text: str, allowed: Sequence[int] = ()) -> Constraint:
        matcher = fresh(self.grammars.compile(text)) if text else None
        return Constraint(VOCABULARY, matcher=matcher, allowed=allowed, eos_token_ids=(EOS,))

    def job(self, uid: int, text: str, *, seed: int = 0, length: int = 5, **sampling: Any) -> Job:
        """A job at temperature 1 whose answer must match ``text``, unless that is empty."""
        given: dict[str, Any] = {"max_tokens": LONGEST, "grammar": text}
        wish = Sampling(**(given | sampling))
        ids = random.Random(uid).choices(range(3, VOCABULARY), k=length)
        allowed = wish.allowed_token_ids
        constraint = self.constraint(text, allowed) if text or allowed else None
        return job(
            uid, ids, wish.max_tokens, sampling=wish, seed=seed, stop_ids=frozenset({EOS}), constraint=constraint
        )

    def text(self, tokens: Sequence[int]) -> str:
        """An answer's text, which must end as it should."""
        assert tokens[-1] == EOS
        text: str = self.tokenizer.decode(list(tokens[:-1]), skip_special_tokens=False)
        return text


@pytest.fixture(scope="module", params=RUNNERS)
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Constrained:
    return Constrained(tmp_path_factory.mktemp("constrained"), request.param)


def validate(text: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_schemas_are_kept_in_a_mixed_batch(model: Constrained, seed: int) -> None:
    draw = random.Random(seed)
    schemas = [random_schema(draw) for _ in range(100)]
    jobs = [model.job(uid, grammar(schema), seed=uid + seed) for uid, schema in enumerate(schemas)]
    others = [model.job(1000 + uid, "", seed=uid, max_tokens=40) for uid in range(20)]
    mixed = [one for pair in zip(jobs, others, strict=False) for one in pair] + jobs[20:]
    tokens = run(model.runner, mixed, num_blocks=600, config=SchedulerConfig(max_running=40)).tokens
    for uid, schema in enumerate(schemas):
        validate(model.text(tokens[uid]), schema)
    for other in others[::5]:
        again = model.job(other.uid, "", seed=other.uid - 1000, max_tokens=40)
        assert run(model.runner, [again]).tokens[other.uid] == tokens[other.uid]


def test_they_are_kept_when_requests_are_preempted(model: Constrained) -> None:
    draw = random.Random(99)
    schemas = [random_schema(draw) for _ in range(30)]
    jobs = [model.job(uid, grammar(schema), seed=uid, length=16) for uid, schema in enumerate(schemas)]
    result = run(model.runner, jobs, num_blocks=56, config=SchedulerConfig(lookahead=False, max_running=30))
    assert result.preemptions > 0
    for uid, schema in enumerate(schemas):
        validate(model.text(result.tokens[uid]), schema)
    for uid, schema in list(enumerate(schemas))[::6]:
        again = model.job(uid, grammar(schema), seed=uid, length=16)
        alone = run(model.runner, [again], num_blocks=60).tokens[uid]
        assert alone == result.tokens[uid]


@pytest.mark.parametrize("greedy", [False, True])
def test_regex_choice_and_grammar(model: Constrained, greedy: bool) -> None:
    pattern = r"[A-Z][a-z]{1,5}-[0-9]{2,4}(!|\?)"
    choices = ("yes", "no", "höchstens", "yes, but")
    expression = 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,3}/'
    grammars = [
        LLMatcher.grammar_from_regex(pattern),
        LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices))),
        LLMatcher.grammar_from_lark(expression),
    ]
    temperature = 0.0 if greedy else 1.0
    jobs = [
        model.job(3 * seed + kind, text, seed=seed, temperature=temperature)
        for seed in range(8)
        for kind, text in enumerate(grammars)
    ]
    tokens = run(model.runner, jobs, num_blocks=600).tokens
    for seed in range(8):
        assert re.fullmatch(pattern, model.text(tokens[3 * seed]))
        assert model.text(tokens[3 * seed + 1]) in choices
        nested = tokens[3 * seed + 2]
        if nested[-1] == EOS:
            assert re.fullmatch(r"\(*[0-9]{1,3}\)*", model.text(nested))
            assert model.text(nested).count("(") == model.text(nested).count(")")


def test_choices_are_all_drawn_in_the_end(model: Constrained) -> None:
    text = LLMatcher.grammar_from_lark('start: "yes" | "no" | "perhaps"')
    jobs = [model.job(uid, text, seed=uid, length=1 + uid % 9) for uid in range(60)]
    tokens = run(model.runner, jobs, num_blocks=600).tokens
    assert {model.text(tokens[uid]) for uid in range(60)} == {"yes", "no", "perhaps"}


def test_allowed_ids_alone(model: Constrained) -> None:
    jobs = [model.job(uid, "", seed=uid, max_tokens=20, allowed_token_ids=(7, 31, 32, 3071)) for uid in range(4)]
    tokens = run(model.runner, jobs).tokens
    assert {token for answer in tokens.values() for token in answer} == {7, 31, 32, 3071}


def test_allowed_ids_narrow_a_grammar_and_never_keep_it_from_ending(model: Constrained) -> None:
    seven = model.tokenizer.token_to_id("7")
    ours = model.job(1, LLMatcher.grammar_from_regex("[0-9]{5}"), allowed_token_ids=(seven,))
    assert model.text(run(model.runner, [ours], num_blocks=600).tokens[1]) == "77777"


def test_what_excludes_each_other_ends_one_request_only(model: Constrained) -> None:
    stuck = model.job(1, "", allowed_token_ids=(5, 6), bad_words=((5,), (6,)))
    later = model.job(2, LLMatcher.grammar_from_regex("ab"), bad_words=tuple((t,) for t in _tokens_with(model, "b")))
    other = model.job(3, "", max_tokens=10)
    result = run(model.runner, [stuck, later, other], num_blocks=600)
    assert sorted(result.stuck) == [1, 2]
    assert len(result.tokens[3]) == 10 or result.tokens[3][-1] == EOS


def _tokens_with(model: Constrained, letter: str) -> list[int]:
    return [token for token in range(VOCABULARY) if letter in model.tokenizer.decode([token])]


def test_min_tokens_ban_the_end_until_the_grammar_has_nothing_else(model: Constrained) -> None:
    longer = [model.job(uid, LLMatcher.grammar_from_regex("a{1,40}"), seed=uid, min_tokens=4) for uid in range(10)]
    ended = model.job(20, LLMatcher.grammar_from_regex("ab"), min_tokens=30)
    tokens = run(model.runner, [*longer, ended], num_blocks=600).tokens
    assert all(len(tokens[uid]) >= 4 for uid in range(10) if len(model.text(tokens[uid])) < 40)
    assert model.text(tokens[20]) == "ab"


def test_a_grammar_that_becomes_too_much_fails_with_a_reason(model: Constrained) -> None:
    ours = model.job(1, "start: " + " | ".join(f"/[a-z]{i}/" for i in range(21_000)))
    result = run(model.runner, [ours, model.job(2, "", max_tokens=5)], num_blocks=600)
    assert result.stuck == [1]
    assert ours.constraint is not None
    assert "items" in ours.constraint.fault
    assert len(result.tokens[2]) == 5 or result.tokens[2][-1] == EOS


def test_rows_go_to_the_constrained_only(model: Constrained) -> None:
    masks = Masks(VOCABULARY)
    free = model.job(1, "")
    jobs = [free, model.job(2, "", allowed_token_ids=(0, 33)), free, model.job(3, "", allowed_token_ids=(3071,))]
    mask = masks.finish(jobs, masks.begin(jobs))
    assert mask.row_of.tolist() == [-1, 0, -1, 1]
    assert mask.rows.shape == (2, 96)
    assert (mask.rows[0] == bitmask([0, 33], VOCABULARY)).all()
    assert mask.rows[1].view(np.uint32)[95] == 1 << 31


def test_nobody_constrained_starts_nothing(model: Constrained) -> None:
    masks = Masks(VOCABULARY)
    jobs = [model.job(1, ""), model.job(2, "")]
    begun: Future[None] | None = masks.begin(jobs)
    assert begun is None
    assert masks.finish(jobs, begun).row_of.tolist() == [-1, -1]


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 331])
def test_bitmask(vocabulary: int) -> None:
    tokens = sorted({0, vocabulary - 1, vocabulary // 2})
    mask = bitmask(tokens, vocabulary)
    assert mask.dtype == np.int32
    assert len(mask) == -(-vocabulary // 32)
    assert [token for token in range(32 * len(mask)) if mask.view(np.uint32)[token // 32] >> token % 32 & 1] == tokens
