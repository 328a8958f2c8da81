"""Chunks with the usage so far (``continuous_usage_stats``): tokens without text count, too."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.api.chat_form import ChatForm
from gateway.api.completion_form import CompletionForm
from gateway.api.form import Answer, Delta
from gateway.text.tokenizer import Tokenizer
from gateway.wire.chat import ChatCompletionRequest
from gateway.wire.completions import CompletionRequest
from gateway.wire.generation import StreamOptions, Usage

OPTIONS = StreamOptions(continuous_usage_stats=True)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_the_last_chunk_counts_tokens_that_had_no_text(kind: str, model_folder: Path) -> None:
    tokenizer = Tokenizer.load(model_folder, None)
    form: Any
    if kind == "chat":
        request = ChatCompletionRequest(model="m", messages=[], stream=True, stream_options=OPTIONS)
        form = ChatForm(request, "m", tokenizer)
    else:
        form = CompletionForm(
            CompletionRequest(model="m", prompt="p", stream=True, stream_options=OPTIONS), "m", tokenizer
        )
    form.begin(Usage.of(prompt=3, completion=0, cached=0))
    events = form.delta(0, Delta("a", None, (), 1)) + form.delta(0, Delta("", None, (), 12))
    answer = Answer(0, [], tool_calls=[], tokens=[])
    answer.reason = "length"
    events += form.finish(answer)
    chunks = [json.loads(line[6:]) for line in events.decode().splitlines() if line]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 12]
