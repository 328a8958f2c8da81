"""What a composed grammar permits is what was asked for, and the same dialect's parser reads it."""

import json
import random
import re
from typing import Any, Literal, NamedTuple

import jsonschema
import pytest

from gateway.text.constraint import compose
from gateway.text.dialect import THINK, Dialect, ReasoningForm, ToolForm
from gateway.text.parts import Content, Part, Reasoning, ToolCallArguments, ToolCallBegin
from gateway.text.schema import ConstraintError
from gateway.text.tool_forms import TOOL_FORMS
from tests.gateway.text.sampling import END, MARKERS, Sampler, plain, with_markers
from tests.gateway.text.test_answer import parsed
from tests.schemas import COUNT, random_schemas


class Shape(NamedTuple):
    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    value: Any


class Function(NamedTuple):
    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Calls(NamedTuple):
    functions: list[Function]
    mode: Literal["auto", "required", "named"] = "auto"
    parallel: bool = True


CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        "unit": {"enum": ["°C", "°F"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER, CLOCK = Function("get_weather", CITY, True), Function("what-time.is_it", None, True)
BOTH = [WEATHER, CLOCK]
SCHEMAS = {"get_weather": CITY, "what-time.is_it": {"type": "object", "maxProperties": 0}}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    return with_markers(tmp_path_factory.mktemp("marked"))


def special(sampler: Sampler, tools: ToolForm, reasoning: ReasoningForm = "none") -> Dialect:
    """The dialect for a vocabulary in which the markers are special tokens."""
    return Dialect(tools, reasoning, sampler.special)


def calls_in(parts: list[Part]) -> list[tuple[str, str]]:
    calls = [(part.name, "") for part in parts if isinstance(part, ToolCallBegin)]
    for part in parts:
        if isinstance(part, ToolCallArguments):
            calls[part.index] = (calls[part.index][0], calls[part.index][1] + part.text)
    return calls


def check_calls(parts: list[Part], schemas: dict[str, Any]) -> list[str]:
    """The names of the calls, whose arguments match their schemas."""
    names = []
    for name, arguments in calls_in(parts):
        jsonschema.validate(json.loads(arguments), schemas[name])
        names.append(name)
    return names


@pytest.mark.slow
def test_every_answer_matches_its_schema_whatever_the_model_says() -> None:
    sampler, count = plain(), 0
    for index, schema in enumerate(random_schemas()):
        jsonschema.Draft202012Validator.check_schema(schema)
        grammar = compose(Dialect(), Shape("json_schema", schema), None)
        sampler.checker.check_now(grammar)
        answer = json.loads(sampler.draw(grammar, random.Random(index)))
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer)
        count += 1
    assert count == COUNT


@pytest.mark.parametrize("thinks", ["none", "think"])
@pytest.mark.parametrize("tools", ["hermes", "llama3", "mistral"])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("in_reasoning", [False, True])
@pytest.mark.parametrize(
    "calls",
    [
        Calls(BOTH, "required"),
        Calls(BOTH, "required", False),
        Calls([WEATHER], "named"),
        Calls(BOTH),
        Calls(BOTH, "auto", False),
        Calls([Function("get_weather", CITY), CLOCK]),
    ],
    ids=["required", "required-one", "named", "auto", "auto-one", "auto-some-strict"],
)
def test_drawn_calls_are_read_by_the_same_dialect(
    calls: Calls, in_reasoning: bool, tokens: bool, tools: ToolForm, thinks: ReasoningForm, marked: Sampler
) -> None:
    in_reasoning = in_reasoning and thinks == "think"
    sampler = marked if tokens else plain()
    dialect = special(marked, tools, thinks) if tokens else Dialect(tools, thinks)
    grammar = compose(dialect, None, calls, in_reasoning)
    sampler.checker.check_now(grammar)
    own = TOOL_FORMS[tools].markers + (THINK if thinks == "think" else ())
    for seed in range(6):
        text = sampler.draw(grammar, random.Random(seed), MARKERS)
        parts = parsed(dialect, [text], in_reasoning=in_reasoning)
        schemas = dict(SCHEMAS)
        if calls.mode == "auto" and not calls.functions[0].strict:
            schemas["get_weather"] = {"type": "object"}
        names = check_calls(parts, schemas)
        content = "".join(part.text for part in parts if isinstance(part, Content))
        if calls.mode != "auto":
            assert names and not content, text
        if calls.mode == "named":
            assert names == ["get_weather"]
        if not calls.parallel:
            assert len(names) <= 1, text
        assert not any(marker in content for marker in own), text


HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn", "days": [1, 2]}}\n</tool_call>'
HERMES_TIME = '<tool_call>\n{"name": "what-time.is_it", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("calls", "text", "accepted"),
    [
        (Calls(BOTH, "required"), HERMES_CALL, True),
        (Calls(BOTH, "required"), f"{HERMES_CALL}\n{HERMES_TIME}", True),
        (Calls(BOTH, "required", False), f"{HERMES_CALL}\n{HERMES_TIME}", False),
        (Calls(BOTH, "required"), f"<think>Hm: <tool_call></think>\n\n{HERMES_CALL}", True),
        (Calls(BOTH, "required"), "Hello", False),
        (Calls(BOTH, "required"), f"Hello {HERMES_CALL}", False),
        (Calls(BOTH, "required"), HERMES_CALL.replace("Bonn", "Bonn am Rhein"), False),
        (Calls(BOTH, "required"), HERMES_CALL.replace("get_weather", "get_whether"), False),
        (Calls(BOTH, "required"), HERMES_CALL.replace("\n</tool_call>", ""), False),
        (Calls([CLOCK], "named"), HERMES_TIME, True),
        (Calls([CLOCK], "named"), HERMES_CALL, False),
        (Calls([CLOCK], "named"), f"{HERMES_TIME}\n{HERMES_TIME}", False),
        (Calls(BOTH), "Hello <tool", True),
        (Calls(BOTH), "", True),
        (Calls(BOTH), f"So:\n{HERMES_CALL}\n{HERMES_TIME}\nWait.", True),
        (Calls(BOTH), f"<think>x</think>So:\n{HERMES_CALL}", True),
        (Calls(BOTH), "<think>x <tool_call> y</think>So.", True),
        (Calls(BOTH), "<think>x", False),
        (Calls(BOTH), "So: <tool_call> as they say", False),
        (Calls(BOTH, parallel=False), f"So:\n{HERMES_CALL}", True),
        (Calls(BOTH, parallel=False), f"{HERMES_CALL}\n{HERMES_TIME}", False),
    ],
)
def test_hermes(calls: Calls, text: str, accepted: bool) -> None:
    grammar = compose(Dialect("hermes", "think"), None, calls)
    assert plain().accepts(grammar, text) is accepted


