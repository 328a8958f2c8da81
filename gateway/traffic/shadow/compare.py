"""How do two answers to one request differ? From letter by letter to what a reader would object to.

Two texts that differ may say the same, so there isn't one figure: equal as they are, equal but for case, spaces and
punctuation, the share of words to change (Levenshtein, over the longer text), the numbers and names that only one of
them has, whether one refuses, and for JSON and tool calls the fields that differ. `Comparison.agrees` is the short
answer: they are the same to somebody who acts on them.
"""

import re
from collections import Counter
from typing import Any, Final, Literal

import msgspec
from rapidfuzz.distance import Levenshtein

from gateway.traffic.answers import Answer

_WORD: Final = re.compile(r"\w+|[^\w\s]")
_PUNCTUATION: Final = re.compile(r"[^\w\s]|_")
_NUMBER: Final = re.compile(r"(?<![\w.])(?<!\w-)[-+]?\d[\d,_]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?")
_NAME: Final = re.compile(r"(?<=[a-z,;:]\s)[A-Z][\w-]+(?:\s+[A-Z][\w-]+)*|\b[A-Z]{2,}[\w-]*\b|\b\w+-\d[\w-]*\b")
_REFUSAL: Final = re.compile(
    r"^\W*(?:(?:i'm|i am|we're|we are)\s+(?:(?:very|so|really|truly)\s+)?(?:sorry|afraid|unable|not able)"
    r"|(?:sorry|apologies|unfortunately)[,.\s]+(?:but\s+)?(?:i|we)\s+(?:can't|can ?not|won't|am|are)"
    r"|i\s+(?:can't|can ?not|won't|must decline|will not)\s+"
    r"(?:help|assist|provide|answer|do|comply|fulfil|support|share)"
    r"|as an ai\b)",
    re.IGNORECASE,
)
_CODE: Final = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)
_CLOSE: Final = 0.1  # of the words may differ, where nothing else does
_WORDS: Final = 4000  # of each text are compared
_PATHS: Final = 50  # differing fields are named

Calls = Literal["none", "same", "arguments", "tools"]


class Comparison(msgspec.Struct, frozen=True):
    """How another answer differs from the first one.

    ``edits``: the share of words that would have to change, 0 to 1. ``fields``: paths within JSON that differ, None
    where not both are JSON. ``calls``: nobody calls a tool; the same calls; the same tools with other arguments; other
    tools, or only one calls any. ``length``: the other's words for each of the first one's.
    """

    exact: bool
    normalised: bool
    edits: float
    length: float
    fields: tuple[str, ...] | None
    numbers: tuple[str, ...]
    names: tuple[str, ...]
    refusals: tuple[bool, bool]
    calls: Calls

    @property
    def agrees(self) -> bool:
        """Whether whoever acts on the answers does the same with both."""
        if self.refusals[0] != self.refusals[1] or self.calls in ("arguments", "tools"):
            return False
        if self.fields is not None:
            return not self.fields
        return self.normalised or self.calls == "same" or (self.edits <= _CLOSE and not self.numbers and not self.names)


def compare(first: Answer, other: Answer) -> Comparison:
    """How ``other`` differs from ``first``."""
    words, other_words = _words(first.text), _words(other.text)
    documents = _json(first.text), _json(other.text)
    fields = None
    if None not in documents:
        fields = tuple(_differences("$", *(one[0] for one in documents if one is not None)))[:_PATHS]
    return Comparison(
        exact=first.text == other.text and first.calls == other.calls,
        normalised=_normalised(first.text) == _normalised(other.text),
        edits=Levenshtein.normalized_distance(words, other_words),
        length=len(other_words) / len(words) if words else float(not other_words),
        fields=fields,
        numbers=_only_one_has(_NUMBER, first.text, other.text),
        names=_only_one_has(_NAME, first.text, other.text),
        refusals=(is_refusal(first), is_refusal(other)),
        calls=_compare_calls(first.calls, other.calls),
    )


def is_refusal(answer: Answer) -> bool:
    """Whether an answer begins as English refusals do. A heuristic: it reads the first words alone."""
    return not answer.calls and _REFUSAL.match(answer.text.replace("\u2019", "'")) is not None


def _words(text: str) -> list[str]:
    return _WORD.findall(text)[:_WORDS]


def _normalised(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())


def _only_one_has(what: re.Pattern[str], text: str, other: str) -> tuple[str, ...]:
    counts, others = (Counter(one.rstrip(",") for one in what.findall(side)) for side in (text, other))
    return tuple(sorted((counts - others) + (others - counts)))


def _json(text: str) -> tuple[Any] | None:
    """The object or list that a text is, alone or in a code block; None for other texts."""
    if block := _CODE.match(text):
        text = block[1]
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return (msgspec.json.decode(text),)
    except msgspec.DecodeError:
        return None


def _differences(path: str, value: Any, other: Any) -> list[str]:
    """The paths at which two JSON values differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        return [
            one
            for name in {**value, **other}
            for one in (
                _differences(f"{path}.{name}", value[name], other[name])
                if name in value and name in other
                else [f"{path}.{name}"]
            )
        ]
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        pairs = enumerate(zip(value, other, strict=True))
        return [one for index, pair in pairs for one in _differences(f"{path}[{index}]", *pair)]
    return [] if value == other and isinstance(value, bool) == isinstance(other, bool) else [path]


def _compare_calls(calls: tuple[tuple[str, str], ...], others: tuple[tuple[str, str], ...]) -> Calls:
    if not calls and not others:
        return "none"
    if Counter(name for name, _ in calls) != Counter(name for name, _ in others):
        return "tools"
    made, other_made = (sorted((name, _canonical(text)) for name, text in one) for one in (calls, others))
    return "same" if made == other_made else "arguments"


def _canonical(arguments: str) -> str:
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments), order="sorted").decode()
    except msgspec.DecodeError:
        return arguments
