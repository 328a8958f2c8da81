"""How does a wanted number of tokens become real text, for any tokenizer?

Of the tokenizer's vocabulary those words are taken that are one token wherever they stand: alone, first, last, and
beside each other one of them, which is tried out for every pair. So a text of n such words, with spaces between, has n
tokens, and texts put together have the tokens of both: a shared prefix is one in tokens too, whatever follows it.
Tokenizers split text at spaces, or merge at least nothing across them, so that pairs are all that can go wrong.

Which words a text has follows from the seed and a key alone, by a hash (SHAKE128): a longer text of the same key begins
with the shorter one, and a block of a trace is the same in every prompt.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import shake_128
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from bench.load.arrivals import WorkloadError

if TYPE_CHECKING:
    from gateway.text.tokenizer import Tokenizer

Form = Literal["chat", "text", "tokens"]
"""What a prompt is: messages, a text, or token ids."""

_COMMON: Final = """
after again all also an and any are around as at back be because been before between but by call can car change
different do does down each end even find first follow for form found four from get group hand has have help here how
if important in into is it its just last left letter like line list live long look make may me more most must my name
never new next no not number of off often old on once one only open or other out over own part place play point put
read real right run same second see set should side so some space start still stop such take than that the their them
then there these they thing this those three through time to top try turn two under until up us use very was way we
were what when where which while who will with word work you
"""
WORDS: Final = tuple(_COMMON.split())
"""What is asked where nothing is known of the tokenizer: a token each, wherever they stand, for Claude 2, DeepSeek V3,
Mistral 7B and any vocabulary of 8,000 tokens made from English."""

TOKEN_IDS: Final = tuple(range(1000, 2000))
"""Token ids that nearly every model has, for want of a tokenizer: special tokens are among the first or the last."""

_MOST: Final = 256  # words; trying out all pairs takes 0.2 s, of 512 0.8 s (DeepSeek V3, one core)
_FEWEST: Final = 4  # with fewer, texts would be hardly more than one word again and again
_FIRST: Final = 64  # words that tell what a prompt has beside its text
_KEPT: Final = 4096  # blocks; at 512 tokens and 6 characters a token, 13 MB

Encode = Callable[[str], Sequence[int]]
"""A text's token ids, none added."""


@dataclass(frozen=True)
class Wording:
    """Words to make texts of.

    Each is ``tokens_each`` tokens, with ``joiner`` between them; ``exact`` if every one is exactly one token wherever
    it stands. ``ids`` are the words' tokens in the middle of a text, or any token ids if the tokenizer isn't known.
    ``added`` is how many tokens a prompt has beside its text: BOS, or what the chat template writes around it.
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]
    joiner: str = " "
    tokens_each: float = 1.0
    exact: bool = False
    added: int = 0


UNKNOWN: Final = Wording(WORDS, TOKEN_IDS)
"""For want of a tokenizer: see `WORDS`. What the endpoint says of a prompt's length is the truth."""


def find_wording(
    encode: Encode, whole: Callable[[str], int], candidates: Iterable[str] = WORDS, most: int = _MOST
) -> Wording:
    """Those of ``candidates``, the first ``most``, that are one token everywhere.

    ``whole`` counts the tokens that the endpoint makes of a prompt with this text, with all that it adds. If hardly any
    word is one token everywhere, words are taken as they are, and their tokens counted in the mean (not ``exact``).
    About 3 calls a word, so that both may ask an endpoint's ``/tokenize``.
    """
    candidates = list(candidates)
    found: list[Wording] = []
    for joiner in (" ", ""):
        found.append(_closed(encode, whole, candidates, joiner, most))
        if len(found[-1].words) >= min(most, 64):
            break
    best = max(found, key=lambda wording: len(wording.words))
    if len(best.words) >= _FEWEST:
        return best
    words = candidates[:most] or list(WORDS)
    ids = encode(" ".join(words))
    return Wording(
        tuple(words), tuple(dict.fromkeys(ids)), tokens_each=len(ids) / len(words), added=whole("a") - len(encode("a"))
    )


def _closed(encode: Encode, whole: Callable[[str], int], words: Sequence[str], joiner: str, most: int) -> Wording:
    """The words that are one token alone and beside every other one of them; greedily, the first come first."""
    least = min((whole(word) for word in words[:_FIRST]), default=1)
    kept: list[str] = []
    ids: list[int] = []
    for word in words:
        if len(kept) == most:
            break
        alone = encode(joiner.join([word] * 4))
        if len(alone) != 4 or alone[1] != alone[2] or whole(word) != least:
            continue
        own = alone[1]
        # The word after and before each that was kept.
        beside = encode(joiner.join([word, *(part for other in kept for part in (other, word)), word]))
        if list(beside[1:-1]) == [part for other in ids for part in (other, own)] and len(beside) == 2 * len(ids) + 2:
            kept.append(word)
            ids.append(own)
    return Wording(tuple(kept), tuple(ids), joiner, exact=True, added=least - 1)


