"""Small tokenizers of the kinds that models ship, built here so that no test needs a file from elsewhere."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? Yes, it does; 123 times.",
    "  def f(x):\n\treturn x ** 2  # a comment\n\n",
    "Größe, naïve café, Ελληνικά, русский текст, עברית, العربية",
    "你好,世界。今天天气很好 日本語のテキスト 한국어",
    "😀😃 👨‍👩‍👧‍👦 🇩🇪 ❤️ emoji",
] * 4
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SPECIAL = ["<|begin|>", "<|end|>"]


def _byte_level(split: str | None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("two words", special=False)])
    return tokenizer


def _llama2() -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback, as in Llama 2 and Mistral."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=300, limit_alphabet=60, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {name: index for index, name in enumerate(names)}
    for name in learned["vocab"]:
        vocab.setdefault(name, len(vocab))
    for extra in ("▁", "▁▁", "▁▁▁", "é"):
        vocab.setdefault(extra, len(vocab))
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def _gemma() -> tokenizers.Tokenizer:
    """Like `_llama2`, but nothing is stripped: the vocabulary adds no leading space."""
    tokenizer = _llama2()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _unigram(prepend: str = "always") -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _word_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, "do not won ' t n't 'm 's"], trainer)
    tokenizer.add_tokens(["do not", "n't", "'s", " , "])
    return tokenizer


def _plain() -> tokenizers.Tokenizer:
    """No decoder at all: tokens are joined by spaces."""
    tokenizer = _word_piece()
    bare: Any = tokenizer
    bare.decoder = None
    return tokenizer


def _suffixed() -> tokenizers.Tokenizer:
    """A decoder that this package has no state machine for: words end in ``</w>`` (the first GPT)."""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, end_of_word_suffix="</w>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


BUILDERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": lambda: _byte_level(None),
    "llama3": lambda: _byte_level(LLAMA3),
    "qwen2": lambda: _byte_level(QWEN2),
    "llama2": _llama2,
    "gemma": _gemma,
    "unigram": _unigram,
    "unigram-never": lambda: _unigram("never"),
    "wordpiece": _word_piece,
    "no decoder": _plain,
}
WINDOWED = {"suffixed": _suffixed}


@cache
def build(name: str) -> tokenizers.Tokenizer:
    """The tokenizer of that name; built once a test run."""
    return {**BUILDERS, **WINDOWED}[name]()
