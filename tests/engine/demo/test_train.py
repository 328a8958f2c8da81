import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo.conversations import conversations
from engine.demo.tokenizer import END, SPECIAL, ChatEncoder, train_tokenizer
from engine.demo.tool_chats import all_chats
from engine.demo.train import TrainConfig, build_model, chat_batches, copy_batches, rate, train

TINY = TrainConfig(
    vocab_size=400,
    hidden=32,
    intermediate=48,
    layers=1,
    heads=2,
    kv_heads=1,
    context=512,
    corpus_chats=50,
    copy_steps=3,
    copy_tokens=256,
    chat_steps=(3, 2, 2),
    chat_peaks=(1.0, 0.5, 0.5),
    tools_from=2,
    chat_tokens=1200,
    tool_tokens=1000,
    tool_share=0.5,
    save_every=2,
)


def test_a_tiny_training_runs_to_the_end_and_leaves_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(tmp_path, TINY, seed=5, threads=2)
    output = capsys.readouterr().out
    assert "copying 3/3  loss" in output
    assert "chats 1 3/3  loss" in output
    assert "chats 2 2/2  loss" in output
    assert "chats 3 2/2  loss" in output
    assert record["chats"]["steps"] == 5
    assert record["tools"]["steps"] == 2
    assert record["descents"] == 3
    assert json.loads((tmp_path / "training.json").read_text()) == json.loads(json.dumps(record))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.config.eos_token_id == AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids(END)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]


def test_training_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second = (train(tmp_path / name, TINY, seed=5, threads=1) for name in "ab")
    assert first["chats"]["loss"] == second["chats"]["loss"]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_what_has_had_some_descents_goes_on_with_the_others(tmp_path: Path) -> None:
    train(tmp_path / "begun", replace(TINY, chat_steps=(3, 2)), seed=5, threads=1)
    whole, continued = (
        train(tmp_path / name, TINY, seed=5, threads=1, begun=begun)
        for name, begun in (("whole", None), ("continued", tmp_path / "begun"))
    )
    assert continued["tools"]["loss"] == whole["tools"]["loss"]
    assert continued["chats"]["tokens"] == whole["chats"]["tokens"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "continued", "begun")]
    assert weights[0] == weights[1] != weights[2]


def test_copying_asks_for_the_repetition_and_its_distance_varies() -> None:
    config = replace(TINY, copy_tokens=512, copy_short_steps=5, copy_longest=32)
    distances: set[int] = set()
    for step, batch in enumerate(islice(copy_batches(config, 400, torch.Generator().manual_seed(1)), 100)):
        assert int(batch.ids.min()) >= len(SPECIAL)
        assert batch.ids.shape[1] == 2 * (8 if step < 5 else 16 if step < 35 else 32)
        for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
            asked = [place for place, label in enumerate(labels) if label != -100]
            distance = asked[0]
            assert asked == list(range(distance, 2 * distance - 1))
            assert ids[distance : 2 * distance] == ids[:distance]
            assert all(labels[place] == ids[place + 1] for place in asked)
            distances.add(distance)
    assert distances == set(range(4, 33))


def test_the_first_guess_of_a_fresh_model_is_uniform() -> None:
    chats = islice(conversations("train", 1), 20)
    tokenizer = train_tokenizer((message["content"] for chat in chats for message in chat.messages), 400)
    logits = build_model(TINY, tokenizer)(torch.arange(6, 20)[None]).logits
    assert logits.abs().max() == 0


def test_chat_batches_ask_for_answers_alone_and_keep_to_their_size() -> None:
    chats = islice(conversations("train", 1), 50)
    tokenizer = train_tokenizer((message["content"] for chat in chats for message in chat.messages), 400)
    source = all_chats("train", 1, tools=0.5, shapes=0.2)
    for batch in islice(chat_batches(TINY, ChatEncoder(tokenizer), 1, source), 10):
        assert batch.ids.numel() <= TINY.chat_tokens
        assert batch.ids.shape[1] <= TINY.context
        wanted = batch.labels != -100
        assert batch.labels[:, :-1][wanted[:, :-1]].equal(batch.ids[:, 1:][wanted[:, :-1]])
        assert 0 < int(wanted.sum()) < batch.ids.numel()


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    rates = [rate(step, 400, TINY) for step in range(401)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(TINY.final_rate)
