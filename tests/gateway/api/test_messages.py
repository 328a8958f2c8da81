"""``/v1/messages`` through Anthropic's official client."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic.types import MessageParam

from engine.link import Submit
from gateway.text.tokenizer import Tokenizer
from tests.gateway.fake_worker import write_model_folder
from tests.gateway.harness import Gateway, run, serving, serving_in_thread

HISTORY: list[MessageParam] = [{"role": "user", "content": "höher 👋"}]
PROMPT = "s:be brief\nu:höher 👋\na:"
SIZE = len(PROMPT.encode())
ASKED: dict[str, Any] = {"model": "fake", "max_tokens": 34, "messages": HISTORY, "system": "be brief"}
PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"


def client_of(gateway: Gateway) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0)


def body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "max_tokens": 20, "messages": [{"role": "user", "content": text}], **fields}


def saying(folder: Path, *texts: str) -> Callable[[Submit], Sequence[int]]:
    """The script of a worker that answers the first text, then the second, and so on."""
    tokenizer = Tokenizer.load(folder)
    left = list(texts)
    return lambda submit: tokenizer.encode(left.pop(0), add_special_tokens=False)


def asked_of(gateway: Gateway, submit: Submit) -> str:
    """The prompt that a worker got, as text."""
    ids = memoryview(submit.tokens).cast("i").tolist()
    return gateway.model.tokenizer.decode(ids, skip_special_tokens=False)


def test_an_answer_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            gateway.worker.cached = 16
            found = await client.messages.create(**ASKED)
            (block,) = found.content
            assert block.type == "text" and block.text == PROMPT
            assert (found.role, found.model, found.type) == ("assistant", "fake", "message")
            assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)
            assert found.id.startswith("msg_")
            assert found._request_id is not None and found._request_id.startswith("req-")
            usage = found.usage
            assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (SIZE - 16, 16, SIZE)

    run(scenario())


def test_a_stream_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            gateway.worker.cached = 16
            events = [event async for event in await client.messages.create(**ASKED, stream=True)]
            kinds = [event.type for event in events]
            assert kinds[:2] == ["message_start", "content_block_start"]
            assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
            assert set(kinds[2:-3]) == {"content_block_delta"} and len(kinds) > 20
            start = events[0]
            assert start.type == "message_start" and start.message.content == []
            assert start.message.stop_reason is None
            assert (start.message.usage.input_tokens, start.message.usage.cache_read_input_tokens) == (SIZE - 16, 16)

    run(scenario())


def test_the_streaming_helper(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            gateway.worker.cached = 16
            async with client.messages.stream(**ASKED) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                found = await stream.get_final_message()
            assert text == PROMPT == await stream.get_final_text()
            assert (found.stop_reason, found.usage.output_tokens) == ("end_turn", SIZE)
            assert (found.usage.input_tokens, found.usage.cache_read_input_tokens) == (SIZE - 16, 16)
            assert stream.request_id is not None

    run(scenario())


def test_the_blocking_client(model_folder: Path) -> None:
    with (
        serving_in_thread(model_folder) as gateway,
        anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client,
    ):
        found = client.messages.create(**ASKED)
        assert found.content[0].type == "text" and found.content[0].text == PROMPT
        with client.messages.stream(**ASKED) as stream:
            assert "".join(stream.text_stream) == PROMPT
        assert client.messages.count_tokens(model="fake", messages=HISTORY, system="be brief").input_tokens == SIZE
        old = client.beta.messages.create(**ASKED, betas=["context-1m-2025-08-07"])
        assert old.content[0].type == "text" and old.content[0].text == PROMPT
        with pytest.raises(anthropic.NotFoundError, match="nobody"):
            client.messages.create(**{**ASKED, "model": "nobody"})


def test_sampling_reaches_the_worker(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7}
            await client.messages.create(**ASKED, metadata={"user_id": "ann"}, extra_body=fields)
            (submit,) = gateway.worker.submitted
            sampling = submit.sampling
            assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (34, 0.5, 0.9, 7)
            assert submit.tenant == "ann"

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_where_an_answer_ends(model_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        script = saying(model_folder, "one two three", "one two three")
        async with serving(model_folder, script=script) as gateway, client_of(gateway) as client:

            async def ask(**fields: Any) -> tuple[str, Any, Any]:
                if stream:
                    async with client.messages.stream(**{**ASKED, **fields}) as events:
                        found: Any = await events.get_final_message()
                else:
                    found = await client.messages.create(**{**ASKED, **fields})
                return found.content[0].text, found.stop_reason, found.stop_sequence

            assert await ask(stop_sequences=["four", " two"]) == ("one", "stop_sequence", " two")
            assert await ask(max_tokens=5) == ("one t", "max_tokens", None)

    run(scenario())


def test_a_prefilled_answer_goes_on(model_folder: Path) -> None:
    async def scenario() -> None:
        history = [*HISTORY, {"role": "assistant", "content": "The answer is ("}]
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            await client.messages.create(model="fake", max_tokens=9, messages=history)  # type: ignore[arg-type]
            (submit,) = gateway.worker.submitted
            assert asked_of(gateway, submit) == "u:höher 👋\na:The answer is ("

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "status", "kind", "said"),
    [
        (b"{", 400, "invalid_request_error", "not valid JSON"),
        (body(max_tokens=0), 400, "invalid_request_error", "'max_tokens'"),
        (body(max_tokens=-3), 400, "invalid_request_error", "'max_tokens'"),
        (body(temperature=2), 400, "invalid_request_error", "'temperature'"),
        (body(stop_sequences=[""]), 400, "invalid_request_error", "'stop_sequences.0'"),
        (body(messages=[{"role": "user", "content": [{"type": "image"}]}]), 400, "invalid_request_error", ".0.type'"),
        (body(mcp_servers=[{}]), 400, "invalid_request_error", "'mcp_servers'"),
        (body(wibble=1), 400, "invalid_request_error", "wibble"),
        (body("x" * 100), 400, "invalid_request_error", "maximum context length is 64"),
        (body(model="nobody"), 404, "not_found_error", "'nobody'"),
        ({"model": "fake", "messages": []}, 400, "invalid_request_error", "'max_tokens'"),
        (b"x" * (1 << 21), 413, "request_too_large", "bytes"),
    ],
)
def test_faults_in_anthropics_shape(
    model_folder: Path, sent: bytes | dict[str, Any], status: int, kind: str, said: str
) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post(PATH, sent, x_request_id="seen-1")
            assert found.status == status
            assert found.headers["request-id"] == found.headers["x-request-id"] == "seen-1"
            assert found.json["type"] == "error"
            assert found.json["error"]["type"] == kind
            assert said in found.json["error"]["message"]
            assert found.json["request_id"] == "seen-1"
            assert gateway.worker.submitted == []
            assert gateway.context.queued == 0

    run(scenario())


def test_faults_before_a_handler_is_called(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for path in (PATH, COUNT):
                found = await gateway.get(path)
                assert (found.status, found.json["error"]["type"]) == (405, "invalid_request_error")
            gateway.context.draining = True
            found = await gateway.post(PATH, body())
            assert (found.status, found.json["error"]["type"]) == (503, "overloaded_error")

    run(scenario())


def test_the_clients_exceptions(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, max_queue=0) as gateway, client_of(gateway) as client:
            with pytest.raises(anthropic.RateLimitError) as refused:
                await client.messages.create(**ASKED)
            assert refused.value.request_id is not None
            assert int(refused.value.response.headers["retry-after"]) >= 1
            with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content"):
                await client.messages.create(model="fake", max_tokens=1, messages=[{"role": "user", "content": ""}])

    run(scenario())


def test_a_stream_that_breaks(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway, client_of(gateway) as client:
            asked = asyncio.create_task(client.messages.create(**ASKED, stream=True))
            await gateway.worker.until(lambda: gateway.worker.running)
            gateway.worker.step()
            stream = await asked
            assert (await anext(stream)).type == "message_start"
            gateway.worker.drop()
            with pytest.raises(anthropic.APIStatusError, match="overloaded_error") as broken:
                async for _ in stream:
                    pass
            assert isinstance(broken.value.body, dict)
            assert broken.value.body["request_id"] == stream.response.headers["request-id"]

    run(scenario())


def test_counting_the_tokens_of_a_prompt(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            found = await client.messages.count_tokens(model="fake", messages=HISTORY, system="be brief")
            assert found.input_tokens == SIZE
            assert gateway.worker.submitted == []
            labels = f'endpoint="{COUNT}",model="fake",outcome="ok",status="200"'
            assert await gateway.metric(f"penstock_requests_total{{{labels}}}") == 1
            for sent in (body(), {"model": "fake", "messages": []}, {"model": "nobody", "messages": HISTORY}):
                refused = await gateway.post(COUNT, sent)
                assert refused.status in (400, 404)
                assert refused.json["type"] == "error"

    run(scenario())


def test_keys_and_versions_are_accepted(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            headers = {"x-api-key": "k", "anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
            found = await gateway.request("POST", PATH, body(), headers)
            assert found.status == 200
            assert json.loads(found.body)["content"] == [{"type": "text", "text": "u:hi\na:"}]

    run(scenario())


# A model that thinks between marks and calls tools as Hermes does; the prompt shows what the template was told.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {{ tool.function.parameters | tojson }}; {% endfor %}"
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{{ '; ' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{{ thinking_budget }}{{ reasoning_effort }}"
    "{% endif %}"
)
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"name": "weather", "description": "Looks outside.", "input_schema": SCHEMA}]
QUESTION: Any = [{"role": "user", "content": "Rain?"}]


@pytest.fixture(scope="session")
def agent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("agent") / "fake", template=TEMPLATE)


async def message_of(client: anthropic.AsyncAnthropic, stream: bool, **fields: Any) -> Any:
    """The answer, whole or put together from a stream by the client."""
    asked: dict[str, Any] = {"model": "fake", "max_tokens": 200, "messages": QUESTION, **fields}
    if not stream:
        return await client.messages.create(**asked)
    async with client.messages.stream(**asked) as events:
        return await events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(agent_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        script = saying(agent_folder, f"<think>Look outside.</think>Let me see.{CALL}", "It rains.")
        async with (
            serving(agent_folder, script=script, max_model_len=2000) as gateway,
            client_of(gateway) as client,
        ):
            first = await message_of(client, stream, tools=TOOLS)
            thinking, text, call = first.content
            assert (thinking.type, thinking.thinking, thinking.signature) == ("thinking", "Look outside.", "")
            assert (text.type, text.text) == ("text", "Let me see.")
            assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Oslo"})
            assert first.stop_reason == "tool_use"
            assert 0 < first.usage.output_tokens_details.thinking_tokens < first.usage.output_tokens
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
            history = [
                *QUESTION,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ]
            last = await message_of(client, stream, tools=TOOLS, messages=history)
            assert (last.content[0].text, last.stop_reason) == ("It rains.", "end_turn")
            prompts = [asked_of(gateway, submit) for submit in gateway.worker.submitted]
            assert prompts[0].startswith('weather {"type": "object"')
            assert prompts[1].split("; ")[1:] == [
                "user: Rain?",
                'assistant: <think>Look outside.</think>Let me see.<tool_call>{"name": "weather", '
                '"arguments": {"city": "Oslo"}}</tool_call>',
                "tool: rain",
                "assistant: ",
            ]

    run(scenario())


def test_the_clients_own_tool_loop(agent_folder: Path) -> None:
    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Looks outside.

        Args:
            city: where to look
        """
        return f"rain in {city}"

    script = saying(agent_folder, CALL, "Take an umbrella.")
    with (
        serving_in_thread(agent_folder, script=script, max_model_len=2000) as gateway,
        anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client,
    ):
        runner = client.beta.messages.tool_runner(
            model="fake", max_tokens=200, messages=[{"role": "user", "content": "Rain?"}], tools=[weather]
        )
        found = runner.until_done()
        assert found.content[0].type == "text" and found.content[0].text == "Take an umbrella."
        assert "tool: rain in Oslo; " in asked_of(gateway, gateway.worker.submitted[1])


