"""Conversations with tools, as templates of each kind read them."""

import json
from typing import Any

import pytest

from gateway.text.template import ChatTemplate, TemplateError, read_variables
from gateway.text.tool_messages import as_plain_text, with_calls
from tests.gateway.text import templates

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ID = "call_abcdefghijklmnop"


def called(arguments: str = '{"city": "Köln"}', id: str = ID, content: Any = "") -> dict[str, Any]:
    call = {"id": id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def answered(content: Any = "12 °C", id: str = ID) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


ASKED = {"role": "user", "content": "Weather?"}
CHAT = [ASKED, called(), answered()]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"}, "the folder")


def test_hermes() -> None:
    rendered = template(templates.HERMES).render([{"role": "system", "content": "Be kind."}, *CHAT], tools=TOOLS)
    assert rendered.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n<tools>\n" + json.dumps(TOOLS[0]))
    assert rendered.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n12 °C\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama3() -> None:
    rendered = template(templates.LLAMA3).render(CHAT, tools=TOOLS)
    assert "Environment: ipython" in rendered
    assert '\n\n{"name": "get_weather", "parameters": {"city": "Köln"}}<|eot_id|>' in rendered
    assert 'ipython<|end_header_id|>\n\n"12 °C"<|eot_id|>' in rendered
    last = template(templates.LLAMA3).render([ASKED], tools=TOOLS)
    assert json.dumps(TOOLS[0], indent=4) in last
    twice = {**called(), "tool_calls": called()["tool_calls"] * 2}
    with pytest.raises(TemplateError, match=r"^One tool call at once only!$"):
        template(templates.LLAMA3).render([ASKED, twice])


def test_mistral_gets_the_short_ids_that_it_wants() -> None:
    rendered = template(templates.MISTRAL).render(CHAT, tools=TOOLS)
    id = rendered.partition('"call_id": "')[2][:9]
    assert id.isalnum()
    assert f'[{{"name": "get_weather", "arguments": {{"city": "Köln"}}, "id": "{id}"}}]</s>' in rendered
    kept = template(templates.MISTRAL).render([ASKED, called(id="abc123XYZ"), answered(id="abc123XYZ")])
    assert kept.count("abc123XYZ") == 2
    assert "[AVAILABLE_TOOLS]" in template(templates.MISTRAL).render([ASKED], tools=TOOLS)


def test_multi_part_content() -> None:
    parts = [{"type": "text", "text": "12"}, {"type": "text", "text": "°C"}]
    rendered = template(templates.HERMES).render([ASKED, called(content=parts), answered(parts)], tools=TOOLS)
    assert "assistant\n12\n°C\n<tool_call>" in rendered
    assert "<tool_response>\n12\n°C\n</tool_response>" in rendered


def test_content_may_be_missing_where_calls_are() -> None:
    rendered = template(templates.HERMES).render([ASKED, called(content=None), answered()], tools=TOOLS)
    assert "<|im_start|>assistant\n<tool_call>" in rendered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"city"', r"messages.1.tool_calls.0.function.arguments is not JSON: "),
        ("[1]", r"messages.1.tool_calls.0.function.arguments must be a JSON object"),
        ("[" * 100_000, r"messages.1.tool_calls.0.function.arguments is not JSON: "),
    ],
)
def test_arguments_that_are_no_object(arguments: str, message: str) -> None:
    for source in (templates.HERMES, templates.PLAIN):
        with pytest.raises(TemplateError, match=message):
            template(source).render([ASKED, called(arguments)])


def test_no_arguments() -> None:
    assert '"arguments": {}}' in template(templates.HERMES).render([ASKED, called("")], tools=TOOLS)


def test_answers_get_the_name_of_their_tool() -> None:
    messages = with_calls(CHAT, short_ids=False)
    assert messages[2] == {**answered(), "name": "get_weather"}
    assert with_calls([{**answered(), "name": "mine"}], short_ids=False)[0]["name"] == "mine"
    assert "name" not in with_calls([answered(id="other")], short_ids=False)[0]
    assert [ASKED, called(), answered()] == CHAT


def test_a_template_without_tools_is_told_of_them_in_a_message() -> None:
    rendered = template(templates.PLAIN).render([*CHAT, answered("13 °C")], tools=TOOLS)
    system, user, assistant, tool, _ = rendered.split("<|")[1:]
    assert system.startswith("system|>You can call these functions")
    assert json.dumps(TOOLS[0]) in system
    assert user == "user|>Weather?\n"
    assert assistant == (
        'assistant|>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'.replace(
            "|>\n", "|>"
        )
    )
    assert tool == ("user|><tool_response>\n12 °C\n</tool_response>\n<tool_response>\n13 °C\n</tool_response>\n")


def test_without_tools_a_template_is_left_alone() -> None:
    assert template(templates.PLAIN).render([ASKED]) == "<|user|>Weather?\n<|assistant|>"


def test_the_system_message_is_kept() -> None:
    parts = [{"type": "text", "text": "Be kind."}]
    for content in ("Be kind.", parts):
        first = as_plain_text([{"role": "system", "content": content}, ASKED], TOOLS)[0]
        assert first["content"].startswith("Be kind.\n\nYou can call")
    assert as_plain_text(with_calls([called(content="Well.")], short_ids=False), None)[0]["content"].startswith(
        "Well.\n<tool_call>"
    )


def test_documents() -> None:
    source = "{% for d in documents %}{{ d.title }}: {{ d.text }};{% endfor %}{{ messages[0].content }}"
    documents = [{"title": "A", "text": "B"}]
    assert template(source).render([ASKED], documents=documents) == "A: B;Weather?"
    with pytest.raises(TemplateError, match="reads no documents: put them into a message"):
        template(templates.HERMES).render([ASKED], documents=documents)


def test_continue_final_message() -> None:
    messages = [ASKED, {"role": "assistant", "content": "It is "}]
    rendered = template(templates.HERMES).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered.endswith("<|im_start|>assistant\nIt is ")
    with pytest.raises(TemplateError, match="final message does not appear") as caught:
        template("nothing of content").render(messages, add_generation_prompt=False, continue_final_message=True)
    assert "Rendered chat" not in str(caught.value)


def test_read_variables() -> None:
    assert {"tools", "messages", "add_generation_prompt"} <= read_variables(templates.HERMES)
    assert "tools" not in read_variables(templates.PLAIN)
    assert "tools" not in read_variables("{% set tools = [] %}")
    assert read_variables("{% if %}") == frozenset()
