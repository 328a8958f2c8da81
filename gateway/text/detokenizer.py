"""How do tokens become text while they are still arriving? Incremental decoding that equals decoding the whole.

What a tokenizer's decoder does is read from its definition once and then done here token by token, in a state machine
of our own: byte-level decoders concatenate bytes and decode UTF-8; SentencePiece-like ones replace ``▁``, collect the
runs of byte tokens and strip a leading space. Each token's bytes or text are looked up once and kept for all requests.
Decoders of another kind go through `WindowDetokenizer`, which decodes a sliding window again for each token.

(`tokenizers.decoders.DecodeStream` answers the same question, but on random ids, invalid bytes among them, as a
sampling model does produce them, it raises for half the sequences of a byte-fallback vocabulary and gives other text
than whole decoding for a sixth; and it has no flush. Version 0.23, 500 sequences of 12 ids.)
"""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import tokenizers

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(ABC):
    """Decodes one answer. The texts of all `push` calls and of `flush` make up what decoding all ids at once gives.

    What isn't certain yet is held back: a character whose last bytes are still to come, or a run of byte tokens.
    """

    __slots__ = ()

    @abstractmethod
    def push(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is certain now."""

    @abstractmethod
    def flush(self) -> str:
        """The rest, when no more ids come: incomplete characters as U+FFFD."""


DetokenizerFactory = Callable[[], Detokenizer]


def detokenizer_factory(backend: tokenizers.Tokenizer, skipped: frozenset[int]) -> DetokenizerFactory:
    """What makes detokenizers for ``backend``; ids in ``skipped`` have no text.

    All detokenizers of a factory share a table of what each token stands for, filled as tokens occur.
    """
    decoder = backend.decoder
    steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    if [step["type"] for step in steps] == ["ByteLevel"]:
        table = _ByteTable(backend, skipped)
        return lambda: ByteLevelDetokenizer(table)
    pieces = _PieceTable.compile(backend, skipped, steps)
    if pieces is not None:
        return lambda: PieceDetokenizer(pieces)
    return lambda: WindowDetokenizer(backend, skipped)


def token_bytes(backend: tokenizers.Tokenizer, token: int) -> bytes:
    """The bytes that ``token`` adds to a text in its middle; empty if there is no such token."""
    decoder = backend.decoder
    steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _ByteTable(backend, frozenset())[token]
    pieces = _PieceTable.compile(backend, frozenset(), steps)
    if pieces is None:
        return str(backend.decode([token], skip_special_tokens=False)).encode()
    piece = pieces.look_up(token, False)
    return bytes([piece]) if isinstance(piece, int) else (piece or "").encode()


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The decoders that ``decoder`` is a sequence of, nested sequences flattened."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


def _byte_level_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _ByteTable(dict[int, bytes]):
    """The bytes of each token of a byte-level vocabulary; looked up on first use."""

    _alphabet: Final = _byte_level_alphabet()

    def __init__(self, backend: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        super().__init__()
        self._backend, self._skipped = backend, skipped

    def __missing__(self, token: int) -> bytes:
        text = None if token in self._skipped else self._backend.id_to_token(token)
        if text is None:
            data = b""
        else:
            try:
                data = bytes([self._alphabet[char] for char in text])
            except KeyError:  # an added token, which is kept as it is
                data = text.encode()
        self[token] = data
        return data


class ByteLevelDetokenizer(Detokenizer):
    """For byte-level BPE (GPT-2, Llama 3, Qwen): 0.5 µs a token on one core of a small cloud machine."""

    __slots__ = ("_decode", "_table")

    def __init__(self, table: _ByteTable) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, ids: Sequence[int]) -> str:
        table = self._table
        return self._decode(b"".join([table[token] for token in ids]))

    def flush(self) -> str:
        return self._decode(b"", True)


_BYTE_TOKEN: Final = re.compile(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>")


class _PieceTable:
    """What each token of a SentencePiece-like or WordPiece vocabulary stands for: text, a byte, or nothing.

    A decoder fits if it is some steps that look at each token alone, perhaps followed by ``ByteFallback``, perhaps
    followed by ``Fuse`` and a ``Strip`` of what the whole text begins with. Tokens are kept twice, for the first token
    of an answer may be decoded in another way than the rest.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        skipped: frozenset[int],
        each: Callable[[str, bool], str],
        byte_fallback: bool,
        strip: tuple[str, int],
    ) -> None:
        self._backend, self._skipped, self._each, self._byte_fallback = backend, skipped, each, byte_fallback
        self.strip = strip
        self.first: dict[int, str | int | None] = {}
        self.rest: dict[int, str | int | None] = {}

    @classmethod
    def compile(
        cls, backend: tokenizers.Tokenizer, skipped: frozenset[int], steps: list[dict[str, Any]]
    ) -> "_PieceTable | None":
        """The table for a decoder of these steps, or None if it is of another kind."""
        left = list(steps)
        each: list[Callable[[str, bool], str]] = []
        if not steps:
            each.append(lambda text, first: text if first else " " + text)
        while left and (step := _each_token(left[0])):
            each.append(step)
            del left[0]
        byte_fallback = bool(left) and left[0]["type"] == "ByteFallback"
        if byte_fallback:
            del left[0]
        strip = (" ", 0)
        if left and left[0]["type"] == "Fuse":
            del left[0]
            if left and left[0]["type"] == "Strip" and not left[0]["stop"]:
                strip = (left[0]["content"], left[0]["start"])
                del left[0]
        if left:
            return None

        def decode(text: str, first: bool) -> str:
            for step in each:
                text = step(text, first)
            return text

        return cls(backend, skipped, decode, byte_fallback, strip)

    def look_up(self, token: int, first: bool) -> str | int | None:
        """What ``token`` stands for: a text, a byte of a run, or None if it is skipped or unknown."""
        text = None if token in self._skipped else self._backend.id_to_token(token)
        piece: str | int | None = None
        if text is not None:
            piece = self._each(text, first)
            if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(piece)):
                piece = int(byte[1], 16)
        (self.first if first else self.rest)[token] = piece
        return piece


