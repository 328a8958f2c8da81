"""How long does a turn of a growing chat take to tokenise, with and without the cache? ``python -m bench.tokenize``.

A chat of the demo model's kind grows by a question and an answer at a time until it has 32k tokens. At some of the
turns its prompt is encoded as a whole, as without a cache; and by a cache that has seen the turn before, where only the
last two segments are new, each time with other words. Figures are the median of CPU times, which other processes
change less than wall times.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers

from gateway.text.token_cache import TokenCache

MODEL = Path(__file__).parents[1] / "engine/demo/model"
WORDS = (Path(__file__).parents[1] / "docs/architecture.md").read_text().split()


def says(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def turn(rng: random.Random) -> str:
    """A question, an answer, and where the next answer begins."""
    return f"<|user|>{says(rng, 60)}<|end|><|assistant|>{says(rng, 120)}<|end|>"


def chat_of(backend: tokenizers.Tokenizer, tokens: int, rng: random.Random) -> list[str]:
    """The turns of a chat of at least ``tokens`` tokens, the system's message first."""
    turns, size = [f"<|begin|><|system|>{says(rng, 100)}<|end|>"], 0
    while size < tokens:
        turns.append(turn(rng))
        size += len(backend.encode(turns[-1], add_special_tokens=False).ids)
    return turns


def median(times: Sequence[float]) -> float:
    return statistics.median(times) * 1e6


def cache_of(backend: tokenizers.Tokenizer) -> TokenCache:
    """An empty cache."""
    cache = TokenCache.of(backend)
    if cache is None:
        raise RuntimeError("this tokenizer has no cache")
    return cache


def timed(encode: Callable[[str], list[int]], text: str) -> tuple[float, list[int]]:
    """CPU seconds to encode ``text``, and its token ids."""
    begin = time.process_time()
    ids = encode(text)
    return time.process_time() - begin, ids


def row(backend: tokenizers.Tokenizer, turns: Sequence[str], repeats: int) -> tuple[int, float, float, float]:
    """Tokens of a chat of ``turns``, and µs to encode it: whole, by an empty cache, and by one that knows all before.

    Raises:
        RuntimeError: the cache doesn't give what encoding the whole gives.
    """
    rng = random.Random(len(turns))
    text = "".join(turns)
    cache = cache_of(backend)
    cache.encode(text)

    def encode(text: str) -> list[int]:
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    whole: list[float] = []
    first: list[float] = []
    next_: list[float] = []
    tokens = 0
    for _ in range(repeats):
        grown = f"{text}<|user|>{says(rng, 60)}<|end|><|assistant|>"
        plain_time, wanted = timed(encode, grown)
        first_time, from_empty = timed(cache_of(backend).encode, grown)
        next_time, from_cache = timed(cache.encode, grown)
        if not wanted == from_empty == from_cache:
            raise RuntimeError("the cache's token ids differ")
        whole.append(plain_time)
        first.append(first_time)
        next_.append(next_time)
        tokens = len(wanted)
    return tokens, median(whole), median(first), median(next_)


def main(write: Callable[[str], None] = print) -> None:
    """Measure, and write one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32768, help="of the longest chat (default: 32768)")
    parser.add_argument("--repeats", type=int, default=20, help="of each measurement (default: 20)")
    options = parser.parse_args()
    backend = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    turns = chat_of(backend, options.tokens, random.Random(0))
    write("| turns | tokens | without us | first seen us | next turn us | faster |")
    write("| --- | --- | --- | --- | --- | --- |")
    for part in (16, 8, 4, 2, 1):
        some = turns[: max(1, len(turns) // part)]
        tokens, whole, first, known = row(backend, some, options.repeats)
        write(f"| {len(some)} | {tokens:,} | {whole:.0f} | {first:.0f} | {known:.0f} | {whole / known:.0f} x |")


if __name__ == "__main__":
    main()
