"""``/v1/responses`` end to end, through the official client; what it sends back is validated strictly."""

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from engine.link import Submit
from gateway.api.response_store import ResponseStore
from gateway.app import App
from tests.gateway.fake_worker import prompt_ids, write_model_folder
from tests.gateway.harness import Gateway, run, serving, serving_in_thread

PATH = "/v1/responses"
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content if m.content is string else m.content | map(attribute='text') | join('|') }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.arguments.room }}</tool_call>{% endfor %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}{# <think> </think> #}"
)
PRICE: dict[str, Any] = {
    "type": "function",
    "name": "price",
    "description": "The price of a room.",
    "parameters": {
        "type": "object",
        "properties": {"room": {"type": "integer"}},
        "required": ["room"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = '<tool_call>\n{"name": "price", "arguments": {"room": 12}}\n</tool_call>'


@pytest.fixture(scope="module")
def agent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks, calls tools, and is shown all of it."""
    return write_model_folder(tmp_path_factory.mktemp("agent") / "fake", template=TEMPLATE)


def client_of(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )


def says(gateway: Gateway, *texts: str) -> None:
    """Let the worker answer with these texts, in turn."""
    answers = iter(texts)
    encode = gateway.model.tokenizer.encode
    gateway.worker.script = lambda submit: encode(next(answers), add_special_tokens=False)


def prompt(gateway: Gateway, submit: Submit) -> str:
    return gateway.model.tokenizer.decode(prompt_ids(submit))


async def answer(client: openai.AsyncOpenAI, stream: bool, **fields: Any) -> Any:
    """The response to a request, whole or at the end of a stream; both must be the same for a client."""
    asked: dict[str, Any] = {"model": "fake", **fields}
    if not stream:
        return await client.responses.create(**asked)
    async with client.responses.stream(**asked) as events:
        async for event in events:
            if event.type in ("response.completed", "response.incomplete"):
                found = event.response
    return found


def test_an_answer_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            gateway.worker.cached = 4
            found = await client.responses.create(
                model="fake", input="höher 👋", instructions="be brief", metadata={"a": "b"}, temperature=0.5
            )
            assert found.output_text == "s:be brief\nu:höher 👋\na:"
            assert found.id.startswith("resp_")
            assert (found.status, found.error, found.incomplete_details) == ("completed", None, None)
            assert (found.metadata, found.instructions, found.temperature) == ({"a": "b"}, "be brief", 0.5)
            assert found.usage is not None
            size = len(found.output_text.encode())
            assert (found.usage.input_tokens, found.usage.output_tokens) == (size, size)
            assert found.usage.total_tokens == 2 * size
            assert found.usage.input_tokens_details.cached_tokens == 4
            assert found.usage.output_tokens_details.reasoning_tokens == 0

    run(scenario())


def test_a_stream_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            stream = await client.responses.create(model="fake", input="höher 👋", stream=True)
            events = [event async for event in stream]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            names = [event.type for event in events if event.type != "response.output_text.delta"]
            assert names == [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
            assert len(deltas) > 5 and "".join(deltas) == "u:höher 👋\na:"
            assert events[-1].type == "response.completed"
            assert events[-1].response.output_text == "u:höher 👋\na:"

    run(scenario())


def test_the_streaming_helper(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            async with client.responses.stream(model="fake", input="hello") as stream:
                texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
                final = await stream.get_final_response()
            assert texts[-1] == final.output_text == "u:hello\na:"

    run(scenario())


def test_the_blocking_client(model_folder: Path) -> None:
    with (
        serving_in_thread(model_folder) as gateway,
        openai.OpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        first = client.responses.create(model="fake", input="hello")
        assert first.output_text == "u:hello\na:"
        with client.responses.stream(model="fake", input="x", previous_response_id=first.id) as stream:
            assert stream.get_final_response().output_text == "u:hello\na:u:hello\na:\nu:x\na:"
        page = client.responses.input_items.list(first.id)
        assert [item.type for item in page] == ["message"]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_0")


def test_the_events_on_the_wire(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post(PATH, {"model": "fake", "input": "x", "stream": True})
            assert (found.status, found.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            for event in found.events:  # all are named, and none is [DONE]
                name, data = event.split(": ", 1)
                assert json.loads(data)["type"] == name
            assert found.events[-1].startswith("response.completed: ")

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut(model_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            found = await answer(client, stream, input="hello", max_output_tokens=4)
            assert (found.status, found.output_text) == ("incomplete", "u:he")
            assert found.incomplete_details.reason == "max_output_tokens"
            assert found.output[0].status == "incomplete"
            assert (await client.responses.retrieve(found.id)).status == "incomplete"

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on(agent_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            says(gateway, "<think>hm</think>one", "two", "three", "four")
            first = await answer(client, stream, input="1?", instructions="be brief")
            assert [item.type for item in first.output] == ["reasoning", "message"]
            assert first.output[0].content[0].text == "hm"
            assert first.output_text == "one"
            second = await answer(client, stream, input="2?", previous_response_id=first.id)
            assert second.previous_response_id == first.id
            other = await answer(client, stream, input="2!", previous_response_id=first.id)
            await answer(client, stream, input="3?", previous_response_id=second.id, instructions="sing")
            assert [prompt(gateway, submit) for submit in gateway.worker.submitted] == [
                "system:be brief\nuser:1?\na:",
                "user:1?\nassistant:(hm)one\nuser:2?\na:",
                "user:1?\nassistant:(hm)one\nuser:2!\na:",
                "system:sing\nuser:1?\nassistant:(hm)one\nuser:2?\nassistant:two\nuser:3?\na:",
            ]
            assert other.output_text == "three"

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called_and_its_output_read(agent_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            says(gateway, f"<think>hm</think>Let me see.{CALL}\n{CALL.replace('12', '27')}", "80 and 65")
            first = await answer(client, stream, input="prices?", tools=[PRICE])
            assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "function_call"]
            calls = first.output[2:]
            assert [(call.name, json.loads(call.arguments)) for call in calls] == [
                ("price", {"room": 12}),
                ("price", {"room": 27}),
            ]
            assert first.tools[0].name == "price"
            outputs = [
                {"type": "function_call_output", "call_id": call.call_id, "output": text}
                for call, text in zip(calls, ("80", "65"), strict=True)
            ]
            await answer(client, stream, input=outputs, previous_response_id=first.id, tools=[PRICE])
            assert prompt(gateway, gateway.worker.submitted[1]) == (
                "price;user:prices?\nassistant:(hm)Let me see.<tool_call>12</tool_call><tool_call>27</tool_call>\n"
                "tool:80\ntool:65\na:"
            )

    run(scenario())


def test_a_conversation_that_the_client_keeps(agent_folder: Path) -> None:
    """What the client got is sent back as it is, with nothing kept."""

    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            says(gateway, f"<think>hm</think>Let me see.{CALL}", "80", "bye")
            history: list[Any] = [{"role": "user", "content": "price?"}]
            include: list[Any] = ["reasoning.encrypted_content", "message.output_text.logprobs"]
            first = await answer(client, False, input=history, tools=[PRICE], store=False, include=include)
            history += [item.model_dump() for item in first.output]
            history.append({"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "80"})
            second = await answer(client, False, input=history, tools=[PRICE], store=False)
            history += [item.model_dump() for item in second.output]
            history.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "bye"}]})
            await answer(client, False, input=history, tools=[PRICE], store=False)
            assert prompt(gateway, gateway.worker.submitted[2]) == (
                "price;user:price?\nassistant:(hm)Let me see.<tool_call>12</tool_call>\ntool:80\nassistant:80\n"
                "user:bye\na:"
            )
            assert len(gateway.context.responses) == 0
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)

    run(scenario())


def test_items_are_referred_to(agent_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            says(gateway, f"<think>hm</think>{CALL}", "80")
            first = await answer(client, False, input="price?", tools=[PRICE])
            (asked,) = (await client.responses.input_items.list(first.id)).data
            references: list[Any] = [
                {"type": "item_reference", "id": asked.id},
                *({"id": item.id} for item in first.output),
            ]
            output: Any = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "80"}
            second = await answer(client, False, input=[*references, output], tools=[PRICE])
            assert prompt(gateway, gateway.worker.submitted[1]) == (
                "price;user:price?\nassistant:(hm)<tool_call>12</tool_call>\ntool:80\na:"
            )
            items = (await client.responses.input_items.list(second.id, order="asc")).data
            assert [item.type for item in items] == ["message", "reasoning", "function_call", "function_call_output"]

    run(scenario())


def test_json_in_a_schema(agent_folder: Path) -> None:
    class Price(pydantic.BaseModel):
        euros: int

    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            says(gateway, '{"euros": 80}', '{"euros": 80}', "{}")
            found = await client.responses.parse(model="fake", input="price?", text_format=Price)
            assert found.output_parsed == Price(euros=80)
            async with client.responses.stream(model="fake", input="price?", text_format=Price) as stream:
                final = await stream.get_final_response()
            assert final.output_parsed == Price(euros=80)
            await client.responses.create(model="fake", input="price?", text={"format": {"type": "json_object"}})
            assert all(submit.sampling.grammar for submit in gateway.worker.submitted)

    run(scenario())


@pytest.mark.parametrize(
    ("choice", "constrained"),
    [
        ("auto", False),
        ("none", False),
        ("required", True),
        ({"type": "function", "name": "price"}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "price"}]}, True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "price"}]}, False),
    ],
)
def test_a_choice_of_tools(agent_folder: Path, choice: Any, constrained: bool) -> None:
    async def scenario() -> None:
        async with serving(agent_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            says(gateway, CALL if choice != "none" else "no")
            tools = [{**PRICE, "strict": False}]
            found = await answer(client, False, input="price?", tools=tools, tool_choice=choice)
            assert bool(gateway.worker.submitted[0].sampling.grammar) == constrained
            echoed = found.tool_choice
            assert (echoed if isinstance(echoed, str) else echoed.model_dump()) == choice

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(model_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            found = await answer(client, stream, input="hé", include=["message.output_text.logprobs"], top_logprobs=2)
            (text,) = found.output[0].content
            assert bytes(byte for logprob in text.logprobs for byte in logprob.bytes).decode() == "u:hé\na:"
            assert all(logprob.logprob <= 0 and len(logprob.top_logprobs) == 2 for logprob in text.logprobs)
            assert gateway.worker.submitted[0].sampling.top_logprobs == 2

    run(scenario())


def test_sampling_reaches_the_worker(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, defaults={"temperature": 0.6, "top_p": 0.9}) as gateway:
            found = await gateway.post(
                PATH,
                {
                    "model": "fake",
                    "input": "x",
                    "temperature": 0,
                    "seed": 3,
                    "top_k": 5,
                    "min_p": 0.1,
                    "presence_penalty": 0.5,
                    "stop_token_ids": [7],
                    "max_output_tokens": 9,
                    "priority": 2,
                    "user": "me",
                    "cache_salt": "s",
                },
            )
            assert (found.json["temperature"], found.json["top_p"], found.json["user"]) == (0, 0.9, "me")
            (submit,) = gateway.worker.submitted
            sampling = submit.sampling
            assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.9, 5, 0.1)
            assert (sampling.seed, sampling.max_tokens, sampling.stop_token_ids) == (3, 9, (7,))
            assert (sampling.presence_penalty, submit.tenant, submit.priority, submit.salt) == (0.5, "me", -2, "s")

    run(scenario())


def test_pages_of_input(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, max_model_len=512) as gateway, client_of(gateway) as client:
            texts = [str(number) for number in range(7)]
            found = await client.responses.create(
                model="fake", input=[{"role": "user", "content": text} for text in texts]
            )

            async def listed(order: Literal["asc", "desc"]) -> list[str]:
                pages: Any = client.responses.input_items.list(found.id, order=order, limit=3)
                return [item.content[0].text async for item in pages]

            assert await listed("asc") == texts
            assert await listed("desc") == texts[::-1]
            page = (await gateway.get(f"{PATH}/{found.id}/input_items?limit=7")).json
            assert (page["object"], page["has_more"]) == ("list", False)
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            assert page["data"][0]["content"][0]["text"] == "6"
            for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=msg_0"):
                refused = await gateway.get(f"{PATH}/{found.id}/input_items?{query}")
                assert refused.status == 400
                assert refused.json["error"]["param"] == query.partition("=")[0]

    run(scenario())


def test_a_kept_response_is_shown_and_deleted(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            found = await client.responses.create(model="fake", input="x")
            assert await client.responses.retrieve(found.id) == found
            with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
                await client.responses.cancel(found.id)
            with pytest.raises(openai.BadRequestError, match="sent once"):
                await client.responses.retrieve(found.id, stream=True)
            deleted = (await gateway.request("DELETE", f"{PATH}/{found.id}")).json
            assert deleted == {"id": found.id, "object": "response", "deleted": True}
            for method, path in (
                ("GET", ""),
                ("DELETE", ""),
                ("POST", "/cancel"),
                ("GET", "/input_items"),
            ):
                gone = await gateway.request(method, f"{PATH}/{found.id}{path}")
                assert gone.status == 404
                assert found.id in gone.json["error"]["message"]

    run(scenario())


def test_a_response_that_was_forgotten(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, client_of(gateway) as client:
            gateway.context.responses = ResponseStore(most=1)
            first = await client.responses.create(model="fake", input="x")
            await client.responses.create(model="fake", input="y")
            for id in (first.id, "resp_0"):
                with pytest.raises(openai.BadRequestError) as raised:
                    await client.responses.create(model="fake", input="z", previous_response_id=id)
                assert raised.value.code == "previous_response_not_found"
                assert raised.value.param == "previous_response_id"
            with pytest.raises(openai.NotFoundError) as missing:
                await client.responses.create(model="fake", input=[{"type": "item_reference", "id": "msg_0"}])
            assert missing.value.param == "input.0.id"

    run(scenario())


def test_a_stream_that_breaks(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway, client_of(gateway) as client:
            asked: Any = client.responses.create(model="fake", input="hello", stream=True)
            task = asyncio.create_task(asked)
            await gateway.worker.until(lambda: gateway.worker.running)
            gateway.worker.step()
            events: list[Any] = []
            async for event in await task:
                events.append(event)
                if event.type == "response.output_text.delta":
                    gateway.worker.drop()
            assert [event.type for event in events[-2:]] == ["error", "response.failed"]
            assert events[-2].code == "unavailable"
            assert events[-1].response.status == "failed"
            assert events[-1].response.error.code == "server_error"
            assert len(gateway.context.responses) == 0

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": 7}, "invalid_type", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": "x" * 100}, "context_length_exceeded", "input"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"max_output_tokens": 1000}, "context_length_exceeded", "max_output_tokens"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools.0.type"),
        ({"tools": [PRICE, PRICE]}, "invalid_value", "tools.1.name"),
        ({"tools": [{"type": "function", "name": "no spaces"}]}, "invalid_value", "tools.0.name"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        (
            {"tools": [PRICE], "tool_choice": {"type": "function", "name": "x"}},
            "invalid_value",
            "tool_choice.name",
        ),
        (
            {
                "tools": [PRICE],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "x"}],
                },
            },
            "invalid_value",
            "tool_choice.tools.0.name",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "wibble"}}}},
            "invalid_value",
            "text.format.schema",
        ),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"truncation": "auto"}, "unsupported_parameter", "truncation"),
        ({"model": "nobody"}, "model_not_found", "model"),
        (
            {"input": [{"role": "user", "content": "x"}, {"type": "message", "role": "system", "content": "no"}]},
            "invalid_messages",
            "input",
        ),
    ],
)
def test_faults_have_the_names_of_this_endpoint(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], code: str, param: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "strict" / "fake"
    if not folder.exists():
        write_model_folder(
            folder,
            template=(
                "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}"
                "{% endif %}{{ m.content }}{% endfor %}a:{# <tool_call> tools #}"
            ),
        )

    async def scenario() -> None:
        async with serving(folder) as gateway:
            for stream in (False, True):
                found = await gateway.post(PATH, {"model": "fake", "input": "x", "stream": stream, **fields})
                error = found.json["error"]
                assert found.status == (404 if code == "model_not_found" else 400)
                assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
                assert "max_completion_tokens" not in error["message"] and ".function" not in error["message"]
            assert not gateway.worker.submitted

    run(scenario())


def test_a_line_of_a_batch_is_background_work(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            sent: list[Any] = []
            body = json.dumps({"model": "fake", "input": "x"}).encode()
            messages = iter([{"type": "http.request", "body": body}])

            async def receive() -> Any:
                for message in messages:
                    return message
                await asyncio.Event().wait()

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "state": {"background": True}}
            await App(gateway.context)(scope, receive, send)
            assert sent[0]["status"] == 200
            assert gateway.worker.submitted[0].background

    run(scenario())
