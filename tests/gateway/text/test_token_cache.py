"""A cache of segments gives what encoding the whole gives, whatever was encoded before."""

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from gateway.text.token_cache import TokenCache
from gateway.text.tokenizer import Tokenizer
from tests.gateway.text.builders import BUILDERS, WINDOWED, build

DEMO = Path(__file__).parents[3] / "engine/demo/model/tokenizer.json"


def copied(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(build(name).to_str())


def metaspace_first() -> tokenizers.Tokenizer:
    """Only a text's first segment gets a space before it."""
    tokenizer = copied("unigram")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def compatible() -> tokenizers.Tokenizer:
    """A normalizer that can make the text of a special token, of which the model makes that token."""
    tokenizer = copied("unigram-never")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def nested() -> tokenizers.Tokenizer:
    """Tokens within tokens, some of which end no segment, and one that looks only at normalised text."""
    tokenizer = copied("qwen2")
    tokenizer.add_special_tokens([AddedToken("<|end|>\n", normalized=False), AddedToken("|>", normalized=False)])
    tokenizer.add_tokens([AddedToken("<|", normalized=False), AddedToken("x<|begin", normalized=False)])
    tokenizer.add_tokens([AddedToken("e\u0301nd", normalized=True)])
    return tokenizer


def prefixed() -> tokenizers.Tokenizer:
    tokenizer = copied("gpt2")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def spaced() -> tokenizers.Tokenizer:
    """Special tokens made of space, as Gemma has them."""
    tokenizer = copied("gemma")
    tokenizer.add_special_tokens([AddedToken("\n\n", normalized=False), AddedToken("  ", normalized=False)])
    return tokenizer


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    **{name: partial(copied, name) for name in {**BUILDERS, **WINDOWED} if name != "suffixed"},
    "metaspace first": metaspace_first,
    "NFKC": compatible,
    "nested": nested,
    "prefix space": prefixed,
    "spaces": spaced,
    "demo": lambda: tokenizers.Tokenizer.from_file(str(DEMO)),
}
MARKS = ["<|begin|>", "<|end|>", "<|end|>\n", "<s>", "</s>", "[CLS]", "[UNK]", "<unk>", "<|user|>", "<think>"]
SCRAPS = ["<|", "|>", "<", ">", "x", "end", "<|en", "\uff1c|end|\uff1e", "</S>", "\n\n", "  ", " ", "\u0301", "e", "▁"]
WORDS = [
    "Hello",
    "don't",
    "two words",
    " the fox",
    "Größe",
    "你好",
    "👨‍👩‍👧",
    "123456",
    "\t\r\n",
    "def f(x):\n    return",
]
texts = st.lists(st.sampled_from(MARKS + SCRAPS + WORDS) | st.text(max_size=5), max_size=12).map("".join)


def encoded(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def cache_of(backend: tokenizers.Tokenizer, **options: Any) -> TokenCache:
    cache = TokenCache.of(backend, **options)
    assert cache is not None
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_segments_in_a_row_are_the_whole(kind: str) -> None:
    backend = KINDS[kind]()
    cache = cache_of(backend)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 8))
    def check(turns: list[str], capacity: int) -> None:
        fresh = cache_of(backend, capacity=capacity * 1000)
        for end in range(1, len(turns) + 1):
            text = "".join(turns[:end])
            whole = encoded(backend, text)
            assert cache.encode(text) == whole
            assert fresh.encode(text) == whole
            assert 0 <= fresh.size <= capacity * 1000

    check()


def test_a_growing_chat_is_encoded_once() -> None:
    backend = KINDS["demo"]()
    cache = cache_of(backend)
    text, total = "<|system|>Be kind.<|end|>", 0
    for turn in range(20):
        cache.encode(text)
        total = cache.new
        more = f"<|user|>{'why? ' * turn}<|end|><|assistant|>Answer {turn}.<|end|>"
        text += more
        assert cache.encode(text) == encoded(backend, text)
        assert 0 < cache.new - total <= len(more)
    before = cache.new
    cache.encode("<|system|>Be kind.<|end|><|user|>Another chat.<|end|>")
    assert cache.new == before + len("<|user|>Another chat.")


