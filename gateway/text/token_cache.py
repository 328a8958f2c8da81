"""What of a chat has been tokenised before? Its segments, each up to the next special token, found again by their text.

Added tokens are looked for first, in the raw text, and what is between them is normalised, split into words and encoded
on its own. So the ids of a text are those of its segments in a row, where a segment begins with a special token and
ends before the next one; a chat's next turn has all but its last segments in common with the turn before. Where a
tokenizer has tokens whose place in the text matters too, there is no cache: see `TokenCache.of`.
"""

import json
import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import tokenizers

CAPACITY: Final = 32 << 20
"""Bytes of text and token ids that are kept: at 4 characters a token about 4 million tokens of English."""

_ENTRY: Final = 200  # bytes that an entry takes beside its text and its ids
_LARGEST: Final = 8  # a segment of more than this part of the capacity would push too much out, and isn't kept

# Kinds that look at each segment alone. Metaspace with prepend_scheme "first" looks whether a segment is the text's
# first: what begins with a special token isn't, wherever that token stands.
_NORMALIZERS: Final = frozenset(
    {
        "BertNormalizer",
        "ByteLevel",
        "Lowercase",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Precompiled",
        "Prepend",
        "Replace",
        "Strip",
        "StripAccents",
    }
)
_PRE_TOKENIZERS: Final = frozenset(
    {
        "BertPreTokenizer",
        "ByteLevel",
        "CharDelimiterSplit",
        "Digits",
        "Metaspace",
        "Punctuation",
        "Split",
        "UnicodeScripts",
        "Whitespace",
        "WhitespaceSplit",
    }
)


class TokenCache:
    """Encodes texts without adding special tokens. Safe to use from several threads.

    Args:
        tokens: the added tokens that are looked for in raw text.
        splits: the ids of those at which a segment begins, by their text.
        capacity: bytes to keep at most; the least recently used segments go first.

    ``known`` and ``new`` count the characters that were found and that had to be encoded.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, tokens: Collection[str], splits: dict[str, int], capacity: int = CAPACITY
    ) -> None:
        self._backend = backend
        # The leftmost match, and of several there the longest, as the tokenizer has it: `re` takes the first that fits.
        self._token = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
        self._splits = splits
        self._begins = np.zeros(max(splits.values()) + 2, dtype=bool)
        self._begins[list(splits.values())] = True
        self._capacity = capacity
        self._lock = threading.Lock()
        self._segments: OrderedDict[str, bytes] = OrderedDict()
        self.size = 0
        self.known = 0
        self.new = 0

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, capacity: int = CAPACITY) -> "TokenCache | None":
        """A cache for ``backend``, or None where segments can't be encoded one by one, or nothing splits a text.

        They can't if a token swallows space around it or wants to be a word of its own, if encoding is random
        (dropout), or if there is a normalizer or pre-tokenizer of a kind that isn't known here.
        """
        added = backend.get_added_tokens_decoder()
        if any(token.lstrip or token.rstrip or token.single_word or not token.content for token in added.values()):
            return None
        if getattr(backend.model, "dropout", None):
            return None
        if not (_kinds(backend.normalizer) <= _NORMALIZERS and _kinds(backend.pre_tokenizer) <= _PRE_TOKENIZERS):
            return None
        raw = {token.content: (id, token.special) for id, token in added.items() if not token.normalized}
        splits = {content: id for content, (id, special) in raw.items() if special}
        return cls(backend, raw, splits, capacity) if splits else None

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``; the segments that were not known are known from now on."""
        segments = self._cut(text)
        if len(segments) == 1:
            return self._encoded(text)
        with self._lock:
            found = [self._find(segment) for segment in segments]
        missing = [index for index, ids in enumerate(found) if ids is None]
        for first, last in _runs(missing):
            found[first:last] = self._encode_run(segments[first:last])
        with self._lock:
            for index in missing:
                self._keep(segments[index], found[index] or b"")
            new = sum(len(segments[index]) for index in missing)
            self.new += new
            self.known += len(text) - new
        ids: list[int] = np.frombuffer(b"".join([ids or b"" for ids in found]), dtype=np.int32).tolist()
        return ids

    def _cut(self, text: str) -> list[str]:
        splits = self._splits
        edges = [match.start() for match in self._token.finditer(text) if match[0] in splits]
        if not edges or edges[0]:
            edges.insert(0, 0)
        edges.append(len(text))
        return [text[edges[i] : edges[i + 1]] for i in range(len(edges) - 1)]

    def _encoded(self, text: str) -> list[int]:
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def _encode_run(self, segments: list[str]) -> list[bytes | None]:
        """The ids of segments that follow each other: of all at once, cut where their first tokens stand."""
        ids = _packed(self._encoded("".join(segments)))
        starts = np.flatnonzero(self._begins[np.minimum(ids, len(self._begins) - 1)])
        first = self._token.match(segments[0])
        if first and first[0] in self._splits:
            starts = starts[1:]
        if len(starts) != len(segments) - 1:
            # A normalizer can make a special token's text of something else, and the model its id of that.
            return [_packed(self._encoded(segment)).tobytes() for segment in segments]
        return [part.tobytes() for part in np.split(ids, starts)]

    def _find(self, segment: str) -> bytes | None:
        ids = self._segments.get(segment)
        if ids is not None:
            self._segments.move_to_end(segment)
        return ids

    def _keep(self, segment: str, ids: bytes) -> None:
        size = _size(segment, ids)
        if segment in self._segments or size * _LARGEST > self._capacity:
            return
        self._segments[segment] = ids
        self.size += size
        while self.size > self._capacity:
            self.size -= _size(*self._segments.popitem(last=False))


def _packed(ids: list[int]) -> "np.ndarray[Any, np.dtype[np.int32]]":
    return np.frombuffer(array("i", ids), dtype=np.int32)  # 12 ns an id, against 40 for np.array


def _size(segment: str, ids: bytes) -> int:
    return sys.getsizeof(segment) + sys.getsizeof(ids) + _ENTRY


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    """Ascending ``indices`` as ranges: the first one and the one after the last, of each that has no gap."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _kinds(step: Any) -> set[str]:
    """The types of a normalizer's or pre-tokenizer's steps; nothing for none."""
    return set() if step is None else _types(json.loads(step.__getstate__()))


def _types(state: dict[str, Any]) -> set[str]:
    inner = [*state.get("normalizers", ()), *state.get("pretokenizers", ())]
    return {state["type"]} if state["type"] != "Sequence" else set().union(*map(_types, inner))
