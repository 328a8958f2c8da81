"""`bench.tokenize`: a row can be measured, and checks itself."""

import random

import tokenizers

from bench.tokenize import MODEL, chat_of, row


def test_rows_measure_what_they_say() -> None:
    backend = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    turns = chat_of(backend, 1000, random.Random(0))
    assert len(turns) > 2
    tokens, whole, first, known = row(backend, turns, repeats=2)
    assert tokens > 1000
    assert min(whole, first, known) > 0
