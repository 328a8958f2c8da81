"""Tokenizers load from Hugging Face folders as transformers loads them, and say what is wrong when they don't."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from gateway.text import convert
from gateway.text.tokenizer import LONG_TEXT, Tokenizer, TokenizerError, read_config
from tests.gateway.text.builders import build


def folder(path: Path, name: str, **config: Any) -> Path:
    build(name).save(str(path / "tokenizer.json"))
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_encode_and_decode(tmp_path: Path) -> None:
    tokens = Tokenizer.load(folder(tmp_path, "llama3"))
    ids = tokens.encode("Größe 😀 你好", add_special_tokens=True)
    assert tokens.decode(ids) == "Größe 😀 你好"
    assert "".join(tokens.token(token) or "" for token in ids).startswith("GrÃ¶")


def test_special_tokens_are_skipped_or_not(tmp_path: Path) -> None:
    tokens = Tokenizer.load(folder(tmp_path, "llama3"))
    ids = tokens.encode("a<|end|>b", add_special_tokens=False)
    assert len(ids) == 3 and ids[1] in tokens.special_ids
    assert tokens.decode(ids) == "ab"
    assert tokens.decode(ids, skip_special_tokens=False) == "a<|end|>b"
    assert tokens.detokenizer().push(ids) == "ab"
    assert tokens.detokenizer(skip_special_tokens=False).push(ids) == "a<|end|>b"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_eos_token": False},
    ],
)
@pytest.mark.parametrize("processed", [True, False], ids=["post-processor", "none"])
def test_bos_and_eos_as_transformers_has_them(tmp_path: Path, config: dict[str, bool], processed: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer.from_str(build("llama3").to_str())
    if processed:
        begin = backend.token_to_id("<|begin|>")
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
        )
    backend.save(str(tmp_path / "tokenizer.json"))
    whole = {
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **config,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(whole))
    judge = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokens = Tokenizer.load(tmp_path)
    for add in (True, False):
        assert tokens.encode("hello", add_special_tokens=add) == judge.encode("hello", add_special_tokens=add)


def test_config_makes_tokens_special(tmp_path: Path) -> None:
    """``<think>`` is an ordinary added token in tokenizer.json, ``[PAD]`` is in no vocabulary."""
    path = folder(
        tmp_path,
        "llama3",
        eos_token={"content": "<think>", "lstrip": False},
        pad_token="[PAD]",
        additional_special_tokens=["two words", "[NEW]"],
    )
    tokens = Tokenizer.load(path, vocab_size=build("llama3").get_vocab_size())
    ids = tokens.encode("a<think>btwo wordsc", add_special_tokens=False)
    assert tokens.decode(ids) == "abc"


def test_added_tokens_decoder_and_named_extras(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        "llama3",
        added_tokens_decoder={
            "600": {"content": "<think>", "special": True},
            "601": {"content": "two words", "special": False},
        },
        extra_special_tokens={"image_token": "<image>"},
    )
    tokens = Tokenizer.load(path)
    ids = tokens.encode("a<think>btwo words", add_special_tokens=False)
    assert tokens.decode(ids) == "abtwo words"


def test_special_tokens_map_fills_in(tmp_path: Path) -> None:
    folder(tmp_path, "llama3", bos_token="<|begin|>")
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|other|>", "eos_token": {"content": "<|end|>"}})
    )
    config = read_config(tmp_path)
    assert (config["bos_token"], config["eos_token"]) == ("<|begin|>", "<|end|>")


def test_truncation_and_padding_are_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(build("llama3").to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokens = Tokenizer.load(tmp_path)
    text = "1 2 3 4 5 6"
    assert tokens.decode(tokens.encode(text, add_special_tokens=True)) == text


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    size = build("llama3").get_vocab_size()
    path = folder(tmp_path, "llama3")
    assert Tokenizer.load(path, vocab_size=size).size == size
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(path, vocab_size=size - 1)
    message = str(caught.value)
    assert str(path / "tokenizer.json") in message
    assert f"highest token id is {size - 1}" in message and f"vocab_size is {size - 1}" in message


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json and no tokenizer\.model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "Nothing"}}'])
def test_broken_tokenizer_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"), [("{", "not JSON"), ("[1]", "expected a JSON object"), ("\x80", "not JSON")]
)
def test_broken_config(tmp_path: Path, text: str, fault: str) -> None:
    folder(tmp_path, "gpt2")
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json: {fault}"):
        Tokenizer.load(tmp_path)


def test_packages_for_sentencepiece_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "PACKAGES", {"no_such.module": "one", "none_such": "two", "json": "three"})
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: .*: pip install one two$"):
        Tokenizer.load(tmp_path)


def test_broken_sentencepiece_model(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"no such thing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: transformers could not convert it: \S"):
        Tokenizer.load(tmp_path)


def test_sentencepiece_model_alone(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog\nhello world, hello there\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokens = Tokenizer.load(tmp_path)
    text = "hello quick 😀 world"
    assert tokens.encode(text, add_special_tokens=False) == processor.encode(text)
    assert tokens.encode(text, add_special_tokens=True) == [processor.bos_id(), *processor.encode(text)]
    assert tokens.decode(processor.encode(text)) == text


def test_long_texts_are_encoded_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokenizer.load(folder(tmp_path, "gpt2"))
    threads: list[threading.Thread] = []
    encode = tokens.encode

    def watched(text: str, *, add_special_tokens: bool) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokens, "encode", watched)
    for text in ("short", "long " * LONG_TEXT):
        ids = asyncio.run(tokens.encode_async(text, add_special_tokens=False))
        assert ids == encode(text, add_special_tokens=False)
    here, elsewhere = threads
    assert here is threading.main_thread() and elsewhere is not here


def test_nothing_imports_torch(tmp_path: Path) -> None:
    folder(tmp_path, "gpt2", chat_template="{{ messages[0].content }}")
    program = f"""
import sys
from gateway.text.template import ChatTemplate
from gateway.text.tokenizer import Tokenizer
import gateway.wire.sse, gateway.wire.chat, gateway.wire.completions, gateway.wire.tokenize, gateway.wire.models
assert Tokenizer.load({str(tmp_path)!r}).detokenizer().push([40])
assert ChatTemplate.load({str(tmp_path)!r}).render([{{"role": "user", "content": "x"}}]) == "x"
assert "torch" not in sys.modules and "transformers.tokenization_utils_base" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