LLAMA_CALL = '{"name": "get_weather", "parameters": {"city": "Bonn"}}'
LLAMA_TIME = '{"name": "what-time.is_it", "parameters": {}}'


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(
    ("calls", "text", "accepted"),
    [
        (Calls(BOTH, "required"), LLAMA_CALL, True),
        (Calls(BOTH, "required"), f"{LLAMA_CALL}; {LLAMA_TIME}", True),
        (Calls(BOTH, "required", False), f"{LLAMA_CALL}; {LLAMA_TIME}", False),
        (Calls(BOTH, "required"), '{"name": "get_weather", "parameters": {}}', False),
        (Calls(BOTH), 'Hello {"name": "x"}', True),
        (Calls(BOTH), '{"answer": 1}', True),
        (Calls(BOTH), LLAMA_TIME, True),
        (Calls(BOTH), '{"name": "other", "parameters": {}}', False),
        (Calls(BOTH), '{"name": "x"}', False),
    ],
)
def test_llama3(calls: Calls, text: str, accepted: bool, tokens: bool, marked: Sampler) -> None:
    sampler = marked if tokens else plain()
    dialect = special(marked, "llama3") if tokens else Dialect("llama3")
    assert sampler.accepts(compose(dialect, None, calls), text) is accepted


def test_llama3_with_its_tag(marked: Sampler) -> None:
    dialect = special(marked, "llama3")
    for calls in (Calls(BOTH, "required"), Calls(BOTH)):
        assert marked.accepts(compose(dialect, None, calls), f"<|python_tag|>{LLAMA_CALL}; {LLAMA_TIME}")
    assert marked.accepts(compose(dialect, None, Calls(BOTH)), f"So: <|python_tag|>{LLAMA_TIME}")
    assert not marked.accepts(compose(dialect, None, Calls(BOTH)), "So: <|python_tag|>print(1)")