@pytest.mark.parametrize(
    ("choice", "constrained"),
    [(None, False), ({"type": "any"}, True), ({"type": "tool", "name": "weather"}, True), ({"type": "none"}, False)],
)
def test_a_choice_reaches_the_worker_as_a_grammar(agent_folder: Path, choice: Any, constrained: bool) -> None:
    async def scenario() -> None:
        script = saying(agent_folder, CALL)
        async with (
            serving(agent_folder, script=script, max_model_len=2000) as gateway,
            client_of(gateway) as client,
        ):
            found = await message_of(client, False, tools=TOOLS, **({"tool_choice": choice} if choice else {}))
            assert bool(gateway.worker.submitted[0].sampling.grammar) is constrained
            called = choice is None or choice["type"] != "none"
            assert found.content[0].type == ("tool_use" if called else "text")

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_asked_for_and_omitted(agent_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        script = saying(agent_folder, *["<think>Hm.</think>Yes."] * 3)
        async with (
            serving(agent_folder, script=script, max_model_len=2000) as gateway,
            client_of(gateway) as client,
        ):
            wanted = {"type": "enabled", "budget_tokens": 50}
            found = await message_of(client, stream, thinking=wanted, output_config={"effort": "low"})
            assert [block.type for block in found.content] == ["thinking", "text"]
            found = await message_of(client, stream, thinking={"type": "adaptive", "display": "omitted"})
            assert (found.content[0].thinking, found.content[1].text) == ("", "Yes.")
            await message_of(client, stream, thinking={"type": "disabled"})
            told = [asked_of(gateway, submit).rpartition(": ")[2] for submit in gateway.worker.submitted]
            assert told == ["True50low", "True", "False"]

    run(scenario())


def test_an_answer_in_the_shape_of_a_schema(agent_folder: Path) -> None:
    class Place(pydantic.BaseModel):
        city: str

    script = saying(agent_folder, '{"city": "Oslo"}')
    with (
        serving_in_thread(agent_folder, script=script, max_model_len=2000) as gateway,
        anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client,
    ):
        found = client.messages.parse(model="fake", max_tokens=99, messages=QUESTION, output_format=Place)
        assert found.parsed_output == Place(city="Oslo")
        assert gateway.worker.submitted[0].sampling.grammar
        impossible: Any = {"type": "json_schema", "schema": {"type": "colour"}}
        with pytest.raises(anthropic.BadRequestError, match=r"'output_config\.format\.schema'"):
            client.messages.create(
                model="fake",
                max_tokens=99,
                messages=QUESTION,
                output_config={"format": impossible},
            )


def test_a_limit_beyond_the_context_ends_with_the_context(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, script=lambda submit: [65] * 200) as gateway:
            sent = {"model": "fake", "max_tokens": 32_000, "messages": [{"role": "user", "content": "hi"}]}
            found = await gateway.post("/v1/messages", sent)
            assert found.status == 200
            assert found.json["stop_reason"] == "max_tokens"
            assert found.json["usage"]["input_tokens"] + found.json["usage"]["output_tokens"] == 64

    run(scenario())
