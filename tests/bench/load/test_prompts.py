import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.arrivals import WorkloadError
from bench.load.prompts import (
    TOKEN_IDS,
    UNKNOWN,
    WORDS,
    Form,
    Prompts,
    Wording,
    find_wording,
    load_wording,
    wording_of,
)
from engine.demo import MODEL_FOLDER
from gateway.text.template import ChatTemplate
from gateway.text.tokenizer import Tokenizer
from tests.gateway.text.builders import BUILDERS, WINDOWED, build

DEMO = Tokenizer.load(MODEL_FOLDER)
TEMPLATE = ChatTemplate.load(MODEL_FOLDER)
DEMO_WORDING = {"text": wording_of(DEMO), "chat": wording_of(DEMO, TEMPLATE.render), "tokens": wording_of(DEMO)}


def text_of(prompts: Prompts, key: int, tokens: int, blocks: tuple[int, ...] = (), size: int = 0) -> str:
    made = prompts.make(key, tokens, blocks, size).prompt
    assert isinstance(made, str)
    return made


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@given(st.integers(3, 2000), st.integers(0, 2**40), st.integers(0, 2**40), st.lists(st.integers(0, 9), max_size=5))
def test_a_text_has_exactly_the_tokens_that_were_asked_for(tokens: int, seed: int, key: int, blocks: list[int]) -> None:
    made = Prompts(DEMO_WORDING["text"], "text", seed).make(key, tokens, blocks, 100)
    assert isinstance(made.prompt, str)
    assert made.tokens == tokens == len(DEMO.encode(made.prompt, add_special_tokens=True))


@given(st.integers(5, 2000), st.integers(0, 2**40), st.lists(st.integers(0, 9), max_size=5))
def test_a_chat_has_exactly_the_tokens_that_were_asked_for(tokens: int, key: int, blocks: list[int]) -> None:
    made = Prompts(DEMO_WORDING["chat"], "chat", 1).make(key, tokens, blocks, 100)
    messages: list[dict[str, str]] = made.prompt  # type: ignore[assignment]
    assert [message["role"] for message in messages] == ["user"]
    assert made.tokens == tokens == len(encoded(DEMO, TEMPLATE.render(messages)))


@pytest.mark.parametrize("name", [*BUILDERS, *WINDOWED])
def test_lengths_are_exact_for_every_kind_of_tokenizer(name: str) -> None:
    tokenizer = Tokenizer(build(name))
    wording = wording_of(tokenizer)
    prompts = Prompts(wording, "text", 3)
    assert wording.exact
    for tokens in (1, 2, 3, 64, 1000):
        assert len(encoded(tokenizer, text_of(prompts, tokens, tokens, (1, 2), 50))) == tokens


@pytest.mark.parametrize("name", ["demo", *BUILDERS, *WINDOWED])
def test_prompts_with_equal_blocks_begin_with_equal_tokens(name: str) -> None:
    tokenizer = DEMO if name == "demo" else Tokenizer(build(name))
    prompts = Prompts(wording_of(tokenizer), "text", 0)
    one = text_of(prompts, 1, 300, (7, 8, 9), 64)
    other = text_of(prompts, 2, 300, (7, 8, 10), 64)
    third = text_of(prompts, 3, 300, (7,), 64)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (one, other, third)]
    assert ids[0][:128] == ids[1][:128]
    assert ids[0][128:192] != ids[1][128:192]
    assert ids[0][:64] == ids[2][:64]
    assert ids[0][64:128] != ids[2][64:128]


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from(["text", "tokens"]))
def test_a_longer_prompt_begins_with_the_shorter_one(one: int, other: int, form: Form) -> None:
    prompts = Prompts(UNKNOWN, form, 5)
    short, long = (prompts.make(1, length, (4,), 128).prompt for length in sorted((one, other)))
    assert long[: len(short)] == short


def test_a_block_that_ends_the_prompt_is_cut() -> None:
    prompts = Prompts(DEMO_WORDING["tokens"], "tokens", 0)
    whole, cut = prompts.make(1, 200, (1, 2), 100), prompts.make(2, 130, (1, 2), 100)
    assert isinstance(whole.prompt, list)
    assert whole.prompt[:130] == cut.prompt
    assert (whole.tokens, cut.tokens) == (200, 130)