def test_mistral(marked: Sampler) -> None:
    old = (
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bonn"}}, '
        '{"name": "what-time.is_it", "arguments": {}}]'
    )
    new = '[TOOL_CALLS]get_weather[ARGS]{"city": "Bonn"}[TOOL_CALLS]what-time.is_it[ARGS]{}'
    required = Calls(BOTH, "required")
    assert plain().accepts(compose(Dialect("mistral"), None, required), old)
    assert plain().accepts(compose(Dialect("mistral"), None, Calls(BOTH)), f"So: {old}")
    assert not plain().accepts(compose(Dialect("mistral"), None, required), old.replace("Bonn", "Bonn am Rhein"))
    assert marked.accepts(compose(special(marked, "mistral"), None, required), new)
    assert not marked.accepts(compose(special(marked, "mistral"), None, required), old)
    without_arguments = Dialect("mistral", "none", {"[TOOL_CALLS]": marked.special["[TOOL_CALLS]"]})
    assert marked.accepts(compose(without_arguments, None, required), old)


def test_free_answers_have_no_grammar() -> None:
    assert compose(Dialect(), None, None) == ""
    assert compose(Dialect("hermes"), None, Calls([Function("f", CITY), Function("g")])) == ""
    assert compose(Dialect("hermes"), None, Calls([Function("f", CITY)], parallel=False)) != ""


def test_a_model_of_unknown_ways_can_not_be_made_to_call() -> None:
    with pytest.raises(ConstraintError, match="not known how this model calls tools"):
        compose(Dialect(), None, Calls(BOTH, "required"))


def test_shape_or_calls() -> None:
    grammar = compose(Dialect("hermes", "think"), Shape("json_object", True), Calls([Function("get_weather", CITY)]))
    loose = '<tool_call>\n{"name": "get_weather", "arguments": {"anything": 1}}\n</tool_call>'
    for text, accepted in (('{"a": [1]}', True), (loose, True), ("Hello", False), (f"<think>x</think>{loose}", True)):
        assert plain().accepts(grammar, text) is accepted, text


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ('{"a":1}', True),
        ('{"a": 1, "b": [1, 2]}', True),
        ('{\n  "a": {\n    "b": 1\n  }\n}', True),
        ("{}", True),
        ('{"a":  1}', False),
        ('{"a":\n\n1}', False),
        ('{"a":' + "\n" + " " * 17 + "1}", False),
        ("[1]", False),
        (' {"a":1}', False),
        ('{"a":1}\n', False),
        ('{"a":1} so', False),
        ('{"a":', False),
    ],
)
def test_json_objects(text: str, accepted: bool) -> None:
    assert plain().accepts(compose(Dialect(), Shape("json_object", True), None), text) is accepted


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d{3}-\d{4}", "123-4567", "123-456"),
        ("a/b", "a/b", "ab"),
        (r"a\/b", "a/b", "ab"),
        ("[/]+", "//", ""),
        ("a\nb", "a\nb", "ab"),
        ("a\\\nb", "a\nb", "ab"),
        ("(yes|no)!?", "no!", "maybe"),
        ("^x+$", "xx", ""),
        ("[äö]😀", "ö😀", "o😀"),
        (r'"\\', '"\\', '"'),
    ],
)
def test_regexes(pattern: str, yes: str, no: str) -> None:
    grammar = compose(Dialect(), Shape("regex", pattern), None)
    plain().checker.check_now(grammar)
    assert plain().accepts(grammar, yes)
    assert not plain().accepts(grammar, no)
    for seed in range(3):
        assert re.fullmatch(pattern, plain().draw(grammar, random.Random(seed)))


def test_choices() -> None:
    choices = ["yes", 'a"b', "c\\d", "é😀", "two\nlines\t", "/x/", "\x7f\x00", "yes, but"]
    grammar = compose(Dialect(), Shape("choice", choices), None)
    for choice in choices:
        assert plain().accepts(grammar, choice)
    assert not plain().accepts(grammar, "no")
    drawn = {plain().draw(grammar, random.Random(seed)) for seed in range(30)}
    assert len(drawn) > 3 and drawn <= set(choices)
    with pytest.raises(ConstraintError, match="half a surrogate pair"):
        compose(Dialect(), Shape("choice", ["\ud800"]), None)


