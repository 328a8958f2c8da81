"""Tools, reasoning and the shapes of answers in ``/v1/chat/completions``, through the official client."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from engine.link import Submit
from tests.gateway.fake_worker import prompt_ids, write_model_folder
from tests.gateway.harness import Gateway, chat, run, serving

PATH = "/v1/chat/completions"
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{% if m.tool_calls %}<tool_call>{{ m.tool_calls[0].function.arguments.room }}"
    "</tool_call>{% else %}{{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
THINKING = TEMPLATE + "{# <think> </think> #}"
PRICE = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of a room.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "integer"}},
            "required": ["room"],
            "additionalProperties": False,
        },
    },
}
TWO = [PRICE, {"type": "function", "function": {"name": "weather"}}]
CALL = '<tool_call>\n{"name": "price", "arguments": {"room": 12}}\n</tool_call>'


@pytest.fixture(scope="module")
def tool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("tools") / "fake", template=TEMPLATE)


@pytest.fixture(scope="module")
def thinking_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("think") / "fake", template=THINKING)


def says(gateway: Gateway, *texts: str) -> None:
    """Let the worker answer with these texts, in turn."""
    answers = iter(texts)
    encode = gateway.model.tokenizer.encode
    gateway.worker.script = lambda submit: encode(next(answers), add_special_tokens=False)


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": "x"}], **fields}


def prompt(gateway: Gateway, submit: Submit) -> str:
    return gateway.model.tokenizer.decode(prompt_ids(submit))


def test_a_tool_is_called(tool_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(tool_folder, max_model_len=512) as gateway, gateway.openai() as client:
            says(gateway, f"Let me see. {CALL}\n{CALL.replace('12', '27')}")
            found = await client.chat.completions.create(**asked(tools=TWO))
            (choice,) = found.choices
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is not None and choice.message.content.strip() == "Let me see."
            assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
                ("price", '{"room": 12}'),
                ("price", '{"room": 27}'),
            ]
            assert len({call.id for call in choice.message.tool_calls}) == 2
            (submit,) = gateway.worker.submitted
            assert prompt(gateway, submit) == "price;weather;user:xa:"
            assert submit.sampling.grammar == ""

    run(scenario())


def test_a_call_is_streamed_as_it_is_written(tool_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(tool_folder, max_model_len=512) as gateway, gateway.openai() as client:
            says(gateway, f"Hm. {CALL}")
            stream = await client.chat.completions.create(**asked(tools=TWO, stream=True))
            chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]
            deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
            assert deltas[0].id and deltas[0].type == "function" and deltas[0].function
            assert (deltas[0].function.name, deltas[0].function.arguments) == ("price", "")
            arguments = [delta.function.arguments for delta in deltas[1:] if delta.function]
            assert "".join(filter(None, arguments)) == '{"room": 12}' and len(arguments) > 3
            assert {delta.id for delta in deltas[1:]} == {None}
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text.strip() == "Hm."
            assert chunks[-1].choices[0].finish_reason == "tool_calls"

    run(scenario())


def test_what_the_tool_said_comes_back(tool_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(tool_folder, max_model_len=512) as gateway, gateway.openai() as client:
            says(gateway, CALL, "80 euros")
            messages: list[Any] = [{"role": "user", "content": "x"}]
            first = await client.chat.completions.create(**asked(messages=messages, tools=[PRICE]))
            messages.append(first.choices[0].message)
            call = first.choices[0].message.tool_calls[0]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "80"})
            second = await client.chat.completions.create(**asked(messages=messages, tools=[PRICE]))
            assert second.choices[0].message.content == "80 euros"
            assert second.choices[0].finish_reason == "stop"
            text = prompt(gateway, gateway.worker.submitted[1])
            assert text == "price;user:xassistant:<tool_call>12</tool_call>tool:80a:"

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "calls", "refuses"),
    [
        ({"tool_choice": "required"}, CALL, "hello"),
        ({"tool_choice": {"type": "function", "function": {"name": "price"}}}, CALL, CALL.replace("price", "weather")),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "weather"}}],
                    },
                }
            },
            CALL.replace("price", "weather").replace('{"room": 12}', "{}"),
            CALL,
        ),
        ({"tool_choice": "required", "parallel_tool_calls": False}, CALL, f"{CALL}\n{CALL}"),
    ],
)
def test_a_call_is_forced_by_a_grammar(tool_folder: Path, fields: dict[str, Any], calls: str, refuses: str) -> None:
    async def scenario() -> None:
        async with serving(tool_folder, max_model_len=512) as gateway, gateway.openai() as client:
            says(gateway, calls)
            found = await client.chat.completions.create(**asked(tools=TWO, **fields))
            assert found.choices[0].message.tool_calls
            grammar = gateway.worker.submitted[0].sampling.grammar
            assert accepts(gateway, grammar, calls) and not accepts(gateway, grammar, refuses)

    run(scenario())


def accepts(gateway: Gateway, grammar: str, text: str) -> bool:
    """Whether a grammar that went to the worker matches ``text``, to its end."""
    from llguidance import LLMatcher, LLTokenizer

    file = Path(gateway.worker.hello.folder) / "tokenizer.json"
    matcher = LLMatcher(LLTokenizer(str(file), n_vocab=257, eos_token=256), grammar)
    ids = gateway.model.tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_without_tools_nothing_is_taken_apart(tool_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(tool_folder, max_model_len=512) as gateway, gateway.openai() as client:
            says(gateway, CALL, CALL)
            for fields in ({}, {"tools": TWO, "tool_choice": "none"}):
                found = await client.chat.completions.create(**asked(**fields))
                assert found.choices[0].message.content == CALL
                assert found.choices[0].message.tool_calls is None

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name"),
        ({"tools": [PRICE, PRICE]}, "tools.1.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TWO, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TWO, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
        ({"tools": TWO, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TWO, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": TWO, "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "wibble"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ],
)
def test_bad_tools_and_shapes(tool_folder: Path, fields: dict[str, Any], param: str) -> None:
    async def scenario() -> None:
        async with serving(tool_folder, max_model_len=512) as gateway:
            found = await gateway.post(PATH, chat(**fields))
            assert (found.status, found.json["error"]["param"]) == (400, param)
            assert gateway.worker.submitted == []

    run(scenario())


def schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "matches", "refuses"),
    [
        (schema(PRICE["function"]["parameters"]), '{"room": 12}', '{"room": "12"}'),  # type: ignore[index]
        ({"response_format": {"type": "json_object"}}, '{"a": [1, {"b": null}]}', "[1]"),
        ({"guided_regex": "[0-9]{3}"}, "123", "12"),
        ({"guided_choice": ["yes", "no"]}, "yes", "maybe"),
        ({"structured_outputs": {"grammar": 'start: "a"+ "b"'}}, "aab", "aa"),
        ({"guided_grammar": 'root ::= "a" | "b"'}, "b", "ab"),
    ],
)
def test_shapes_become_grammars(model_folder: Path, fields: dict[str, Any], matches: str, refuses: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for path, sent in ((PATH, chat(**fields)), ("/v1/completions", {"model": "fake", "prompt": "x", **fields})):
                found = await gateway.post(path, sent)
                assert found.status == 200, found.json
                grammar = gateway.worker.submitted[-1].sampling.grammar
                assert accepts(gateway, grammar, matches) and not accepts(gateway, grammar, refuses)

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (schema({"type": "wibble"}), "response_format.json_schema.schema", "wibble"),
        (
            schema({"type": "string", "minLength": 5, "maxLength": 2}),
            "response_format.json_schema.schema",
            "minLength",
        ),
        (schema({"type": "array", "uniqueItems": True}), "response_format.json_schema.schema", "uniqueItems"),
        (
            schema({"$ref": "https://example.org/x.json"}),
            "response_format.json_schema.schema",
            "only references into the schema itself",
        ),
        ({"guided_regex": "("}, "guided_regex", ""),
        ({"guided_grammar": "what?"}, "guided_grammar", ""),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", ""),
    ],
)
def test_a_shape_that_no_answer_can_have(model_folder: Path, fields: dict[str, Any], param: str, said: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post(PATH, chat(**fields))
            error = found.json["error"]
            assert (found.status, error["param"]) == (400, param), error
            assert said in error["message"]
            assert gateway.worker.submitted == [] and gateway.context.queued == 0

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning(thinking_folder: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(thinking_folder, max_model_len=512) as gateway:
            says(gateway, *["<think>\nLet me see.\n</think>\n\nYes."] * 2)
            for shown in (True, False):
                sent = chat(stream=stream, include_reasoning=shown)
                found = await gateway.post(PATH, sent)
                if stream:
                    deltas = [json.loads(event)["choices"][0]["delta"] for event in found.events[:-1]]
                    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
                    content = "".join(delta.get("content", "") for delta in deltas)
                else:
                    message = found.json["choices"][0]["message"]
                    reasoning, content = message.get("reasoning_content", ""), message["content"]
                    assert found.json["usage"]["completion_tokens_details"]["reasoning_tokens"] > 20
                assert content.strip() == "Yes."
                assert reasoning.strip() == ("Let me see." if shown else "")

    run(scenario())


def test_a_shape_comes_after_the_reasoning(thinking_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(thinking_folder, max_model_len=512) as gateway:
            found = await gateway.post(PATH, chat(guided_choice=["yes", "no"]))
            assert found.status == 200
            grammar = gateway.worker.submitted[0].sampling.grammar
            assert accepts(gateway, grammar, "<think>Hm, perhaps</think>\n\nyes")
            assert accepts(gateway, grammar, "yes")
            assert not accepts(gateway, grammar, "<think>Hm, perhaps</think>\n\nHm")

    run(scenario())
