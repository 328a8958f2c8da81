"""Prompts of every kind, and the answer as the official client reads it."""

import json
from typing import Any

import msgspec
import pytest
from openai.types import Completion

from gateway.wire import completions
from gateway.wire.errors import ApiError
from gateway.wire.generation import Usage


def prompts(prompt: Any) -> list[str | list[int]]:
    request = completions.decoder.decode(json.dumps({"model": "m", "prompt": prompt}).encode())
    request.check()
    return request.prompts(vocab_size=10)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("x", ["x"]),
        ("", [""]),
        (["x"], ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts(prompt: Any, read: list[Any]) -> None:
    assert prompts(prompt) == read


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (None, "invalid_type", "prompt"),
        (5, "invalid_type", "prompt"),
        ([], "invalid_value", "prompt"),
        ([1, "x"], "invalid_value", "prompt"),
        ([1, [2]], "invalid_value", "prompt"),
        ([[]], "invalid_value", "prompt.0"),
        ([1, 10], "invalid_value", "prompt.1"),
        ([[1], [2, -1]], "invalid_value", "prompt.1.1"),
        ([[1], [True]], "invalid_type", "prompt.1.0"),
    ],
)
def test_refused_prompts(prompt: Any, code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        prompts(prompt)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_no_prompt() -> None:
    with pytest.raises(ApiError) as caught:
        completions.decoder.decode(b'{"model": "m"}')
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "prompt")


def test_openai_reads_the_answer() -> None:
    answer = completions.Completion(
        id="cmpl-1",
        created=5,
        model="m",
        choices=[completions.CompletionChoice(0, "Hello", "stop")],
        usage=Usage.of(prompt=3, completion=1, cached=0),
    )
    parsed = Completion.model_validate_json(msgspec.json.encode(answer), strict=True)
    assert parsed.choices[0].text == "Hello" and not parsed.model_extra
