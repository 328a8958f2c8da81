"""A model's dialect is found in its template and its tokens, and can be set by name."""

import pytest

from gateway.text.dialect import REASONING_PARSERS, TOOL_PARSERS, Dialect
from gateway.text.parts import PlainParser
from tests.gateway.text import templates

QWEN_TOKENS = {"<|im_end|>": 5, "<tool_call>": 6, "</tool_call>": 7, "<think>": 8, "</think>": 9}
LLAMA_TOKENS = {"<|eot_id|>": 5, "<|python_tag|>": 6}
MISTRAL_TOKENS = {"[INST]": 3, "[TOOL_CALLS]": 5, "[ARGS]": 6, "[CALL_ID]": 7}


@pytest.mark.parametrize(
    ("template", "added", "tools", "reasoning"),
    [
        (templates.HERMES, {}, "hermes", "none"),
        (templates.THINKING, {}, "hermes", "think"),
        (templates.HERMES, QWEN_TOKENS, "hermes", "think"),
        (templates.LLAMA3, LLAMA_TOKENS, "llama3", "none"),
        (templates.MISTRAL, MISTRAL_TOKENS, "mistral", "none"),
        (templates.PLAIN, {}, "hermes", "none"),
        (templates.HERMES.replace("<tool_call>", "<tool_call><function=f>"), {}, "none", "none"),
        ("{{ tools }}", {}, "none", "none"),
        ("{% broken", {}, "hermes", "none"),
        (None, QWEN_TOKENS, "none", "think"),
        (None, {}, "none", "none"),
    ],
)
def test_detect(template: str | None, added: dict[str, int], tools: str, reasoning: str) -> None:
    found = Dialect.detect(template, added, frozenset())
    assert (found.tools, found.reasoning) == (tools, reasoning)
    assert found.special == {}


def test_special_tokens() -> None:
    mistral = Dialect.detect(templates.MISTRAL, MISTRAL_TOKENS, {3, 5, 6, 7})
    assert mistral.special == {"[TOOL_CALLS]": 5, "[CALL_ID]": 7, "[ARGS]": 6}
    assert mistral.kept_tokens(tools=True, reasoning=True) == {5, 6, 7}
    assert mistral.kept_tokens(tools=False, reasoning=True) == frozenset()
    thinking = Dialect.detect(templates.THINKING, QWEN_TOKENS, {5, 8, 9})
    assert thinking.special == {"<think>": 8, "</think>": 9}
    assert thinking.kept_tokens(tools=True, reasoning=False) == frozenset()
    assert thinking.kept_tokens(tools=False, reasoning=True) == {8, 9}


def test_by_name() -> None:
    assert Dialect.detect(templates.HERMES, {}, (), tool_parser="llama3").tools == "llama3"
    assert Dialect.detect(templates.HERMES, {}, (), tool_parser="none").tools == "none"
    assert Dialect.detect(None, {}, (), reasoning_parser="think").reasoning == "think"
    assert Dialect.detect(templates.THINKING, {}, (), reasoning_parser="none").reasoning == "none"
    for name in TOOL_PARSERS:
        Dialect.detect(None, {}, (), tool_parser=name)
    for name in REASONING_PARSERS:
        Dialect.detect(None, {}, (), reasoning_parser=name)
    with pytest.raises(ValueError, match="'qwen' is no parser's name; there are auto, none, hermes"):
        Dialect.detect(None, {}, (), tool_parser="qwen")
    with pytest.raises(ValueError, match="'r1' is no parser's name; there are auto, none, think"):
        Dialect.detect(None, {}, (), reasoning_parser="r1")


def test_prompts_that_open_the_reasoning() -> None:
    thinking = Dialect("none", "think")
    assert thinking.opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not thinking.opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not thinking.opens_reasoning("<|im_start|>assistant\n")
    assert not Dialect().opens_reasoning("<think>")


def test_nothing_to_take_apart() -> None:
    assert isinstance(Dialect().parser(tools=True, reasoning=True), PlainParser)
    assert isinstance(Dialect("hermes", "think").parser(tools=False, reasoning=False), PlainParser)
