"""Can a grammar be used? Compiled once by llguidance, in a thread, before its request is sent to a worker."""

import asyncio
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tokenizers

from gateway.text.schema import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_THREADS: Final = 2
_KEPT: Final = 1024
MAX_GRAMMAR: Final = 4 * 1024 * 1024
"""Characters of a grammar; compiling 1 MB of schema takes about a second."""

_MESSAGE: Final = 600


class GrammarChecker:
    """Checks grammars against one model's tokenizer, and remembers what came of it (the oldest go first).

    The tokenizer is loaded on first use: about as long as the model's own, and as much memory. ``eos_token_ids`` must
    be those that the worker uses.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._file = tokenizer_file
        self._vocab_size = vocab_size
        self._eos = [token for token in eos_token_ids if token < vocab_size]
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar-check")

    async def check(self, grammar: str) -> None:
        """`check_now`, in a thread unless the grammar is known: it can take a second.

        Raises:
            ConstraintError: it can't be used.
        """
        fault = self._known.get(_key(grammar))
        if fault is None:
            fault = await asyncio.get_running_loop().run_in_executor(self._pool, self._fault, grammar)
        if fault:
            raise ConstraintError(fault)

    def check_now(self, grammar: str) -> None:
        """Compile a grammar and see what may come first under it.

        Raises:
            ConstraintError: it can't be compiled, is too large, or permits nothing.
        """
        if fault := self._fault(grammar):
            raise ConstraintError(fault)

    def close(self) -> None:
        """Check nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fault(self, grammar: str) -> str:
        """Why a grammar can't be used, or ``""``."""
        key = _key(grammar)
        fault = self._known.get(key)
        if fault is None:
            fault = self._compile(grammar)
            with self._lock:
                self._known[key] = fault
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return fault

    def _compile(self, grammar: str) -> str:
        from llguidance import LLMatcher, LLParserLimits

        if len(grammar) > MAX_GRAMMAR:
            return f"it comes to {len(grammar)} characters of grammar, more than {MAX_GRAMMAR}"
        try:
            tokenizer = self._load()
        except ConstraintError as error:
            return str(error)
        # The limits are the worker's, in engine.grammar.
        limits = LLParserLimits(max_items_in_row=20_000, max_lexer_states=50_000, verbose_errors=False)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # a grammar without answers is only an error now
        if not matcher.is_error():
            return ""
        if matcher.stop_reason() == "InternalError" and "<non-verbose/>" in matcher.get_error():
            return "no answer matches it"
        return explain(matcher.get_error(), grammar)

    def _load(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                if not self._file.is_file() or not self._eos:
                    raise ConstraintError(
                        "this model's answers can't be held to a grammar: its folder has no "
                        f"{'end-of-sequence token' if self._file.is_file() else self._file.name}"
                    )
                try:
                    backend: Any = tokenizers.Tokenizer.from_file(str(self._file))
                    backend.no_padding()
                    backend.no_truncation()
                    self._tokenizer = LLTokenizer(backend.to_str(), n_vocab=self._vocab_size, eos_token=self._eos)
                except Exception as error:  # neither library raises anything narrower
                    raise ConstraintError(f"this model's answers can't be held to a grammar: {error}") from error
            return self._tokenizer


def _key(grammar: str) -> bytes:
    return hashlib.blake2b(grammar.encode(), digest_size=16).digest()


_PLACE: Final = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_EXCERPT: Final = re.compile(r"^ +\d+ \| .*\n?|^ +\^+ *\n?", re.MULTILINE)
_COERCE: Final = "Enable 'coerce_one_of' option to approximate oneOf with anyOf"
_CALL: Final = re.compile(r'^call_\d+: "(?:\{\\"name\\": \\")?([^"\\]+)')


def explain(message: str, grammar: str) -> str:
    """What llguidance says, without the excerpt of a grammar that the client never wrote, and of whose tool."""
    place = _PLACE.match(message)
    whose = ""
    if place:
        lines = grammar.splitlines()
        line = lines[int(place[1]) - 1] if int(place[1]) <= len(lines) else ""
        if call := _CALL.match(line):
            whose = f"the parameters of {call[1]!r}: "
    text = _EXCERPT.sub("", message[place.end() if place else 0 :]).removeprefix("failed to compile JSON schema: ")
    text = " ".join(text.split()).replace(_COERCE, "use 'anyOf'")
    return whose + (text if len(text) <= _MESSAGE else text[:_MESSAGE] + " …")
