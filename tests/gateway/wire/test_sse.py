"""The events that are put together by hand say what the structs would, for any text."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from gateway.wire import errors, sse
from gateway.wire.chat import ChatCompletionChunk, ChunkChoice, Delta
from gateway.wire.completions import Completion, CompletionChoice
from gateway.wire.generation import Usage

USAGE = Usage.of(prompt=5, completion=2, cached=4)
ODD = st.one_of(st.text(max_size=20), st.text(alphabet='"\\\n\r\u2028\u2029\x85\x00😀é{}', max_size=12))


def data(event: bytes) -> Any:
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    assert len(event.decode().splitlines()) == 2  # no line break inside, even to str.splitlines
    return json.loads(event[6:])


@settings(deadline=None, max_examples=200)
@given(text=ODD, id=ODD, model=ODD, fingerprint=st.none() | ODD, include_usage=st.booleans())
def test_chat_text(text: str, id: str, model: str, fingerprint: str | None, include_usage: bool) -> None:
    stream = sse.ChatStream(id, 7, model, include_usage=include_usage, fingerprint=fingerprint)
    whole = ChatCompletionChunk(
        id=id,
        created=7,
        model=model,
        choices=[ChunkChoice(0, Delta(content=text))],
        system_fingerprint=fingerprint,
        usage=None if include_usage else msgspec.UNSET,
    )
    assert data(stream.text(text)) == json.loads(msgspec.json.encode(whole))


@settings(deadline=None, max_examples=200)
@given(text=ODD, id=ODD, model=ODD, index=st.integers(0, 3), include_usage=st.booleans())
def test_completion_text(text: str, id: str, model: str, index: int, include_usage: bool) -> None:
    stream = sse.CompletionStream(id, 7, model, include_usage=include_usage)
    whole = Completion(
        id=id,
        created=7,
        model=model,
        choices=[CompletionChoice(index, text)],
        usage=None if include_usage else msgspec.UNSET,
    )
    for _ in range(2):
        assert data(stream.text(text, index)) == json.loads(msgspec.json.encode(whole))


@pytest.mark.parametrize("include_usage", [True, False])
def test_chat_stream(include_usage: bool) -> None:
    stream = sse.ChatStream("chatcmpl-1", 7, "m", include_usage=include_usage)
    events = [stream.role(), stream.text("Hi"), stream.finish("stop")]
    chunks = [data(event) for event in events]
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        for delta, finish in [({"role": "assistant", "content": ""}, None), ({"content": "Hi"}, None), ({}, "stop")]
    ]
    assert all(("usage" in chunk) is include_usage and chunk.get("usage") is None for chunk in chunks)
    last = data(stream.usage(USAGE))
    assert last["choices"] == [] and last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    for event in [*events, stream.usage(USAGE)]:
        assert not OpenAIChunk.model_validate_json(event[6:], strict=True).model_extra


@pytest.mark.parametrize("include_usage", [True, False])
def test_completion_stream(include_usage: bool) -> None:
    stream = sse.CompletionStream("cmpl-1", 7, "m", include_usage=include_usage)
    chunks = [data(event) for event in (stream.text("a"), stream.text("b", 1), stream.finish("length", 1))]
    assert [(item["index"], item["text"], item["finish_reason"]) for chunk in chunks for item in chunk["choices"]] == [
        (0, "a", None),
        (1, "b", None),
        (1, "", "length"),
    ]
    assert all(("usage" in chunk) is include_usage for chunk in chunks)
    assert data(stream.usage(USAGE))["choices"] == []
    last = stream.finish("stop")
    assert not OpenAICompletion.model_validate_json(last[6:], strict=True).model_extra


def test_errors_and_the_end() -> None:
    event = sse.error_event(errors.internal_error())
    name, body, *rest = event.split(b"\n")
    assert name == b"event: error" and rest == [b"", b""]
    assert json.loads(body.removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert sse.DONE == b"data: [DONE]\n\n"
