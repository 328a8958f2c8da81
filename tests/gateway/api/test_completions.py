"""``/v1/completions``, mostly through the official client."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_worker import prompt_ids
from tests.gateway.harness import run, serving


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "abc", **fields}


def test_an_answer_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            found = await client.completions.create(model="fake", prompt="hello, Σ")
            assert found.object == "text_completion"
            assert found.choices[0].text == "hello, Σ"
            assert found.choices[0].finish_reason == "stop"
            assert found.usage is not None
            assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (9, 9)

    run(scenario())


def test_a_stream_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            stream = await client.completions.create(
                model="fake", prompt="hello", stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "hello"
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.total_tokens == 10

    run(scenario())


def test_sixteen_tokens_unless_said(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/completions", body(prompt="x" * 30))
            assert found.json["usage"]["completion_tokens"] == 16
            assert found.json["choices"][0]["finish_reason"] == "length"
            near_the_end = await gateway.post("/v1/completions", body(prompt="x" * 60))
            assert near_the_end.json["usage"]["completion_tokens"] == 4
            said = await gateway.post("/v1/completions", body(prompt="x" * 30, max_tokens=20))
            assert said.json["usage"]["completion_tokens"] == 20

    run(scenario())


@pytest.mark.parametrize("prompt", [[65, 66, 67], [[65, 66, 67]]])
def test_token_ids_for_a_prompt(model_folder: Path, prompt: Any) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/completions", body(prompt=prompt))
            assert found.status == 200
            assert prompt_ids(gateway.worker.submitted[0]) == [65, 66, 67]

    run(scenario())


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "invalid_value"),
        ([], "invalid_value"),
        ([[]], "invalid_value"),
        ([[1], [257]], "invalid_value"),
        (["a"] * 2049, "invalid_value"),
        ([1, 257], "invalid_value"),
        ([-1], "invalid_value"),
        (["a", 1], "invalid_value"),
        (5, "invalid_type"),
        (None, "invalid_type"),
        ("x" * 64, "context_length_exceeded"),
    ],
)
def test_prompts_that_are_refused(model_folder: Path, prompt: Any, code: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/completions", body(prompt=prompt))
            assert found.status == 400
            assert found.json["error"]["code"] == code
            assert found.json["error"]["param"].startswith("prompt")
            assert gateway.context.queued == 0

    run(scenario())


def test_stop_strings_end_an_answer_and_its_work(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for stream in (False, True):
                sent = body(prompt="one two three four", stop=["thr", "zzz"], max_tokens=40, stream=stream)
                found = await gateway.post("/v1/completions", sent)
                if stream:
                    choices = [json.loads(event)["choices"][0] for event in found.events[:-1]]
                    assert "".join(choice["text"] for choice in choices) == "one two "
                    assert choices[-1]["finish_reason"] == "stop"
                else:
                    assert found.json["choices"][0]["text"] == "one two "
                    assert found.json["choices"][0]["finish_reason"] == "stop"
                    assert found.json["usage"]["completion_tokens"] == len("one two thr")

    run(scenario())


def test_a_stop_string_aborts_the_rest(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False, script=lambda submit: [65] * 50) as gateway:
            text = gateway.model.tokenizer.decode([65])
            gateway.worker.arrived.clear()
            asked = asyncio.create_task(gateway.post("/v1/completions", body(stop=text * 3, max_tokens=40)))
            await gateway.worker.until(lambda: gateway.worker.running)
            for _ in range(3):
                gateway.worker.step()
            found = await asked
            assert found.json["choices"][0]["text"] == ""
            await gateway.worker.until(lambda: gateway.worker.aborted)
            assert gateway.worker.running == {}

    run(scenario())


def test_a_stop_string_that_never_completes_is_sent_after_all(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/completions", body(prompt="one thr", stop="three"))
            assert found.json["choices"][0]["text"] == "one thr"

    run(scenario())


def test_the_stop_string_is_included_when_asked_for(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post(
                "/v1/completions", body(prompt="one two three", stop="two", include_stop_str_in_output=True)
            )
            assert found.json["choices"][0]["text"] == "one two"

    run(scenario())


def test_special_tokens_are_skipped_unless_wanted(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, script=lambda submit: [*range(65, 68), 256]) as gateway:
            text = gateway.model.tokenizer.decode([65, 66, 67])
            plain = await gateway.post("/v1/completions", body())
            kept = await gateway.post("/v1/completions", body(skip_special_tokens=False))
            assert plain.json["choices"][0]["text"] == text
            assert kept.json["choices"][0]["text"] == f"{text}<|im_end|>"
            assert plain.json["usage"]["completion_tokens"] == 4

    run(scenario())


def test_a_character_cut_in_half_is_not_sent_early(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/completions", body(prompt="a👋b", stream=True))
            texts = [json.loads(event)["choices"][0]["text"] for event in found.events[:-1]]
            assert [text for text in texts if text] == ["a", "👋", "b"]
            cut = await gateway.post("/v1/completions", body(prompt="a👋b", max_tokens=3))
            assert cut.json["choices"][0]["text"].startswith("a\N{REPLACEMENT CHARACTER}")

    run(scenario())


def test_several_prompts(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            for prompt in (["one", "three"], [[1, 2, 3], [4, 5]]):
                found = await client.completions.create(model="fake", prompt=prompt, n=2, max_tokens=40)
                texts = [gateway.model.tokenizer.decode(one) if isinstance(one, list) else one for one in prompt]
                assert [(choice.index, choice.text) for choice in found.choices] == [
                    (index, texts[index // 2]) for index in range(4)
                ]
                assert found.usage is not None
                lengths = [len(one) for one in prompt]
                assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (sum(lengths), 2 * sum(lengths))
            stream = await client.completions.create(model="fake", prompt=["one", "three"], max_tokens=40, stream=True)
            streamed = ["", ""]
            async for chunk in stream:
                streamed[chunk.choices[0].index] += chunk.choices[0].text
            assert streamed == ["one", "three"]

    run(scenario())


def test_the_old_form_of_logprobs(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            found = await client.completions.create(model="fake", prompt="abc", logprobs=1, max_tokens=40)
            logprobs = found.choices[0].logprobs
            assert logprobs is not None
            assert logprobs.tokens == ["a", "b", "c"]
            assert logprobs.token_logprobs == [-0.5] * 3
            assert logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}]
            assert logprobs.text_offset == [0, 1, 2]
            offsets = []
            stream = await client.completions.create(model="fake", prompt="abc", logprobs=0, max_tokens=40, stream=True)
            async for chunk in stream:
                if chunk.choices[0].logprobs:
                    assert chunk.choices[0].logprobs.top_logprobs is None
                    offsets += chunk.choices[0].logprobs.text_offset or []
            assert offsets == [0, 1, 2]

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 2])
def test_echo(model_folder: Path, stream: bool, max_tokens: int) -> None:
    async def scenario() -> None:
        async with serving(model_folder, script=lambda submit: [65, 66, 67]) as gateway:
            answer = gateway.model.tokenizer.decode([65, 66][:max_tokens])
            sent = body(prompt="xyz", echo=True, logprobs=1, max_tokens=max_tokens, stream=stream)
            found = await gateway.post("/v1/completions", sent)
            if stream:
                choices = [json.loads(event)["choices"][0] for event in found.events[:-1]]
            else:
                choices = found.json["choices"]
                assert found.json["usage"]["completion_tokens"] == max_tokens
            assert "".join(choice["text"] for choice in choices) == f"xyz{answer}"
            assert choices[-1]["finish_reason"] == "length"
            scored = [choice["logprobs"] for choice in choices if choice["logprobs"]]
            assert [name for one in scored for name in one["tokens"]] == [*"xyz", *answer]
            logprobs = [logprob for one in scored for logprob in one["token_logprobs"]]
            assert logprobs == [None, -0.25, -0.25] + [-0.5] * max_tokens
            assert [offset for one in scored for offset in one["text_offset"]] == list(range(3 + max_tokens))
            assert scored[0]["top_logprobs"][0] is None

    run(scenario())


@pytest.mark.parametrize("stop", [None, "lps"])
def test_an_answer_goes_on_from_its_first_tokens(model_folder: Path, stop: str | None) -> None:
    """Also from within a character, and from within what may become a stop string: what is new is sent, and no more."""

    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            tokenizer = gateway.model.tokenizer
            prompt = tokenizer.encode("the \u00c4lps!", add_special_tokens=False)
            fields: dict[str, Any] = {
                "stream": True,
                "stop": stop,
                "seed": 5,
                "max_tokens": 40,
                "return_token_ids": True,
            }
            fields["stream_options"] = {"include_usage": True}
            whole = await gateway.post("/v1/completions", body(prompt=prompt, **fields))
            events = [json.loads(event) for event in whole.events[:-1]]
            assert events[0]["choices"][0]["prompt_token_ids"] == prompt
            answer = [id for event in events[:-1] for id in event["choices"][0].get("token_ids") or ()]
            for count in range(len(answer)):
                texts = []  # what had been sent with the first ``count`` tokens
                left = count
                for event in events[:-1]:
                    left -= len(event["choices"][0].get("token_ids") or ())
                    texts.append(event["choices"][0]["text"] if left >= 0 else "")
                asked = body(prompt=prompt + answer[:count], answered=count, **fields)
                rest = await gateway.post("/v1/completions", asked)
                chunks = [json.loads(event) for event in rest.events[:-1]]
                new = "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1])
                assert "".join(texts) + new == "".join(event["choices"][0]["text"] for event in events[:-1])
                assert chunks[-1]["usage"] == events[-1]["usage"]
                submitted = gateway.worker.submitted[-1]
                assert (submitted.answered, submitted.sampling.max_tokens, submitted.sampling.seed) == (count, 40, 5)

    run(scenario())


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "abc", "answered": 1},
        {"prompt": [65, 66], "answered": 2},
        {"prompt": [65, 66, 67], "answered": 2, "max_tokens": 2},
        {"prompt": [65, 66], "answered": 1, "n": 2},
        {"prompt": [65, 66], "answered": 1, "echo": True},
        {"prompt": [65, 66], "answered": 1, "stop": "B"},
        {"prompt": [65, 66], "answered": -1},
    ],
)
def test_what_can_not_go_on(model_folder: Path, fields: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            if "stop" in fields:
                fields["stop"] = gateway.model.tokenizer.decode([66])
            found = await gateway.post("/v1/completions", body(**fields))
            assert (found.status, found.json["error"]["param"]) == (400, "answered")
            assert gateway.worker.submitted == []

    run(scenario())