def load_wording(name: str, form: Form) -> Wording:
    """The words for a tokenizer: a folder in Hugging Face format, its tokenizer.json, or a hub id.

    Raises:
        WorkloadError: there is no such tokenizer, or, with ``form`` "chat", its template can't be used.
    """
    from engine.config import ModelFault, resolve_model
    from gateway.text.template import ChatTemplate, TemplateError
    from gateway.text.tokenizer import Tokenizer, TokenizerError

    path = Path(name).expanduser()
    try:
        folder = path.parent if path.name == "tokenizer.json" else resolve_model(name)
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.load(folder) if form == "chat" else None
        return wording_of(tokenizer, None if template is None else template.render)
    except (ModelFault, TokenizerError, TemplateError) as error:
        raise WorkloadError(f"tokenizer: {error}") from error


def wording_of(tokenizer: "Tokenizer", render: Callable[[list[dict[str, str]]], str] | None = None) -> Wording:
    """The words for a tokenizer; for chats if ``render`` makes a prompt of messages."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def whole(text: str) -> int:
        if render is None:
            return len(tokenizer.encode(text, add_special_tokens=True))
        return len(encode(render([{"role": "user", "content": text}])))

    return find_wording(encode, whole, _vocabulary_words(tokenizer))


def _vocabulary_words(tokenizer: "Tokenizer") -> list[str]:
    """Words of the vocabulary, without the marks for spaces; the longer ones and, of those, the lower ids first."""
    names = (tokenizer.token(id) for id in range(tokenizer.size) if id not in tokenizer.special_ids)
    words = dict.fromkeys(
        match[1] for name in names if (match := re.fullmatch(r"[^A-Za-z<]*([A-Za-z]+)\W*", name or ""))
    )
    return sorted(words, key=lambda word: (len(word) < 3, not word.islower()))


class Prompt(NamedTuple):
    """``tokens``: as far as the wording knows them, with what the endpoint adds."""

    prompt: str | list[int] | list[dict[str, str]]
    tokens: int


class Prompts:
    """Makes prompts of one form."""

    def __init__(self, wording: Wording, form: Form, seed: int) -> None:
        """``asked`` counts the words of all prompts, ``made`` those that were drawn for them."""
        self._wording = wording
        self._form = form
        self._seed = seed
        self._added = 0 if form == "tokens" else wording.added
        self._each = 1.0 if form == "tokens" else wording.tokens_each
        # Every 16-bit number has its word. Of 256 words each is as likely; of 255 one is so by 0.4 % more.
        choices: Sequence[Any] = wording.ids if form == "tokens" else wording.words
        self._table = [choices[number % len(choices)] for number in range(1 << 16)]
        self._block = lru_cache(_KEPT)(self._drawn)
        self.made = 0
        self.asked = 0

    def make(self, key: int, tokens: int, blocks: Sequence[int] = (), block_tokens: int = 0, turn: int = 0) -> Prompt:
        """A prompt of ``tokens`` tokens: its blocks, cut where it ends, and then words that are its own, by ``key``.

        Prompts of one seed with equal blocks are equal up to their end. Fewer tokens than the endpoint adds are more in
        truth: every prompt has a word. What the endpoint adds for a later turn of a conversation isn't counted.
        """
        added = 0 if turn else self._added
        words = left = max(1, round((tokens - added) / self._each))
        size = max(1, round(block_tokens / self._each))
        parts = []
        for block in blocks:
            parts.append(self._block(f"block {block}", min(size, left)))
            left -= min(size, left)
            if not left:
                break
        if left:
            parts.append(self._drawn(f"own {key}", left))
        self.asked += words
        prompt = self._joined(parts, turn)
        return Prompt(prompt, round(words * self._each) + added)

    def _joined(self, parts: list[Any], turn: int) -> str | list[int] | list[dict[str, str]]:
        if self._form == "tokens":
            return [id for part in parts for id in part]
        text = self._wording.joiner.join(parts)
        if self._form == "chat":
            return [{"role": "user", "content": text}]
        return f"\n\n{text}" if turn else text

    def _drawn(self, key: str, words: int) -> Any:
        """A text, or token ids."""
        self.made += words
        numbers = memoryview(shake_128(f"{self._seed} {key}".encode()).digest(2 * words)).cast("H")
        drawn = map(self._table.__getitem__, numbers)
        return list(drawn) if self._form == "tokens" else self._wording.joiner.join(drawn)
