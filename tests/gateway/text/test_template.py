"""Chat templates render as transformers renders them, and their faults reach the client in words."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.text.template import ChatTemplate, TemplateError, reads_parts

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PARTS = (
    "{% for message in messages %}{{ message.role }}:"
    "{% for part in message.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% set content = m.content %}{% if content is string %}{{ content }}"
    "{% else %}{% for part in content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def template(source: str, **variables: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, variables, "the folder")


def test_chatml() -> None:
    messages = [{"role": "system", "content": "Be kind."}, *HELLO]
    rendered = template(CHATML).render(messages)
    assert rendered == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template(CHATML).render(HELLO, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_parts_become_a_text_for_templates_that_expect_one() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert "user\na\nb<" in template(CHATML).render(messages)
    assert template(EITHER).render(messages) == "a\nb"


def test_texts_become_parts_for_templates_that_expect_those() -> None:
    assert template(PARTS).render(HELLO) == "user:[Hello]"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template(PARTS).render([{"role": "user", "content": parts}]) == "user:[a][b]"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (CHATML, False),
        (PARTS, True),
        (EITHER, False),
        ("{% for m in messages %}{% for p in m['content'] | list %}{{ p }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", False),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_reads_parts(source: str, wanted: bool) -> None:
    assert reads_parts(source) is wanted


def test_images_are_refused() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}]
    with pytest.raises(TemplateError, match="a part of type 'image_url' can't be rendered"):
        template(CHATML).render([{"role": "user", "content": parts}])


def test_what_transformers_offers_to_templates() -> None:
    assert template("{{ strftime_now('%Y') }}").render(HELLO) == datetime.now().strftime("%Y")
    assert template("{{ messages[0] | tojson }}").render([{"role": "user", "content": "<é>"}]) == (
        '{"role": "user", "content": "<é>"}'
    )
    assert template("{{ tools[0].name }}").render(HELLO, tools=[{"name": "f"}]) == "f"
    assert template("{{ tools is none }}").render(HELLO) == "True"
    assert template("{{ enable_thinking }}").render(HELLO, enable_thinking=False) == "False"
    assert template("{{ bos_token }}", bos_token="<s>").render(HELLO) == "<s>"
    assert template("{{ bos_token }}").render(HELLO) == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "^Roles must alternate$"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("\n{% for %}", "the template in the folder is broken at line 2"),
        ("{{ messages.append(1) }}", "unsafe|not safe|Immutable|access"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.at.all }}", "nothing"),
    ],
)
def test_faults(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        template(source).render(HELLO)


@pytest.mark.parametrize("name", ["chat_template", "conversations", "return_assistant_tokens_mask"])
def test_requests_can_not_replace_the_template(name: str) -> None:
    variables: dict[str, Any] = {name: "x"}
    with pytest.raises(TemplateError, match=f"'{name}' can't be set"):
        template(CHATML).render(HELLO, **variables)


def test_load_from_config(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render(HELLO) == "<s>Hello"


def test_the_file_comes_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "eos_token": "</s>"}))
    (tmp_path / "chat_template.jinja").write_text("new{{ eos_token }}")
    assert ChatTemplate.load(tmp_path).render(HELLO) == "new</s>"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    loaded = ChatTemplate.load(tmp_path)
    assert loaded.render(HELLO) == "plain"
    assert loaded.render(HELLO, tools=[{"name": "f"}]) == "with tools"


def test_additional_templates(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    loaded = ChatTemplate.load(tmp_path)
    assert loaded.render(HELLO, tools=[{"name": "f"}]) == "with tools"
    with pytest.raises(TemplateError, match=r"named 'default' \(only: tool_use\)"):
        loaded.render(HELLO)


def test_a_folder_without_one_says_what_to_do(tmp_path: Path) -> None:
    loaded = ChatTemplate.load(tmp_path)
    with pytest.raises(TemplateError, match=r"/v1/completions .* or add a chat_template\.jinja"):
        loaded.render(HELLO)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match=r"chat_template\.jinja: not UTF-8"):
        ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json: not JSON"):
        ChatTemplate.load(tmp_path)
