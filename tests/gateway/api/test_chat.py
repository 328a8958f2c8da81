"""``/v1/chat/completions``, mostly through the official client."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from gateway.fleet.served_model import ServedModel
from tests.gateway.fake_worker import prompt_ids, write_model_folder
from tests.gateway.harness import chat, run, serving, serving_in_thread

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "höher 👋"},
]
PROMPT = "s:be brief\nu:höher 👋\na:"


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_an_answer_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            gateway.worker.cached = 16
            found = await client.chat.completions.create(model="fake", messages=MESSAGES)
            (choice,) = found.choices
            assert choice.message.content == PROMPT
            assert choice.message.role == "assistant"
            assert choice.finish_reason == "stop"
            assert found.object == "chat.completion"
            assert found.model == "fake"
            assert found.id.startswith("chatcmpl-")
            size = len(PROMPT.encode())
            assert found.usage is not None
            assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (size, size)
            assert found.usage.total_tokens == 2 * size
            assert found.usage.prompt_tokens_details is not None
            assert found.usage.prompt_tokens_details.cached_tokens == 16

    run(scenario())


def test_a_stream_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            stream = await client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
            chunks = [chunk async for chunk in stream]
            assert text_of(chunks) == PROMPT
            assert chunks[0].choices[0].delta.role == "assistant"
            assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
            assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
            assert all(chunk.usage is None for chunk in chunks)
            assert len(chunks) > 10

    run(scenario())


def test_a_stream_with_usage(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            gateway.worker.cached = 16
            stream = await client.chat.completions.create(
                model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            last = chunks[-1]
            assert last.choices == []
            assert last.usage is not None
            assert last.usage.completion_tokens == len(PROMPT.encode())
            assert last.usage.prompt_tokens_details is not None
            assert last.usage.prompt_tokens_details.cached_tokens == 16
            assert all(chunk.usage is None for chunk in chunks[:-1])

    run(scenario())


def test_the_blocking_client(model_folder: Path) -> None:
    with (
        serving_in_thread(model_folder) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = client.chat.completions.create(model="fake", messages=MESSAGES)
        assert whole.choices[0].message.content == PROMPT
        assert text_of(list(client.chat.completions.create(model="fake", messages=MESSAGES, stream=True))) == PROMPT
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=MESSAGES)
        with client.chat.completions.with_streaming_response.create(model="fake", messages=MESSAGES) as response:
            assert response.headers["x-penstock-variant"] == "default"


def test_the_events_on_the_wire(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/chat/completions", chat("x", stream=True))
            assert found.status == 200
            assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert found.headers["cache-control"] == "no-cache"
            assert found.events[-1] == "[DONE]"
            assert [json.loads(event)["choices"][0]["delta"] for event in found.events[:3]] == [
                {"role": "assistant", "content": ""},
                {"content": "u"},
                {"content": ":"},
            ]

    run(scenario())


def test_the_answer_may_fill_the_context(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, script=lambda submit: [7] * 1000) as gateway, gateway.openai() as client:
            found = await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}])
            assert found.choices[0].finish_reason == "length"
            assert found.usage is not None
            assert found.usage.prompt_tokens == 6
            assert found.usage.total_tokens == gateway.worker.hello.max_model_len
            (submitted,) = gateway.worker.submitted
            assert submitted.sampling.max_tokens == 58

    run(scenario())


def test_what_the_request_leaves_open_is_the_models_own(model_folder: Path) -> None:
    async def scenario() -> None:
        defaults = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
        async with serving(model_folder, defaults=defaults) as gateway:
            await gateway.post("/v1/chat/completions", chat(temperature=0.1))
            await gateway.post("/v1/chat/completions", chat(top_k=-1, seed=3, max_completion_tokens=4))
            first, second = (submit.sampling for submit in gateway.worker.submitted)
            assert (first.temperature, first.top_p, first.top_k) == (0.1, 0.95, 20)
            assert (second.temperature, second.top_p, second.top_k) == (0.6, 0.95, 0)
            assert (second.seed, second.max_tokens) == (3, 4)

    run(scenario())


def test_priority_user_and_salt_reach_the_worker(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            await gateway.post("/v1/chat/completions", chat(priority=-2, cache_salt="mine", user="ann"))
            (submitted,) = gateway.worker.submitted
            # vLLM's lower is earlier, the link's higher is
            assert (submitted.priority, submitted.salt, submitted.tenant) == (2, "mine", "ann")
            assert submitted.age > 0

    run(scenario())


def test_template_variables(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m", template="{{ mood }}|{{ messages[0].content }}")

    async def scenario() -> None:
        async with serving(folder) as gateway:
            await gateway.post("/v1/chat/completions", chat("x", chat_template_kwargs={"mood": "calm"}))
            assert bytes(prompt_ids(gateway.worker.submitted[0])) != b""
            prompt = gateway.model.tokenizer.decode(prompt_ids(gateway.worker.submitted[0]))
            assert prompt == "calm|x"

    run(scenario())


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "self", "tools"])
def test_template_variables_with_taken_names(model_folder: Path, name: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/chat/completions", chat(chat_template_kwargs={name: 1}))
            assert found.status == 400
            assert found.json["error"]["param"] == f"chat_template_kwargs.{name}"

    run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\xff"}]}', 400, "invalid_json", None),
        (chat(temperature="hot"), 400, "invalid_type", "temperature"),
        (chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
        (chat(max_tokens=-1), 400, "invalid_value", "max_tokens"),
        (chat(stop=[""]), 400, "invalid_value", "stop.0"),
        (chat(messages=[]), 400, "invalid_value", "messages"),
        (chat(best_of=2), 400, "unsupported_parameter", "best_of"),
        (chat(model="nobody"), 404, "model_not_found", "model"),
        (chat("x" * 100), 400, "context_length_exceeded", "messages"),
        (chat("x", max_tokens=64), 400, "context_length_exceeded", "max_tokens"),
        ({"messages": []}, 400, "missing_required_parameter", "model"),
        (chat(stop_token_ids=[257]), 400, "invalid_value", "stop_token_ids.0"),
    ],
)
def test_bad_requests(
    model_folder: Path, body: bytes | dict[str, Any], status: int, code: str, param: str | None
) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for stream in (False, True):
                sent = {**body, "stream": stream} if isinstance(body, dict) else body
                found = await gateway.post("/v1/chat/completions", sent)
                assert found.status == status
                assert found.headers["content-type"] == "application/json"
                error = found.json["error"]
                assert (error["code"], error["param"]) == (code, param)
                assert error["message"]
            assert gateway.worker.submitted == []
            assert gateway.context.queued == gateway.context.in_flight == 0

    run(scenario())


def test_both_numbers_are_told_when_the_prompt_is_too_long(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            with pytest.raises(openai.BadRequestError, match=r"64 tokens.*105 tokens") as refused:
                await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * 100}])
            assert refused.value.code == "context_length_exceeded"

    run(scenario())


def test_a_template_that_refuses(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m", template="{{ raise_exception('only ever one message') }}")

    async def scenario() -> None:
        async with serving(folder) as gateway:
            found = await gateway.post("/v1/chat/completions", chat())
            assert found.status == 400
            assert found.json["error"]["code"] == "invalid_messages"
            assert "only ever one message" in found.json["error"]["message"]

    run(scenario())


def test_a_folder_without_a_template(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m", template=None)

    async def scenario() -> None:
        async with serving(folder) as gateway:
            found = await gateway.post("/v1/chat/completions", chat())
            assert found.status == 400
            assert "no chat template" in found.json["error"]["message"]
            completion = await gateway.post("/v1/completions", {"model": "fake", "prompt": "x"})
            assert completion.status == 200

    run(scenario())


def test_unknown_fields_are_accepted_and_logged(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for level in (logging.INFO, logging.DEBUG):
                caplog.set_level(level, "gateway.api")
                found = await gateway.post("/v1/chat/completions", chat(wibble=1), x_request_id="seen-1")
                assert found.status == 200

    run(scenario())
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.api.request"]
    assert lines == ["request=seen-1 fields without meaning here: wibble"]


def test_torch_stays_out(model_folder: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; import gateway.server; from gateway.text.template import ChatTemplate\n"
        f"ChatTemplate.load({str(model_folder)!r}).render([{{'role': 'user', 'content': 'x'}}])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_many_at_once_keep_apart(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            bodies = [chat(f"number {number}", stream=number % 2 == 0) for number in range(60)]
            answers = await asyncio.gather(*(gateway.post("/v1/chat/completions", body) for body in bodies))
            for number, found in enumerate(answers):
                expected = f"u:number {number}\na:"
                if number % 2:
                    assert found.json["choices"][0]["message"]["content"] == expected
                else:
                    deltas = [json.loads(event)["choices"][0]["delta"] for event in found.events[:-1]]
                    assert "".join(delta.get("content", "") for delta in deltas) == expected

    run(scenario())


def test_a_served_model_is_loaded_from_its_folder(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            again = await ServedModel.load(gateway.worker.hello, gateway.model.fleet)
            assert (again.name, again.max_model_len, again.vocab_size) == ("fake", 64, 257)

    run(scenario())


def test_several_choices(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            asked = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "n": 3, "seed": 2**63 - 1}
            found = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
            assert [(choice.index, choice.message.content) for choice in found.choices] == [
                (index, "u:hi\na:") for index in range(3)
            ]
            assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (7, 21)
            seeds = [submit.sampling.seed for submit in gateway.worker.submitted]
            assert seeds == [2**63 - 1, -(2**63), -(2**63) + 1]
            texts, reasons = ["", "", ""], ["", "", ""]
            stream = await client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
            async for chunk in stream:
                (choice,) = chunk.choices
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] += choice.finish_reason or ""
            assert texts == ["u:hi\na:"] * 3 and reasons == ["stop"] * 3

    run(scenario())


def test_a_stop_string_ends_one_choice_alone(model_folder: Path) -> None:
    scripts = iter([[65, 66, 67, 68], [65, 65, 65, 65]])

    async def scenario() -> None:
        async with serving(model_folder, script=lambda submit: next(scripts)) as gateway:
            stop = gateway.model.tokenizer.decode([67])
            found = await gateway.post("/v1/chat/completions", chat(n=2, stop=stop))
            assert [choice["message"]["content"] for choice in found.json["choices"]] == [
                gateway.model.tokenizer.decode(ids) for ids in ([65, 66], [65] * 4)
            ]
            assert found.json["choices"][0]["stop_reason"] == stop
            assert "stop_reason" not in found.json["choices"][1]
            await gateway.worker.until(lambda: len(gateway.worker.aborted) == 1)

    run(scenario())


def test_logprobs(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, script=lambda submit: [65, 66, 67]) as gateway, gateway.openai() as client:
            asked = {
                "model": "fake",
                "messages": [{"role": "user", "content": "hi"}],
                "logprobs": True,
                "top_logprobs": 2,
            }
            names = [gateway.model.tokenizer.decode([id]) for id in range(65, 69)]
            found = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
            content = found.choices[0].logprobs.content
            assert [token.token for token in content] == names[:3]
            assert [token.logprob for token in content] == [-0.5] * 3
            assert bytes(content[0].bytes).decode() == names[0]
            assert [[(top.token, top.logprob) for top in token.top_logprobs] for token in content] == [
                [(names[place], -0.5), (names[place + 1], -1.5)] for place in range(3)
            ]
            stream = await client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
            streamed = [
                token
                async for chunk in stream
                if chunk.choices[0].logprobs
                for token in chunk.choices[0].logprobs.content
            ]
            assert streamed == content

    run(scenario())


def test_half_a_character_has_a_log_probability_too(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/chat/completions", chat("\N{WAVING HAND SIGN}", logprobs=True))
            tokens = found.json["choices"][0]["logprobs"]["content"]
            whole = b"".join(bytes(token["bytes"]) for token in tokens).decode()
            assert whole == found.json["choices"][0]["message"]["content"] == "u:\N{WAVING HAND SIGN}\na:"
            assert tokens[2]["token"] == "\N{REPLACEMENT CHARACTER}"

    run(scenario())


def test_vllms_extras(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            ids = gateway.model.tokenizer.encode("u:hi\na:", add_special_tokens=False)
            extras: dict[str, Any] = {
                "return_token_ids": True,
                "prompt_logprobs": 1,
                "return_tokens_as_token_ids": True,
            }
            found = await gateway.post("/v1/chat/completions", chat(**extras, logprobs=True, service_tier="flex"))
            assert found.json["prompt_token_ids"] == found.json["choices"][0]["token_ids"] == ids
            assert found.json["choices"][0]["logprobs"]["content"][0]["token"] == f"token_id:{ids[0]}"
            assert found.json["service_tier"] == "default"
            first, second, *_ = found.json["prompt_logprobs"]
            assert first is None
            assert second == {str(ids[1]): {"logprob": -0.25, "rank": 2, "decoded_token": f"token_id:{ids[1]}"}}
            sent = chat(stream=True, return_token_ids=True, stream_options={"continuous_usage_stats": True})
            streamed = await gateway.post("/v1/chat/completions", sent)
            chunks = [json.loads(event) for event in streamed.events[:-1]]
            assert [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", [])] == ids
            assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [ids]
            assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")][-1] == len(ids)

    run(scenario())


def test_a_prompt_is_cut_where_that_was_asked_for(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            long = "0123456789" * 10
            for most, length in ((5, 5), (-1, 60)):
                body = chat(long, truncate_prompt_tokens=most, max_tokens=4)
                found = await gateway.post("/v1/chat/completions", body)
                assert found.json["usage"]["prompt_tokens"] == length
            assert (await gateway.post("/v1/chat/completions", chat(long))).status == 400

    run(scenario())


def test_bad_words_become_token_ids(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            await gateway.post("/v1/chat/completions", chat(bad_words=["no", " never"]))
            encode = gateway.model.tokenizer.encode
            assert gateway.worker.submitted[0].sampling.bad_words == tuple(
                tuple(encode(word, add_special_tokens=False)) for word in ("no", "never")
            )

    run(scenario())
