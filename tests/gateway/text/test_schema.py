"""Schemas that llguidance would not survive, or take for possible, are refused before."""

from typing import Any

import pytest

from gateway.text.schema import MAX_NESTING, ConstraintError, check_schema
from tests.schemas import random_schemas


def chain(length: int) -> dict[str, Any]:
    """References that lead from one to the next."""
    definitions: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$defs": {**definitions, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def test_good_schemas() -> None:
    for schema in random_schemas(200):
        assert check_schema(schema) is schema
    assert check_schema(True) == {}
    check_schema(chain(500))
    check_schema(nested(MAX_NESTING))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (None, "an object, or true"),
        ("{}", "an object, or true"),
        (False, "no value matches"),
        (chain(3000), "together lead more than 1000 levels deep"),
        (nested(MAX_NESTING + 1), "nested more than 60 levels deep"),
        (nested(50_000), "nested more than 60 levels deep"),
        ({"$ref": "#/$defs/x"}, "'#/.defs/x' points to nothing"),
        ({"$ref": "#/allOf/1", "allOf": [{}]}, "'#/allOf/1' points to nothing"),
        ({"$ref": "http://example.com/x"}, "only references into the schema itself"),
        ({"$ref": "#anchor"}, "only references into the schema itself"),
        ({"$ref": "#"}, "without end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without end"),
        ({"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]}, "without end"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
            "without end",
        ),
    ],
)
def test_refused(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"const": {"$ref": "nowhere"}, "enum": [{"$ref": "nowhere"}]},
        {"properties": {"$ref": {"type": "string"}}},
        {"$defs": {"a/b~c d": {"type": "null"}}, "$ref": "#/$defs/a~1b~0c%20d"},
        {"prefixItems": [{"type": "null"}], "items": {"$ref": "#/prefixItems/0"}},
    ],
)
def test_accepted(schema: dict[str, Any]) -> None:
    assert check_schema(schema) is schema


def test_many_names_for_one_place_are_counted_each() -> None:
    """Or references to the same place, spelt differently, would lead llguidance as deep as they like."""
    spellings = [
        f"#/%24def{'%73' if i & 1 else 's'}/" + "".join(f"%{ord(c):02x}" for c in f"{i:04}") for i in range(2000)
    ]
    schema = {"$defs": {f"{i:04}": {"anyOf": [{"$ref": one}]} for i, one in enumerate(spellings)}}
    with pytest.raises(ConstraintError, match="levels deep"):
        check_schema(schema)
