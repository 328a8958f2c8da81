"""Grammars are compiled before their request goes to a worker, and what is wrong is said in words."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine.demo import MODEL_FOLDER
from gateway.text.constraint import compose
from gateway.text.dialect import Dialect
from gateway.text.grammar_check import MAX_GRAMMAR, GrammarChecker, explain
from gateway.text.schema import ConstraintError
from tests.gateway.text.sampling import plain
from tests.gateway.text.test_constraint import Calls, Function, Shape


def checker(path: Path = MODEL_FOLDER / "tokenizer.json") -> GrammarChecker:
    return GrammarChecker(path, plain().size, [plain().end])


def fault(shape: Shape) -> str:
    with pytest.raises(ConstraintError) as caught:
        plain().checker.check_now(compose(Dialect(), shape, None))
    return str(caught.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"if": {}, "then": {}}, 'Unimplemented keys: ["if", "then"]'),
        ({"type": "thing"}, "Invalid type: thing"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength (5) is greater than maxLength (2)"),
        ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "required property 'a' is unsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "incompatible types"),
        ({"enum": []}, "anyOf is empty"),
        ({"type": "string", "format": "colour"}, "Unknown format: colour"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf constraints are not supported. use 'anyOf'"),
    ],
)
def test_schemas_that_can_not_be_enforced(schema: dict[str, Any], message: str) -> None:
    said = fault(Shape("json_schema", schema))
    assert message in said
    assert "\n" not in said and "%json" not in said and "x-guidance" not in said


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape("regex", "(a"), "unclosed group"),
        (Shape("regex", r"(a)\1"), "backreferences are not supported"),
        (Shape("regex", r"a[^\s\S]"), "no answer matches it"),
        (Shape("grammar", "start: foo"), 'unknown name: "foo"'),
        (Shape("grammar", 'start: a\na: a "x"'), "no answer matches it"),
        (Shape("grammar", "start: <|nothing|>"), "unknown special token"),
    ],
)
def test_other_grammars(shape: Shape, message: str) -> None:
    assert message in fault(shape)


def test_whose_tool_it_is() -> None:
    functions = [Function("fine"), Function("bad.one", {"properties": {"x": {"not": {}}}})]
    for dialect in (Dialect("hermes"), Dialect("mistral", "none", {"[TOOL_CALLS]": 3, "[ARGS]": 4})):
        with pytest.raises(ConstraintError, match=r"^the parameters of 'bad.one': Unimplemented keys: \[\"not\"\]$"):
            plain().checker.check_now(compose(dialect, None, Calls(functions, "required")))


def test_long_messages_are_cut() -> None:
    assert len(explain("x" * 5000, "")) < 700
    assert explain("at 99(1): what\n  99 | line\n     ^\n", "start: a") == "what"


def test_a_grammar_that_is_too_large() -> None:
    with pytest.raises(ConstraintError, match="characters of grammar, more than"):
        checker().check_now("a" * (MAX_GRAMMAR + 1))


def test_verdicts_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes((MODEL_FOLDER / "tokenizer.json").read_bytes())
    mine = checker(path)
    good, bad = 'start: "a"', "start: a"

    async def check() -> None:
        for _ in range(2):
            await mine.check(good)
            with pytest.raises(ConstraintError, match="unknown name"):
                await mine.check(bad)

    asyncio.run(check())
    mine.close()
    asyncio.run(check())  # no thread is needed any more


def test_verdicts_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.text.grammar_check._KEPT", 2)
    mine = checker()
    for word in "abc":
        mine.check_now(f'start: "{word}"')
    assert len(mine._known) == 2


@pytest.mark.parametrize(("content", "message"), [(None, "no tokenizer.json"), ("{}", "can't be held to a grammar")])
def test_without_a_tokenizer(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConstraintError, match=message):
        checker(path).check_now('start: "a"')


def test_without_an_end_of_sequence() -> None:
    mine = GrammarChecker(MODEL_FOLDER / "tokenizer.json", plain().size, [plain().size])
    with pytest.raises(ConstraintError, match="no end-of-sequence token"):
        mine.check_now('start: "a"')


def test_padding_in_a_tokenizer_file(tmp_path: Path) -> None:
    definition = json.loads((MODEL_FOLDER / "tokenizer.json").read_text())
    definition["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    checker(tmp_path / "tokenizer.json").check_now('start: "a"')
