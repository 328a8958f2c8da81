"""How does a grammar become something that says which tokens may come next? Compiled by llguidance, off the loop.

A grammar can take a second to compile; meanwhile the worker goes on. What was compiled is kept, since most clients
send the same few grammars again and again: a request then gets a copy of the matcher in its first state.
"""

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from engine.config import ModelConfig

TOKENIZER_FILE: Final = "tokenizer.json"
_COMPILERS: Final = 2
_KEPT: Final = 128
# llguidance follows rules on the stack: 3,000 that need each other overflow the usual 8 MiB, and 10,000 fit 64 MiB.
_STACK: Final = 256 * 1024 * 1024
# What one grammar may take: a lexer state is 1 to 2 kB; 14k units of lexer fuel, or 20k items, are a millisecond.
_LIMITS: Final = LLParserLimits(
    max_items_in_row=20_000,  # a choice among so many
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)

log = logging.getLogger(__name__)


class GrammarFault(ValueError):
    """A grammar that can't be used; the message says why, for the person who sent it."""


class Grammars:
    """Compiles grammars for one model's tokenizer, and keeps the compiled ones (the least recently used go first)."""

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, kept: int = _KEPT) -> None:
        self._tokenizer = tokenizer
        self._words = mask_words(vocab_size)
        self._kept = kept
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="grammar")

    @classmethod
    def load(cls, config: ModelConfig) -> "Grammars | None":
        """For the model of ``config``; None where its folder has no tokenizer that llguidance can use."""
        path = config.folder / TOKENIZER_FILE
        eos = [token for token in config.eos_token_ids if token < config.vocab_size]
        if not path.is_file() or not eos:
            log.info("no grammars: the model has no %s", "end-of-sequence token" if path.is_file() else TOKENIZER_FILE)
            return None
        try:
            tokenizer = LLTokenizer(_plain(path), n_vocab=config.vocab_size, eos_token=eos)
        except ValueError as error:
            log.warning("no grammars: %s: %s", path, error)
            return None
        return cls(tokenizer, config.vocab_size)

    def compile(self, grammar: str) -> "Future[LLMatcher]":
        """Compile a grammar, or find it compiled.

        The future's matcher is shared: each request takes a `fresh` one. Its exception is a `GrammarFault`.
        """
        with self._lock:
            found = self._compiled.get(grammar)
            if found is None:
                found = self._compiled[grammar] = self._submit(grammar)
                if len(self._compiled) > self._kept:
                    self._compiled.popitem(last=False)
            else:
                self._compiled.move_to_end(grammar)
            return found

    def close(self) -> None:
        """Compile nothing more; whoever waits is told so by a `CancelledError`."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, grammar: str) -> "Future[LLMatcher]":
        usual = threading.stack_size(_STACK)
        try:
            return self._pool.submit(self._compile, grammar)  # the first few of these start a thread each
        finally:
            threading.stack_size(usual)

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # The first mask costs up to a hundred times as much as those that follow; the copies share what it learns.
            scratch = np.empty(self._words, np.int32)
            matcher.unsafe_compute_mask_ptr(scratch.ctypes.data, scratch.nbytes)
        if matcher.is_error():
            raise GrammarFault(f"the grammar can't be used: {first_line(matcher.get_error())}")
        return matcher


def fresh(compiled: "Future[LLMatcher]") -> LLMatcher:
    """A matcher of one's own, of a grammar that has been compiled.

    Raises:
        GrammarFault: the grammar can't be used.
    """
    return compiled.result().deep_copy()


def mask_words(vocab_size: int) -> int:
    """How many 32-bit words the mask of a vocabulary has: one bit for each token."""
    return (vocab_size + 31) // 32


def first_line(message: str) -> str:
    """What llguidance says went wrong, without the excerpt of its state that may follow."""
    return message.strip().partition("\n")[0]


def _plain(path: Path) -> str:
    """The tokenizer as JSON, without the padding and truncation that a folder may ask for."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ValueError(str(error)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text: str = tokenizer.to_str()
    return text