def test_seeds_and_keys_tell_texts_apart_and_nothing_else_does() -> None:
    def made(seed: int, key: int) -> str:
        return text_of(Prompts(UNKNOWN, "text", seed), key, 20)

    assert made(1, 2) == made(1, 2)
    assert len({made(1, 2), made(1, 3), made(2, 2), made(2, 3)}) == 4
    # The same on every machine, in every version: a run can be repeated elsewhere.
    assert made(0, 0) == (
        "own place very out around over when other three so off group there car is left number until any some"
    )


def test_token_ids_are_those_of_the_texts() -> None:
    text = text_of(Prompts(DEMO_WORDING["tokens"], "text", 4), 1, 101)
    ids = Prompts(DEMO_WORDING["tokens"], "tokens", 4).make(1, 100).prompt
    assert isinstance(ids, list)
    # The last word of a text has no space behind it, which is part of the token here.
    assert encoded(DEMO, text)[:99] == ids[:99]


def test_without_a_tokenizer_there_are_common_words_and_middling_token_ids() -> None:
    made = Prompts(UNKNOWN, "text", 0).make(1, 1000)
    assert made.tokens == 1000
    assert isinstance(made.prompt, str)
    assert set(made.prompt.split(" ")) == set(WORDS)
    ids = Prompts(UNKNOWN, "tokens", 0).make(1, 1000).prompt
    assert isinstance(ids, list)
    assert {str(id) for id in ids} <= {str(id) for id in TOKEN_IDS}


def test_a_later_turn_of_a_text_stands_apart_from_the_answer() -> None:
    prompts = Prompts(DEMO_WORDING["text"], "text", 0)
    later = prompts.make(1, 30, turn=1)
    assert isinstance(later.prompt, str)
    assert later.prompt.startswith("\n\n")
    assert len(later.prompt.split()) == later.tokens == 30


def test_blocks_are_kept() -> None:
    prompts = Prompts(UNKNOWN, "text", 0)
    for key in range(10):
        prompts.make(key, 5 * 512, (0, 1, 2, 3), 512)
    assert (prompts.asked, prompts.made) == (10 * 5 * 512, 4 * 512 + 10 * 512)


def spelt(text: str) -> list[int]:
    """A tokenizer with a token a letter, but for each word of "the" and "of"."""
    return [len(part) << 8 | ord(part[0]) for part in re.findall(r"the ?|of ?|.", text)]


def test_words_that_are_several_tokens_are_counted_in_the_mean() -> None:
    wording = find_wording(spelt, lambda text: len(spelt(text)) + 3, ["about", "under", "the"])
    assert not wording.exact
    assert wording.added == 3
    assert wording.tokens_each == pytest.approx(13 / 3)
    made = Prompts(wording, "text", 0).make(1, 3000)
    assert made.tokens == pytest.approx(3000, abs=4)
    assert len(made.prompt) > 1500


def test_words_that_merge_with_their_neighbours_are_left_out() -> None:
    def merging(text: str) -> list[int]:
        return [len(part) << 8 | ord(part[0]) for part in re.findall(r"to be ?|\w+ ?", text)]

    wording = find_wording(merging, lambda text: len(merging(text)), ["to", *"abcdef", "be"])
    assert wording.words == ("to", *"abcdef")


def test_no_more_words_than_wanted() -> None:
    wording = find_wording(lambda text: encoded(DEMO, text), lambda text: len(encoded(DEMO, text)), most=10)
    assert len(wording.words) == len(wording.ids) == 10
    assert set(wording.words) <= set(WORDS)


def test_a_tokenizer_is_loaded_from_a_folder_or_its_file(tmp_path: Path) -> None:
    assert load_wording(str(MODEL_FOLDER), "text") == DEMO_WORDING["text"]
    assert load_wording(str(MODEL_FOLDER / "tokenizer.json"), "chat") == DEMO_WORDING["chat"]
    with pytest.raises(WorkloadError, match="tokenizer: nothing-here is no folder"):
        load_wording("nothing-here", "text")
    with pytest.raises(WorkloadError, match=r"no tokenizer\.json"):
        load_wording(str(tmp_path), "text")
    (tmp_path / "tokenizer.json").write_bytes((MODEL_FOLDER / "tokenizer.json").read_bytes())
    assert load_wording(str(tmp_path), "tokens").exact
    with pytest.raises(WorkloadError, match="template"):
        load_wording(str(tmp_path), "chat")


def test_a_wording_is_as_it_was_told() -> None:
    assert Prompts(Wording(("a", "b"), (1, 2), "", exact=True, added=4), "text", 0).make(1, 2).tokens == 5