def _each_token(step: dict[str, Any]) -> Callable[[str, bool], str] | None:
    """A decoder step that looks at each token alone, as a function of its text and whether it is the first."""
    kind = step["type"]
    if kind == "Replace" and "String" in step["pattern"]:
        pattern, content = step["pattern"]["String"], step["content"]
        return lambda text, first: text.replace(pattern, content)
    if kind == "Metaspace":
        mark = step["replacement"]
        at_first = " " if step["prepend_scheme"] == "never" else ""
        return lambda text, first: text.replace(mark, at_first if first else " ")
    if kind == "Strip":
        content, start, stop = step["content"], step["start"], step["stop"]
        return lambda text, first: _strip(text, content, start, stop)
    if kind == "WordPiece":
        prefix, cleanup = step["prefix"], step["cleanup"]
        return lambda text, first: _word_piece(text, first, prefix, cleanup)
    return None


def _strip(text: str, content: str, start: int, stop: int) -> str:
    begin = min(start, len(text) - len(text.lstrip(content)))
    text = text[begin:]
    end = min(stop, len(text) - len(text.rstrip(content)))
    return text[: len(text) - end]


_CLEANUP: Final = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _word_piece(text: str, first: bool, prefix: str, cleanup: bool) -> str:
    if not first:
        text = text.removeprefix(prefix) if text.startswith(prefix) else " " + text
    if cleanup:
        for found, replacement in _CLEANUP:
            text = text.replace(found, replacement)
    return text


class PieceDetokenizer(Detokenizer):
    """For SentencePiece-like vocabularies with or without byte tokens (Llama 2, Mistral, Gemma, T5), and WordPiece.

    A run of byte tokens is held back until another token ends it: one invalid byte makes U+FFFD of each byte of its
    run, so that only then its text is certain.
    """

    __slots__ = ("_run", "_started", "_strip", "_table")

    def __init__(self, table: _PieceTable) -> None:
        self._table = table
        self._run = bytearray()
        self._started = False
        self._strip = table.strip[1]

    def push(self, ids: Sequence[int]) -> str:
        table, run = self._table, self._run
        out: list[str] = []
        for token in ids:
            pieces = table.rest if self._started else table.first
            try:
                piece = pieces[token]
            except KeyError:
                piece = table.look_up(token, not self._started)
            if piece is None:
                continue
            self._started = True
            if isinstance(piece, int):
                run.append(piece)
                continue
            if run:
                out.append(self._end_run())
            out.append(piece)
        text = "".join(out)
        return self._stripped(text) if self._strip and text else text

    def flush(self) -> str:
        text = self._end_run()
        return self._stripped(text) if self._strip else text

    def _end_run(self) -> str:
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = REPLACEMENT * len(self._run)
        self._run.clear()
        return text

    def _stripped(self, text: str) -> str:
        """``text`` without what is still to be stripped from the answer's beginning."""
        content = self._table.strip[0]
        while self._strip and text:
            if text[0] != content:
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


class WindowDetokenizer(Detokenizer):
    """For decoders that we don't know: decode the last few tokens with and without the new ones, and compare.

    Exact as long as what a token adds depends on no more than the tokens just before it, and not on those to come.
    """

    __slots__ = ("_backend", "_known", "_skipped", "_window")

    MAX_HELD: Final = 16
    """Tokens that are held back at most while the text ends in an incomplete character; no character is longer."""

    def __init__(self, backend: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._backend, self._skipped = backend, skipped
        self._window: list[int] = []
        self._known = 0

    def push(self, ids: Sequence[int]) -> str:
        return "".join([self._push(token) for token in ids if token not in self._skipped])

    def _push(self, token: int) -> str:
        self._window.append(token)
        before, text = self._decode(self._window[: self._known]), self._decode(self._window)
        held = len(self._window) - self._known
        if held <= self.MAX_HELD and (text.endswith(REPLACEMENT) or not text.startswith(before)):
            return ""
        if len(text) > len(before):
            del self._window[: self._known]
            self._known = len(self._window)
            return text[len(before) :]
        return ""

    def flush(self) -> str:
        before, text = self._decode(self._window[: self._known]), self._decode(self._window)
        self._window.clear()
        self._known = 0
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)
