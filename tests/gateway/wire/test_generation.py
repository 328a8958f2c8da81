"""Each field of a request is honoured, known to have no effect, or refused with a message that names it."""

import json
from typing import Any

import pytest

from engine.link import Sampling
from gateway.wire import chat, completions
from gateway.wire.chat import ChatCompletionRequest
from gateway.wire.completions import CompletionRequest
from gateway.wire.errors import ApiError
from gateway.wire.generation import GenerationRequest, Usage


def request(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return chat.decoder.decode(json.dumps(body).encode())


def sampling(request: GenerationRequest, **changes: Any) -> Sampling:
    arguments: dict[str, Any] = {
        "prompt_tokens": 10,
        "max_model_len": 100,
        "vocab_size": 50,
        "defaults": {},
        "prompt_param": "messages",
        **changes,
    }
    request.check()
    return request.sampling(**arguments)


def test_defaults() -> None:
    assert sampling(request()) == Sampling(max_tokens=90)
    model = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    assert sampling(request(), defaults=model) == Sampling(
        max_tokens=90, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1
    )
    assert sampling(request(temperature=0, top_k=0), defaults=model).temperature == 0
    assert sampling(request(), default_max_tokens=16).max_tokens == 16
    assert sampling(request(), default_max_tokens=1000).max_tokens == 90


def test_what_is_honoured() -> None:
    asked = request(
        temperature=1,
        top_p=0.5,
        top_k=-1,
        min_p=0.2,
        seed=-7,
        max_tokens=12,
        min_tokens=3,
        stop_token_ids=[4, 5],
        ignore_eos=True,
        presence_penalty=-2,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "6": 1},
        allowed_token_ids=[1, 2],
        logprobs=True,
        top_logprobs=3,
        prompt_logprobs=0,
    )
    assert sampling(asked, bad_words=[[1, 2]], grammar="start: /a/") == Sampling(
        max_tokens=12,
        temperature=1.0,
        top_p=0.5,
        top_k=0,
        min_p=0.2,
        seed=-7,
        min_tokens=3,
        stop_token_ids=(4, 5),
        ignore_eos=True,
        presence_penalty=-2.0,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        logit_bias={5: -100.0, 6: 1.0},
        allowed_token_ids=(1, 2),
        bad_words=((1, 2),),
        grammar="start: /a/",
        top_logprobs=3,
        prompt_logprobs=0,
    )


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "kind", "value", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", True, "response_format"),
        ({"response_format": SCHEMA}, "json_schema", {"type": "object"}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        (
            {"structured_outputs": {"json": {"type": "null"}}},
            "json_schema",
            {"type": "null"},
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json_object": True}}, "json_object", True, "structured_outputs.json_object"),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"], "guided_choice"),
        ({"guided_grammar": "start: /a/"}, "grammar", "start: /a/", "guided_grammar"),
    ],
)
def test_the_shape_of_an_answer(fields: dict[str, Any], kind: str, value: Any, param: str) -> None:
    asked = request(**fields)
    asked.check()
    assert asked.shape() == (kind, value, param)


def test_free_text_has_no_shape() -> None:
    assert request().shape() is None
    assert request(response_format={"type": "text"}).shape() is None
    assert request(structured_outputs={}).shape() is None


def test_null_means_the_default() -> None:
    fields = {name: None for name in ChatCompletionRequest.__struct_fields__ if name not in ("model", "messages")}
    assert sampling(request(**fields)) == sampling(request())


def test_max_completion_tokens_comes_first() -> None:
    assert sampling(request(max_tokens=5, max_completion_tokens=7)).max_tokens == 7


@pytest.mark.parametrize(("stop", "stops"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop(stop: Any, stops: list[str]) -> None:
    asked = request(stop=stop)
    asked.check()
    assert asked.stops == stops


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1 << 70}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 1 << 63}, "seed"),
        ({"priority": -(1 << 64)}, "priority"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": "x" * 5000}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop_token_ids": [1, 50]}, "stop_token_ids.1"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"50": 1}}, "logit_bias.50"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({"logit_bias": {str(number): 1 for number in range(4097)}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [49, 50]}, "allowed_token_ids.1"),
        ({"bad_words": ["ok", " "]}, "bad_words.1"),
        ({"bad_words": ["x"] * 257}, "bad_words"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_invalid_values(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        sampling(request(**fields))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", param)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none(value: float) -> None:
    """JSON can't carry them, but a request need not come from JSON."""
    for field in ("temperature", "top_p", "min_p"):
        asked = request()
        setattr(asked, field, value)
        with pytest.raises(ApiError) as caught:
            asked.check()
        assert caught.value.param == field


REFUSED: dict[str, Any] = {
    "length_penalty": 2,
    "best_of": 3,
    "use_beam_search": True,
    "spaces_between_special_tokens": False,
    "logits_processors": ["a"],
}
CHAT_REFUSED: dict[str, Any] = {
    **REFUSED,
    "functions": [{}],
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"],
    "audio": {},
    "prediction": {},
    "web_search_options": {},
    "verbosity": "low",
    "echo": True,
    "chat_template": "x",
    "moderation": {"model": "x"},
    "prompt_cache_options": {"mode": "explicit"},
}
COMPLETION_REFUSED: dict[str, Any] = {**REFUSED, "suffix": "x", "prompt_embeds": "x"}


def test_nothing_that_is_refused_goes_untested() -> None:
    assert set(CHAT_REFUSED) == set(ChatCompletionRequest.refused)
    assert set(COMPLETION_REFUSED) == set(CompletionRequest.refused)


@pytest.mark.parametrize("field", CHAT_REFUSED)
def test_chat_refuses(field: str) -> None:
    with pytest.raises(ApiError) as caught:
        request(**{field: CHAT_REFUSED[field]}).check()
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)
    for neutral in ChatCompletionRequest.refused[field].neutral:
        request(**{field: neutral}).check()


@pytest.mark.parametrize("field", COMPLETION_REFUSED)
def test_completions_refuses(field: str) -> None:
    with pytest.raises(ApiError) as caught:
        completions.decoder.decode(
            json.dumps({"model": "m", "prompt": "x", field: COMPLETION_REFUSED[field]}).encode()
        ).check()
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_every_field_is_honoured_ignored_or_refused(kind: type[GenerationRequest]) -> None:
    fields = set(kind.__struct_fields__)
    assert kind.refused.keys() <= fields and kind.ignored.keys() <= fields
    assert not kind.refused.keys() & kind.ignored.keys()


def test_an_echo_alone_needs_no_answer() -> None:
    asked = completions.decoder.decode(b'{"model": "m", "prompt": "x", "max_tokens": 0, "echo": true, "logprobs": 2}')
    assert sampling(asked) == Sampling(max_tokens=1, top_logprobs=2, prompt_logprobs=2)


def test_prompt_over_the_context() -> None:
    with pytest.raises(ApiError, match=r"100 tokens.*100 tokens") as caught:
        sampling(request(), prompt_tokens=100)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_answer_over_the_context() -> None:
    assert sampling(request(max_tokens=90)).max_tokens == 90
    with pytest.raises(ApiError, match=r"100 tokens, but you asked for 101 tokens \(10 .* 91") as caught:
        sampling(request(max_completion_tokens=91))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_completion_tokens")


def test_include_usage() -> None:
    assert not request().include_usage
    assert not request(stream=True, stream_options={}).include_usage
    assert request(stream=True, stream_options={"include_usage": True}).include_usage


def test_usage() -> None:
    usage = Usage.of(prompt=5, completion=7, cached=4)
    assert (usage.total_tokens, usage.prompt_tokens_details.cached_tokens) == (12, 4)
