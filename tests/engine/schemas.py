"""Random JSON schemas that can be satisfied in a few dozen tokens, and grammars of them."""

import json
import random
from typing import Any

_NAMES = ("id", "name", "größe", "a b", "x", "tags", "wert", "日付")


def random_schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema of up to ``depth`` levels of objects and arrays; all that it permits is short."""
    kinds = [_string, _integer, _enum, _constant, _pattern, _simple]
    if depth:
        kinds += [_object, _object, _array, _choice]
    kind = draw.choice(kinds)
    return kind(draw, depth)


def grammar(schema: dict[str, Any]) -> str:
    """llguidance's grammar for ``schema``, without the whitespace that an untrained model never gets out of."""
    return json.dumps({"grammars": [{"json_schema": schema | {"x-guidance": {"whitespace_flexible": False}}}]})


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(_NAMES, draw.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth - 1) for name in names},
        "required": [name for name in names if draw.random() < 0.7],
        "additionalProperties": False,
    }


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 2)
    return {
        "type": "array",
        "items": random_schema(draw, depth - 1),
        "minItems": least,
        "maxItems": least + draw.randint(0, 2),
    }


def _choice(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}


def _string(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 6)}


def _pattern(draw: random.Random, depth: int) -> dict[str, Any]:
    patterns = ("^[A-Z]{2}[0-9]{4}$", "^(ab|cd){1,3}$", "^[0-9]{4}-[0-9]{2}$", "^x?y{2,5}$")
    return {"type": "string", "pattern": draw.choice(patterns)}


def _integer(draw: random.Random, depth: int) -> dict[str, Any]:
    least = draw.randint(-5000, 5000)
    return {"type": "integer", "minimum": least, "maximum": least + draw.randint(0, 10_000)}


def _enum(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": draw.sample(["red", "grün", "", 'quo"te', 3, -0.5, None, True, False], draw.randint(1, 5))}


def _constant(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"const": draw.choice(["always", 42, None, "\n"])}


def _simple(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"type": draw.choice(["boolean", "null"])}
