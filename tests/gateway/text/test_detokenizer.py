"""Incremental decoding equals whole decoding, for every kind of tokenizer and any sequence of tokens."""

from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders

from gateway.text.detokenizer import (
    REPLACEMENT,
    ByteLevelDetokenizer,
    PieceDetokenizer,
    WindowDetokenizer,
    detokenizer_factory,
)
from gateway.text.tokenizer import Tokenizer
from tests.gateway.text.builders import BUILDERS, WINDOWED, build

TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="😀👨‍👩‍👧é你好日本 ▁\n.,'", max_size=30),
    st.lists(st.sampled_from(["😀", "👨‍👩‍👧‍👦", "你好", " ", "doesn't", "<|end|>", "é"]), max_size=8).map("".join),
)


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(build(name).to_str()))


def token_id(name: str, token: str) -> int:
    found = build(name).token_to_id(token)
    assert found is not None
    return found


def pieces(tokens: Tokenizer, ids: list[int], cuts: list[int], skip: bool) -> list[str]:
    """What a detokenizer gives for ``ids``, pushed in pieces of the lengths ``cuts``, repeated; flush comes last."""
    detokenizer = tokens.detokenizer(skip_special_tokens=skip)
    out, at, turn = [], 0, 0
    while at < len(ids):
        count = cuts[turn % len(cuts)]
        out.append(detokenizer.push(ids[at : at + count]))
        at, turn = at + count, turn + 1
    return [*out, detokenizer.flush()]


CUTS = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@pytest.mark.parametrize("name", BUILDERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data(), cuts=CUTS, skip=st.booleans())
def test_any_ids(name: str, data: st.DataObject, cuts: list[int], skip: bool) -> None:
    tokens = tokenizer(name)
    low = st.integers(0, min(270, tokens.size - 1))  # where the byte tokens are
    ids = data.draw(st.lists(st.one_of(low, st.integers(0, tokens.size + 2)), max_size=24))
    assert "".join(pieces(tokens, ids, cuts, skip)) == tokens.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", BUILDERS)
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, cuts=CUTS, skip=st.booleans())
def test_any_text(name: str, text: str, cuts: list[int], skip: bool) -> None:
    tokens = tokenizer(name)
    ids = tokens.encode(text, add_special_tokens=False)
    parts = pieces(tokens, ids, cuts, skip)
    whole = tokens.decode(ids, skip_special_tokens=skip)
    assert "".join(parts) == whole
    if REPLACEMENT not in whole:
        assert REPLACEMENT not in "".join(parts)


@pytest.mark.parametrize("name", WINDOWED)
@settings(deadline=None, max_examples=60)
@given(data=st.data(), cuts=CUTS)
def test_window_on_any_ids(name: str, data: st.DataObject, cuts: list[int]) -> None:
    tokens = tokenizer(name)
    assert isinstance(tokens.detokenizer(), WindowDetokenizer)
    ids = data.draw(st.lists(st.integers(0, tokens.size - 1), max_size=24))
    assert "".join(pieces(tokens, ids, cuts, True)) == tokens.decode(ids)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama2"])
@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
def test_window_on_any_text(name: str, text: str) -> None:
    """The fallback is right for text that a tokenizer made, whatever the decoder."""
    backend = build(name)
    ids = backend.encode(text, add_special_tokens=False).ids
    detokenizer = WindowDetokenizer(backend, frozenset())
    parts = [detokenizer.push([token]) for token in ids]
    assert "".join([*parts, detokenizer.flush()]) == backend.decode(ids, skip_special_tokens=False)


def test_window_is_bounded() -> None:
    """An answer of invalid bytes does not make the window grow, nor is it held back for ever."""
    backend = build("gpt2")
    broken = token_id("gpt2", "Ģ")  # the byte 0x80
    detokenizer = WindowDetokenizer(backend, frozenset())
    parts = [detokenizer.push([broken]) for _ in range(200)]
    assert len(detokenizer._window) <= 2 * WindowDetokenizer.MAX_HELD + 2
    assert "".join([*parts, detokenizer.flush()]) == REPLACEMENT * 200


def test_a_character_comes_when_it_is_complete() -> None:
    tokens = tokenizer("gpt2")
    emoji = [token_id("gpt2", char) for char in "ðŁĺĢ"]  # 😀 in GPT-2's byte alphabet
    detokenizer = tokens.detokenizer()
    assert [detokenizer.push([token]) for token in emoji] == ["", "", "", "😀"]


def test_an_incomplete_character_comes_at_the_end() -> None:
    detokenizer = tokenizer("gpt2").detokenizer()
    assert detokenizer.push([token_id("gpt2", "ð")]) == ""
    assert detokenizer.flush() == REPLACEMENT


def test_byte_run_is_held_until_it_ends() -> None:
    ids = [token_id("llama2", name) for name in ("<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁")]
    detokenizer = tokenizer("llama2").detokenizer()
    assert [detokenizer.push([token]) for token in ids] == ["", "", "", "", "😀 "]


@pytest.mark.parametrize("name", ["unigram", "llama2"])
def test_leading_space_goes_once(name: str) -> None:
    tokens = tokenizer(name)
    ids = tokens.encode("The quick fox", add_special_tokens=False)
    parts = pieces(tokens, ids, [1], True)
    assert "".join(parts) == "The quick fox"


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2"])
def test_byte_level_is_recognised(name: str) -> None:
    assert isinstance(tokenizer(name).detokenizer(), ByteLevelDetokenizer)


@pytest.mark.parametrize("name", ["llama2", "gemma", "unigram", "wordpiece", "no decoder"])
def test_pieces_are_recognised(name: str) -> None:
    assert isinstance(tokenizer(name).detokenizer(), PieceDetokenizer)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
    ],
    ids=["regex", "replace after fuse", "strip at the end"],
)
def test_what_needs_more_than_a_token_goes_through_the_window(decoder: decoders.Decoder) -> None:
    backend = tokenizers.Tokenizer.from_str(build("gemma").to_str())
    backend.decoder = decoder
    assert isinstance(detokenizer_factory(backend, frozenset())(), WindowDetokenizer)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), start=st.integers(0, 3), stop=st.integers(0, 2), fuse=st.booleans())
def test_strip(data: st.DataObject, start: int, stop: int, fuse: bool) -> None:
    backend = tokenizers.Tokenizer.from_str(build("gemma").to_str())
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " ")]
    steps += [decoders.Fuse(), decoders.Strip(" ", start, 0)] if fuse else [decoders.Strip(" ", start, stop)]
    backend.decoder = decoders.Sequence(steps)
    tokens = Tokenizer(backend)
    assert isinstance(tokens.detokenizer(), PieceDetokenizer)
    spaces = [token_id("gemma", "▁" * count) for count in (1, 2, 3)]
    ids = data.draw(st.lists(st.one_of(st.sampled_from(spaces), st.integers(250, tokens.size - 1)), max_size=10))
    if not fuse and stop and any(not (backend.id_to_token(token) or "x").strip("▁") for token in ids):
        return  # the Rust side reads past the end of a token that is all spaces
    assert "".join(pieces(tokens, ids, [1], False)) == tokens.decode(ids, skip_special_tokens=False)
