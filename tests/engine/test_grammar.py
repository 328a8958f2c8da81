"""Do grammars become matchers, bad ones errors that say why, and is each compiled once?"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher

from engine.config import ModelConfig
from engine.grammar import GrammarFault, Grammars, fresh, mask_words
from tests.models import VOCABULARY, llama_folder

DIGITS = LLMatcher.grammar_from_regex("[0-9]+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture
def grammars(folder: Path) -> Grammars:
    loaded = Grammars.load(ModelConfig.load(folder))
    assert loaded is not None
    return loaded


def allowed(matcher: LLMatcher) -> list[int]:
    row = np.empty(mask_words(VOCABULARY), np.int32)
    matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
    return [token for token in range(VOCABULARY) if row[token // 32] >> token % 32 & 1]


def test_each_request_has_a_matcher_of_its_own(grammars: Grammars) -> None:
    compiled = grammars.compile(DIGITS)
    one, other = fresh(compiled), fresh(compiled)
    first = allowed(one)
    assert one.consume_token(first[0])
    assert 2 in allowed(one) and 2 not in first
    assert allowed(other) == first == allowed(fresh(compiled))


def test_all_end_of_sequence_tokens_end_a_grammar(folder: Path) -> None:
    config = replace(ModelConfig.load(folder), eos_token_ids=(2, 1, 10**6))
    loaded = Grammars.load(config)
    assert loaded is not None
    matcher = fresh(loaded.compile(LLMatcher.grammar_from_regex("(7)?")))
    assert {1, 2} < set(allowed(matcher))


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("start: (", "Expected token"),
        ("", "Empty grammar"),
        (LLMatcher.grammar_from_json_schema({"type": "objekt"}), "objekt"),
        (LLMatcher.grammar_from_json_schema({"type": "array", "minItems": 3, "maxItems": 1}), "nsatisfiable"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(grammars: Grammars, grammar: str, said: str) -> None:
    with pytest.raises(GrammarFault, match=said) as caught:
        fresh(grammars.compile(grammar))
    assert "\n" not in str(caught.value)


def test_a_grammar_that_explodes_is_refused(grammars: Grammars) -> None:
    bomb = "start: X\nX: /.*a.{12}/ & /.*b.{13}.*/ & /.*c.{14}/ & ~/.*d.{15}/"
    with pytest.raises(GrammarFault, match="fuel exhausted"):
        fresh(grammars.compile(bomb))


def test_rules_that_need_each_other_do_not_overflow_the_stack(grammars: Grammars) -> None:
    rules = ["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(4000)), 'r4000: "x"']
    assert allowed(fresh(grammars.compile("\n".join(rules))))


def test_compiled_grammars_are_kept_up_to_a_number(folder: Path, grammars: Grammars) -> None:
    few = Grammars(grammars._tokenizer, VOCABULARY, kept=2)
    first = few.compile(DIGITS)
    few.compile("start: /a/")
    assert few.compile(DIGITS) is first
    few.compile("start: /b/")
    assert few.compile(DIGITS) is first
    few.compile("start: /a/")
    few.compile("start: /b/")
    assert few.compile(DIGITS) is not first


def test_a_folder_without_a_tokenizer_has_no_grammars(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    config = ModelConfig.load(tmp_path)
    assert Grammars.load(config) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Grammars.load(config) is None


def test_a_model_that_never_ends_has_no_grammars(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert Grammars.load(replace(ModelConfig.load(folder), eos_token_ids=())) is None
    assert "end-of-sequence" in caplog.text


def test_a_tokenizer_larger_than_the_model_has_no_grammars(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Grammars.load(replace(ModelConfig.load(folder), vocab_size=100)) is None
    assert "too small" in caplog.text


def test_closing_drops_what_has_not_begun(grammars: Grammars) -> None:
    waiting = [grammars.compile(f'start: "{i}"') for i in range(200)]
    grammars.close()
    assert all(future.done() for future in waiting)
