"""Answers are taken apart the same, whatever the pieces are in which they come, and nothing of them is lost."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.text.answer import MarkedParser
from gateway.text.dialect import Dialect
from gateway.text.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallBegin

HERMES = Dialect("hermes", "think")
LLAMA3 = Dialect("llama3", "think")
MISTRAL = Dialect("mistral", "think")
DIALECTS = (HERMES, LLAMA3, MISTRAL)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]")

WHOLE_CALLS = (
    '{"name": "f", "arguments": {"a": [1, {"b": "}\\"]"}], "c": null}}',
    '{"name":"g","parameters":{}}',
    '{"arguments": {"x": "<tool_call>"}, "name": "h"}',
    '{"type": "function", "name": "f", "parameters": {"é": "😀\\ud83d\\ude00"}}',
    '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    'f[ARGS]{"a": 1}',
    'f[CALL_ID]abcdefghi[ARGS]{"a": "]"}',
)
PIECES = st.one_of(
    st.sampled_from(MARKERS),
    st.sampled_from(MARKERS).flatmap(lambda marker: st.integers(1, len(marker)).map(lambda n: marker[:n])),
    st.sampled_from(WHOLE_CALLS),
    st.sampled_from(WHOLE_CALLS).flatmap(lambda call: st.integers(1, len(call)).map(lambda n: call[:n])),
    st.sampled_from(("[", "]", "{", "}", '"', "\\", ",", ";", "; ", ":", "\n", " ", "name", "[ARGS]", "true", "1e5")),
    st.text(alphabet='ab<[{"\\ \n😀中}', max_size=6),
)
TEXT = st.lists(PIECES, max_size=12).map("".join)
CUTS = st.lists(st.integers(0, 400), max_size=20)


def cut(text: str, at: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(index % (len(text) + 1) for index in at)})
    return [text[a:b] for a, b in pairwise(edges)]


def joined(parts: Sequence[Part]) -> list[Part]:
    """The parts, with those that continue each other in one."""
    out: list[Part] = []
    for part in parts:
        assert part[-1] != "" or isinstance(part, ToolCallBegin)
        last = out[-1] if out else None
        if isinstance(part, ToolCallArguments) and isinstance(last, ToolCallArguments) and last.index == part.index:
            out[-1] = ToolCallArguments(part.index, last.text + part.text)
        elif isinstance(part, Content) and isinstance(last, Content):
            out[-1] = Content(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            out[-1] = Reasoning(last.text + part.text)
        else:
            out.append(part)
    return out


def parsed(dialect: Dialect, pieces: Sequence[str], **options: bool) -> list[Part]:
    parser = dialect.parser(**{"tools": True, "reasoning": True, **options})
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.push(piece)
    parts += parser.flush()
    assert parser.flush() == []
    return joined(parts)


def call(index: int, name: str, arguments: str) -> list[Part]:
    return [ToolCallBegin(index, name), ToolCallArguments(index, arguments)]


@settings(deadline=None, max_examples=600)
@given(text=TEXT, at=CUTS, dialect=st.sampled_from(DIALECTS), in_reasoning=st.booleans(), tools=st.booleans())
def test_any_text_in_any_pieces(text: str, at: list[int], dialect: Dialect, in_reasoning: bool, tools: bool) -> None:
    whole = parsed(dialect, [text], in_reasoning=in_reasoning, tools=tools)
    assert parsed(dialect, cut(text, at), in_reasoning=in_reasoning, tools=tools) == whole
    assert parsed(dialect, list(text), in_reasoning=in_reasoning, tools=tools) == whole


@settings(deadline=None, max_examples=400)
@given(text=TEXT, dialect=st.sampled_from(DIALECTS), in_reasoning=st.booleans())
def test_calls_are_numbered_and_begin_before_their_arguments(text: str, dialect: Dialect, in_reasoning: bool) -> None:
    count = 0
    for part in parsed(dialect, [text], in_reasoning=in_reasoning):
        if isinstance(part, ToolCallBegin):
            assert part.index == count and part.name
            count += 1
        elif isinstance(part, ToolCallArguments):
            assert part.index == count - 1


@settings(deadline=None, max_examples=400)
@given(words=st.lists(st.text(alphabet="abc <[😀中.", min_size=1, max_size=8), max_size=6), data=st.data())
def test_nothing_is_lost_of_text_among_markers(words: list[str], data: st.DataObject) -> None:
    dialect = data.draw(st.sampled_from((HERMES, MISTRAL)))
    text = "".join(word + data.draw(st.sampled_from(MARKERS)) for word in words)
    got = "".join(part.text for part in parsed(dialect, [text]) if isinstance(part, Content | Reasoning))
    own = MARKERS[:4] if dialect is HERMES else (*MARKERS[:2], "[TOOL_CALLS]")
    expected = re.sub("|".join(map(re.escape, own)), "", text)
    assert "".join(got.split()) == "".join(expected.split())


@settings(deadline=None, max_examples=300)
@given(
    values=st.lists(
        st.dictionaries(
            st.text(max_size=4),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                max_leaves=6,
            ),
            max_size=3,
        ),
        min_size=1,
        max_size=3,
    ),
    at=CUTS,
    ascii_only=st.booleans(),
    indent=st.sampled_from((None, 2)),
    thought=st.text(alphabet="ab \n<😀", max_size=8),
    dialect=st.sampled_from(DIALECTS),
)
def test_arguments_come_as_they_were_written(
    values: list[dict[str, Any]], at: list[int], ascii_only: bool, indent: int | None, thought: str, dialect: Dialect
) -> None:
    written = [json.dumps(value, ensure_ascii=ascii_only, indent=indent) for value in values]
    key = "parameters" if dialect is LLAMA3 else "arguments"
    calls = [f'{{"name": "f{index}", "{key}": {text}}}' for index, text in enumerate(written)]
    if dialect is HERMES:
        body = "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls)
    elif dialect is LLAMA3:
        body = "; ".join(calls)
    else:
        body = f"[TOOL_CALLS] [{', '.join(calls)}]"
    expected: list[Part] = [Reasoning(thought.strip())] if thought.strip() else []
    for index, text in enumerate(written):
        expected += call(index, f"f{index}", text)
    assert parsed(dialect, cut(f"<think>{thought}</think>\n\n{body}\n", at)) == expected


@pytest.mark.parametrize(
    ("dialect", "text", "parts"),
    [
        (HERMES, "Hello there. ", [Content("Hello there. ")]),
        (HERMES, "  ", [Content("  ")]),
        (HERMES, "a < b <tool_kit> c</t", [Content("a < b <tool_kit> c</t")]),
        (HERMES, "<think>\nhm\n\nso\n</think>\n\nHi", [Reasoning("hm\n\nso"), Content("Hi")]),
        (HERMES, "<think>\n\n</think>\n\nHi\n", [Content("Hi\n")]),
        (HERMES, "<think>\nnever ends\n", [Reasoning("never ends")]),
        (HERMES, "Hi </think>there", [Content("Hi there")]),
        (
            HERMES,
            'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\nDone.\n',
            [Content("Let me see."), *call(0, "f", '{"a": 1}'), *call(1, "g", "{}"), Content("\nDone.")],
        ),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}', call(0, "f", '{"a": 1}')),
        (HERMES, '<tool_call>{"name": "f", "id": [{}], "arguments": {}, "x": "y"}</tool_call>', call(0, "f", "{}")),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
        (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', call(0, "f", "{}")),
        (HERMES, r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>', call(0, "f", '{"a": 1}')),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}', call(0, "f", '{"a": "x\ny"}')),
        (
            HERMES,
            '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>bye',
            [*call(0, "f", '{"a": 1'), Content("bye")],
        ),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1}}</tool_call>', call(0, "f", '{"a": [1}}')),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}}}</tool_call>', [*call(0, "f", "{}"), Content("}")]),
        (
            HERMES,
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            [Content('{"name": "f", "arguments": [1]}')],
        ),
        (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>', [Content('{"name": "", "arguments": {}}')]),
        (HERMES, r'<tool_call>{"name": "\ud800", "arguments": {}}', [Content(r'{"name": "\ud800", "arguments": {}}')]),
        (HERMES, '<tool_call>{"name": "f", "arguments": "x"}', [Content('{"name": "f", "arguments": "x"}')]),
        (HERMES, '<tool_call>{"name": "f", "arguments": "[1]"}', [Content('{"name": "f", "arguments": "[1]"}')]),
        (MISTRAL, '[TOOL_CALLS] [{"name": 1}, {"name": "f"}]', [Content(' [{"name": 1}, {"name": "f"}]')]),
        (HERMES, "<tool_call>\nf(1)\n</tool_call>", [Content("\nf(1)\n")]),
        (HERMES, 'x <tool_call>{"name": "f</tool_call>', [Content('x {"name": "f')]),
        (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', call(0, "f", '{"a": 1}')),
        (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}\n', call(0, "f", "{}")),
        (LLAMA3, 'Sure. <|python_tag|>{"name": "f"}', [Content("Sure."), *call(0, "f", "{}")]),
        (
            LLAMA3,
            ' {"name": "f", "parameters": {}} ;\n{"name": "g", "parameters": {}}\n{"type": "function", "name": "h", '
            '"parameters": {}};',
            [*call(0, "f", "{}"), *call(1, "g", "{}"), *call(2, "h", "{}")],
        ),
        (LLAMA3, '{"name": "f", "parameters": {}}; so', [*call(0, "f", "{}"), Content("; so")]),
        (LLAMA3, '{"name": "f", "parameters": {}}; {"a": 1}', [*call(0, "f", "{}"), Content('; {"a": 1}')]),
        (LLAMA3, '{"name": "Bob", "age": 3}\n', [Content('{"name": "Bob", "age": 3}\n')]),
        (LLAMA3, '{"name": "Bob"}', [Content('{"name": "Bob"}')]),
        (LLAMA3, '{"a": {"name": "f", "parameters": {}}}', [Content('{"a": {"name": "f", "parameters": {}}}')]),
        (LLAMA3, 'See {"name": "f", "parameters": {}}', [Content('See {"name": "f", "parameters": {}}')]),
        (LLAMA3, "<|python_tag|>print(1)", [Content("print(1)")]),
        (
            MISTRAL,
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1]}}, {"arguments": {}, "name": "g"}]',
            [*call(0, "f", '{"a": [1]}'), *call(1, "g", "{}")],
        ),
        (MISTRAL, 'So:\n[TOOL_CALLS]{"name": "f", "arguments": {}}', [Content("So:"), *call(0, "f", "{}")]),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', [*call(0, "f", '{"a": 1}'), *call(1, "g", "{}")]),
        (MISTRAL, '[TOOL_CALLS] f [CALL_ID] 12 [ARGS] {"a": 1}', call(0, "f", '{"a": 1}')),
        (MISTRAL, "[TOOL_CALLS] I would call", [Content(" I would call")]),
        (MISTRAL, "usage: x [ARGS] [TOOL", [Content("usage: x [ARGS] [TOOL")]),
        (MISTRAL, "[TOOL_CALLS] [1, 2]", [Content(" [1, 2]")]),
        (MISTRAL, '[TOOL_CALLS]f{"a": [[TOOL_CALLS]g{}', [*call(0, "f", '{"a": ['), *call(1, "g", "{}")]),
    ],
)
def test_examples(dialect: Dialect, text: str, parts: list[Part]) -> None:
    assert parsed(dialect, [text]) == parts
    assert parsed(dialect, list(text)) == parts


def test_in_reasoning_from_the_start() -> None:
    text = "\nhm\n</think>\n\nHi"
    assert parsed(HERMES, [text], in_reasoning=True) == [Reasoning("hm"), Content("Hi")]
    assert parsed(HERMES, [text], in_reasoning=True, reasoning=False) == [Content(text)]


def test_what_is_not_asked_for_stays_as_it_is() -> None:
    text = '<think>a</think> <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parsed(HERMES, [text], tools=False, reasoning=False) == [Content(text)]
    assert parsed(HERMES, [text], tools=False) == [
        Reasoning("a"),
        Content('<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
    ]
    assert parsed(Dialect(), [text]) == [Content(text)]


def test_arguments_are_sent_as_they_come() -> None:
    parser = HERMES.parser(tools=True, reasoning=True)
    assert parser.push('<tool_call>\n{"name": "fetch') == []
    assert parser.push('", "arguments": ') == []
    assert parser.push('{"url"') == [ToolCallBegin(0, "fetch"), ToolCallArguments(0, '{"url"')]
    assert parser.push(': "http') == [ToolCallArguments(0, ': "http')]
    assert parser.push('://x"}') == [ToolCallArguments(0, '://x"}')]
    assert parser.push("}\n</tool_call>") == []
    assert parser.flush() == []


def test_content_is_sent_as_it_comes() -> None:
    parser = HERMES.parser(tools=True, reasoning=True)
    assert parser.push("Hel") == [Content("Hel")]
    assert parser.push("lo <") == [Content("lo")]
    assert parser.push("b") == [Content(" <b")]


def test_long_arguments_are_not_kept() -> None:
    body = json.dumps({"a": ['x\\"' * 10, {"b": 1}] * 5_000})
    text = f'<tool_call>\n{{"name": "f", "arguments": {body}}}\n</tool_call>'
    parser = HERMES.parser(tools=True, reasoning=True)
    sent = []
    for at in range(0, len(text), 4):
        sent += [part.text for part in parser.push(text[at : at + 4]) if isinstance(part, ToolCallArguments)]
        assert isinstance(parser, MarkedParser) and len(parser._reader.text) < 64
    assert "".join(sent) == body


def test_deep_arguments() -> None:
    body = '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}"
    assert parsed(HERMES, [f'<tool_call>{{"name": "f", "arguments": {body}}}']) == call(0, "f", body)
