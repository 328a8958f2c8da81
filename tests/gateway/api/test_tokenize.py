"""``/tokenize`` and ``/detokenize``."""

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_worker import write_model_folder
from tests.gateway.harness import run, serving

MESSAGES = [{"role": "user", "content": "hö"}]


def test_there_and_back(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            made = (await gateway.post("/tokenize", {"model": "fake", "prompt": "Σ a"})).json
            assert (made["count"], made["max_model_len"], len(made["tokens"])) == (4, 64, 4)
            back = await gateway.post("/detokenize", {"model": "fake", "tokens": made["tokens"]})
            assert back.json == {"prompt": "Σ a"}

    run(scenario())


def test_messages_go_through_the_template(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for add, text in ((None, "u:hö\na:"), (False, "u:hö\n")):
                made = await gateway.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": add})
                assert gateway.model.tokenizer.decode(made.json["tokens"]) == text

    run(scenario())


def test_the_tokens_texts_when_asked_for(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            made = await gateway.post("/tokenize", {"prompt": "ab<|im_end|>", "return_token_strs": True})
            assert made.json["token_strs"] == ["a", "b", "<|im_end|>"]
            back = await gateway.post("/detokenize", {"tokens": made.json["tokens"]})
            assert back.json["prompt"] == "ab<|im_end|>"

    run(scenario())


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"self": 1}}, 400, "chat_template_kwargs.self"),
        ("/detokenize", {"tokens": [257]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
def test_bad_requests(model_folder: Path, path: str, body: dict[str, Any], status: int, param: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post(path, body)
            assert found.status == status
            assert found.json["error"]["param"].startswith(param.partition(".")[0])

    run(scenario())


def test_a_template_that_refuses(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m", template="{{ raise_exception('not today') }}")

    async def scenario() -> None:
        async with serving(folder) as gateway:
            found = await gateway.post("/tokenize", {"messages": MESSAGES})
            assert found.status == 400
            assert "not today" in found.json["error"]["message"]

    run(scenario())


def test_of_several_models_one_must_be_named(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.context.models["second"] = gateway.model
            assert (await gateway.post("/tokenize", {"prompt": "x"})).json["error"]["param"] == "model"
            assert (await gateway.post("/tokenize", {"prompt": "x", "model": "second"})).status == 200

    run(scenario())


def test_a_long_text(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            made = await gateway.post("/tokenize", {"prompt": "x" * 50_000})
            assert made.json["count"] == 50_000

    run(scenario())