def test_the_least_recently_used_goes_first() -> None:
    backend = KINDS["demo"]()
    cache = cache_of(backend, capacity=10_000)
    first = "<|system|>" + "keep me " * 10 + "<|end|>"
    for turn in range(200):
        cache.encode(first)
        cache.encode(f"<|user|>{turn} {'and so on ' * 5}<|end|>")
        assert cache.size <= 10_000
    before = cache.new
    cache.encode(first)
    assert cache.new == before
    cache.encode("<|user|>0 " + "and so on " * 5 + "<|end|>")
    assert cache.new > before


def test_what_is_too_large_is_not_kept() -> None:
    cache = cache_of(KINDS["demo"](), capacity=10_000)
    for times in (1, 2):
        cache.encode("<|user|>" + "long " * 1000 + "<|end|>")
        assert cache.new == times * len("<|user|>" + "long " * 1000) + len("<|end|>")


def test_a_text_without_marks_is_not_kept() -> None:
    cache = cache_of(KINDS["demo"]())
    assert cache.encode("") == []
    cache.encode("no mark at all")
    assert cache.size == 0


@pytest.mark.parametrize("quirk", ["lstrip", "rstrip", "single_word"])
def test_no_cache_where_a_token_looks_beside_itself(quirk: str) -> None:
    backend = copied("qwen2")
    backend.add_special_tokens([AddedToken("<mask>", normalized=False, **{quirk: True})])
    assert TokenCache.of(backend) is None


def test_no_cache_where_nothing_splits_a_text() -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    assert TokenCache.of(backend) is None
    backend.add_tokens([AddedToken("a", normalized=False)])
    assert TokenCache.of(backend) is None
    backend.add_special_tokens([AddedToken("<s>", normalized=True)])
    assert TokenCache.of(backend) is None
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    assert TokenCache.of(backend) is not None


def test_no_cache_where_encoding_is_random_or_of_an_unknown_kind() -> None:
    definition = json.loads(build("qwen2").to_str())
    definition["model"]["dropout"] = 0.1
    assert TokenCache.of(tokenizers.Tokenizer.from_str(json.dumps(definition))) is None
    for step in ("normalizer", "pre_tokenizer"):

        class Stranger:
            def __getstate__(self) -> bytes:
                return b'{"type": "Sequence", "normalizers": [{"type": "Clairvoyant"}]}'

        class Backend:
            model = None
            normalizer = None
            pre_tokenizer = None

            def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
                return {1: AddedToken("<s>", special=True, normalized=False)}

        strange: Any = Backend()
        assert TokenCache.of(strange) is not None
        setattr(strange, step, Stranger())
        assert TokenCache.of(strange) is None


def test_several_threads_at_once() -> None:
    backend = KINDS["demo"]()
    cache = cache_of(backend, capacity=20_000)
    chats = [f"<|system|>{n % 3}<|end|><|user|>{'word ' * n}<|end|>" for n in range(60)]
    wanted = [encoded(backend, chat) for chat in chats]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for n in range(len(chats)):
            index = (n * 7 + offset) % len(chats)
            if cache.encode(chats[index]) != wanted[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.size <= 20_000


def test_the_tokenizer_uses_it(tmp_path: Path) -> None:
    KINDS["demo"]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    text = "<|user|>Who?<|end|>"
    bare = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text, add_special_tokens=False) == bare == encoded(KINDS["demo"](), text)
    cache = tokenizer._cache
    assert cache is not None and cache.known == cache.new == len(text)
    tokenizer.encode(text, add_special_tokens=True)
    assert cache.known == len(text)