LARK = 'start: word ("," word)*\nword: /[a-c]+/\n%ignore " "\n'
GBNF = 'root ::= word ("," word)*\nword ::= [a-c]+\n'


@pytest.mark.parametrize("grammar", [LARK, GBNF], ids=["lark", "gbnf"])
@pytest.mark.parametrize("thinks", ["none", "think"])
def test_grammars(grammar: str, thinks: ReasoningForm) -> None:
    composed = compose(Dialect("none", thinks), Shape("grammar", grammar), None)
    plain().checker.check_now(composed)
    assert plain().accepts(composed, "a,bc")
    assert not plain().accepts(composed, "a,,bc")
    assert plain().accepts(composed, "a, bc") is (grammar is LARK)
    assert plain().accepts(composed, "<think>x,,</think>\n\na,bc") is (thinks == "think")
    inside = compose(Dialect("none", "think"), Shape("grammar", grammar), None, in_reasoning=True)
    assert plain().accepts(inside, "x,,</think>\n\na,bc")
    assert not plain().accepts(inside, "a,bc")


def test_reasoning_before_json(marked: Sampler) -> None:
    shape = Shape("json_schema", {"enum": [1]})
    for sampler, dialect in ((plain(), Dialect("none", "think")), (marked, special(marked, "none", "think"))):
        grammar = compose(dialect, shape, None)
        for text in ("1", "<think>1 or 2?</think>1", "<think>\nhm\n</think>\n\n1", "\n<think></think>1"):
            assert sampler.accepts(grammar, text), text
        for text in ("<think>1", "2", "<think>x</think>", "<think>x</think>2", "1</think>1"):
            assert not sampler.accepts(grammar, text), text
        inside = compose(dialect, shape, None, in_reasoning=True)
        assert sampler.accepts(inside, "hm\n</think>\n\n1")
        assert not sampler.accepts(inside, "1")
        for seed in range(5):
            text = sampler.draw(grammar, random.Random(seed), MARKERS)
            parts = parsed(dialect, [text], tools=False)
            assert "".join(part.text for part in parts if isinstance(part, Content)) == "1"
            assert all(isinstance(part, Content | Reasoning) for part in parts)


def test_no_text_holds_a_special_token(marked: Sampler) -> None:
    grammar = compose(special(marked, "hermes"), None, Calls(BOTH))
    assert marked.accepts(grammar, "Hello")
    assert not marked.accepts(grammar, f"Hello{END}there")
    assert not marked.accepts(grammar, "Hello</tool_call>")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape("json_schema", False), "no value matches the schema 'false'"),
        (Shape("json_schema", []), "a JSON schema is an object"),
        (Shape("grammar", " "), "the grammar is empty"),
        (Shape("grammar", "hello"), r"neither Lark \(with a rule 'start:'\) nor GBNF: Expected ::="),
        (Shape("grammar", "root ::= " + "(" * 1400 + '"a"' + ")" * 1400), "neither Lark"),
        (Shape("grammar", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(4000))), "more than 1500 rules"),
    ],
)
def test_faults(shape: Shape, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        compose(Dialect(), shape, None)


def test_faults_in_tools() -> None:
    for parameters, message in (
        ({"type": "string"}, "the parameters of 'f': arguments are an object"),
        ({"$ref": "other.json"}, "the parameters of 'f': '.ref' 'other.json': only references into the schema itself"),
    ):
        with pytest.raises(ConstraintError, match=message):
            compose(Dialect("hermes"), None, Calls([Function("f", parameters)], "required"))


def test_options_of_a_client_do_not_count() -> None:
    schema = {"type": "integer", "not": {"const": 1}, "x-guidance": {"lenient": True}}
    with pytest.raises(ConstraintError, match="not"):
        plain().checker.check_now(compose(Dialect(), Shape("json_schema", schema), None))


def test_the_demo_has_no_markers_of_its_own() -> None:
    assert plain().special == {}
