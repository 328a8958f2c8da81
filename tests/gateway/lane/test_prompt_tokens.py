"""A prompt's tokens here are those that a server of the same model makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.lane.prompt_tokens import CHAT, COMPLETIONS, PromptTokens, Reader
from tests.gateway.fake_worker import prompt_ids
from tests.gateway.harness import chat, run, serving

TURNS = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": "hi, Σ"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "x" * 30},
]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, chat("hello, Σ")),
        (CHAT, chat("") | {"messages": TURNS, "max_tokens": 2}),
        (CHAT, chat("hi", add_generation_prompt=False)),
        (COMPLETIONS, {"model": "fake", "prompt": "hello, Σ"}),
        (COMPLETIONS, {"model": "fake", "prompt": "hello", "add_special_tokens": False}),
        (COMPLETIONS, {"model": "fake", "prompt": [65, 66], "cache_salt": "s"}),
    ],
)
def test_tokens_are_those_that_a_server_makes(model_folder: Path, path: str, fields: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            assert (await gateway.post(path, fields)).status == 200
            expected = prompt_ids(gateway.worker.submitted[0])
            reader = Reader(lambda: [], str(model_folder))
            read = await reader.read(path, json.dumps(fields).encode())
            assert read is not None
            assert (list(read.tokens), read.salt) == (expected, fields.get("cache_salt", ""))

    run(scenario())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"model": "m", "messages": "no"}'),
        (CHAT, b'{"model": "m"}'),
        (COMPLETIONS, b'{"model": "m", "prompt": ["a", "b"]}'),
        (COMPLETIONS, b'{"model": "m", "prompt": [[1, 2]]}'),
        ("/v1/embeddings", b'{"model": "m", "input": "a"}'),
        ("/v1/responses", b'{"model": "m", "input": "a"}'),
    ],
)
@pytest.mark.parametrize("here", [False, True])
def test_what_has_no_tokens_is_somebody_elses_to_judge(model_folder: Path, path: str, body: bytes, here: bool) -> None:
    async def scenario() -> PromptTokens | None:
        return await Reader(lambda: [], str(model_folder) if here else None).read(path, body)

    assert run(scenario()) is None
