"""A model that says anything: tokens drawn at random from those that a grammar permits, with the demo's vocabulary."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import tokenizers
from llguidance import LLMatcher, LLTokenizer

from engine.demo import MODEL_FOLDER
from gateway.text.grammar_check import GrammarChecker

END: Final = "<|end|>"
MARKERS: Final = (
    *("<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
)
"""Added to the demo's vocabulary as special tokens, for dialects that have them so."""

_CLOSERS: Final = ('"@', "}]>")


class Sampler:
    """Draws answers. ``special`` are the ids of `MARKERS`, which only a grammar that asks for the token permits."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        self.backend = tokenizers.Tokenizer.from_file(str(path))
        self.size = self.backend.get_vocab_size(with_added_tokens=True)
        vocabulary: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        self.special: dict[str, int] = {name: vocabulary[name] for name in MARKERS if name in vocabulary}
        self.end = vocabulary[END]
        self.tokenizer = LLTokenizer(self.backend.to_str(), n_vocab=self.size, eos_token=self.end)
        self.checker = GrammarChecker(path, self.size, [self.end])
        names = [self.backend.id_to_token(token) or "" for token in range(self.size)]
        self._closing = [np.array([name[:1] in (*chars,) for name in names]) for chars in _CLOSERS]

    def draw(self, grammar: str, rng: random.Random, phrases: Sequence[str] = (), limit: int = 1000) -> str:
        """One whole answer, special tokens of `MARKERS` included. It tends to close what is open, so as to end.

        Now and then it says one of ``phrases``, as much of it as the grammar permits.
        """
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids: list[int] = []
        mask = np.zeros((self.size + 31) // 32 * 4, np.uint8)
        while len(ids) < limit:
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            assert not matcher.is_error(), matcher.get_error()
            allowed = np.unpackbits(mask, bitorder="little")[: self.size].astype(bool)
            assert allowed.any(), f"nothing is permitted after {self.text(ids)!r} under {grammar}"
            if allowed[self.end] and (rng.random() < 0.3 or len(ids) > limit // 2):
                return self.text(ids)
            if phrases and rng.random() < 0.2:
                said = self.backend.encode(rng.choice(phrases), add_special_tokens=False).ids
                ids += said[: matcher.try_consume_tokens(said)]
                continue
            allowed[self.end] = False
            closing = allowed & rng.choice(self._closing)
            if closing.any() and rng.random() < (0.4 if len(ids) < limit // 2 else 0.9):
                allowed = closing
            choices = np.flatnonzero(allowed)
            if not len(choices):
                return self.text(ids)
            token = int(choices[rng.randrange(len(choices))])
            assert matcher.consume_token(token)
            ids.append(token)
        raise AssertionError(f"no end after {limit} tokens: {self.text(ids)[:2000]!r}")

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether ``text`` is a whole answer; markers in it are tokens where the grammar may want that."""
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.backend.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def text(self, ids: list[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=False))


@cache
def plain() -> Sampler:
    """With the demo's own vocabulary: markers are texts."""
    return Sampler(MODEL_FOLDER)


def with_markers(folder: Path) -> Sampler:
    """With `MARKERS` as special tokens; their vocabulary is written to ``folder``."""
    backend = tokenizers.Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    backend.add_special_tokens([tokenizers.AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    backend.save(str(folder / "tokenizer.json"))
    return Sampler(folder)
