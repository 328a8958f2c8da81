"""A thousand random JSON schemas that some value matches, always the same ones for a seed, for tests of constraints."""

import random
import string
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]

COUNT = 1000
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
PATTERNS = (
    r"^[A-Z]{2}-\d{3}$",
    r"^(north|south)(east|west)?$",
    r"^[a-z_][a-z0-9_]{0,8}$",
    r"^#[0-9a-f]{6}$",
    r"^\+?\d{1,3} \d{4,6}$",
    r"^é[äöü]{1,3}/\\?$",
)
NAMES = (
    "id",
    "name",
    "größe",
    "is valid",
    "x-y",
    "a.b",
    "tag/s",
    'quo"te',
    "back\\slash",
    "😀",
    "",
    "$ref",
    "type",
    "items",
)


def random_schemas(count: int = COUNT, seed: int = 20) -> Iterator[Schema]:
    """``count`` schemas: objects, arrays, enums, bounded numbers, strings, choices, references, nested in each other.

    Each is made so that a value can match it, and so that what it allows is finite or at least likely to end: strings
    and arrays have upper bounds, and objects only the properties that they name.
    """
    rng = random.Random(seed)
    for _ in range(count):
        yield _Maker(rng).root()


class _Maker:
    """Makes one schema; `definitions` are what its references may point to."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.definitions: dict[str, Schema] = {}
        self.makers: list[tuple[float, Callable[[int], Schema]]] = [
            (3.0, self.object),
            (2.0, self.array),
            (2.0, self.string),
            (1.5, self.number),
            (1.5, self.integer),
            (1.0, self.enum),
            (0.7, self.const),
            (0.7, lambda depth: {"type": "boolean"}),
            (0.4, lambda depth: {"type": "null"}),
            (0.7, self.several_types),
            (1.2, self.any_of),
            (0.8, self.all_of),
            (1.0, self.reference),
        ]

    def root(self) -> Schema:
        schema = self.object(3) if self.rng.random() < 0.8 else self.any(3)
        if self.rng.random() < 0.15:
            schema = self.tree()
        if self.definitions:
            schema = {**schema, "$defs": self.definitions}
        if self.rng.random() < 0.2:
            schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Made up", **schema}
        return schema

    def any(self, depth: int) -> Schema:
        makers = self.makers if depth > 0 else [one for one in self.makers if one[1] in self._leaves()]
        (make,) = self.rng.choices([make for _, make in makers], [weight for weight, _ in makers])
        return make(depth - 1)

    def _leaves(self) -> list[Callable[[int], Schema]]:
        return [self.string, self.number, self.integer, self.enum, self.const]

    def object(self, depth: int) -> Schema:
        names = self.rng.sample(NAMES, self.rng.randint(0, 4))
        schema: Schema = {
            "type": "object",
            "properties": {name: self.any(depth) for name in names},
            "required": [name for name in names if self.rng.random() < 0.7],
            "additionalProperties": False,
        }
        if self.rng.random() < 0.1:
            keys = {"^k[0-9]{1,2}$": self.any(0), "^v[a-c]$": self.any(0)}
            return {"type": "object", "patternProperties": keys, "additionalProperties": False, "maxProperties": 2}
        if self.rng.random() < 0.2:
            schema["description"] = 'An object, as "it" is called {here}.'
        return schema

    def array(self, depth: int) -> Schema:
        least = self.rng.randint(0, 2)
        schema: Schema = {"type": "array", "items": self.any(depth), "minItems": least, "maxItems": least + 2}
        if self.rng.random() < 0.25:
            fixed = [self.any(depth) for _ in range(self.rng.randint(1, 2))]
            schema.update(prefixItems=fixed, items=False, minItems=len(fixed), maxItems=len(fixed))
        return schema

    def string(self, depth: int = 0) -> Schema:
        kind = self.rng.random()
        if kind < 0.35:
            least = self.rng.randint(0, 4)
            return {"type": "string", "minLength": least, "maxLength": least + self.rng.randint(0, 8)}
        if kind < 0.7:
            return {"type": "string", "pattern": self.rng.choice(PATTERNS)}
        return {"type": "string", "format": self.rng.choice(FORMATS)}

    def integer(self, depth: int = 0) -> Schema:
        low = self.rng.randint(-1000, 1000)
        schema: Schema = {"type": "integer", "minimum": low, "maximum": low + self.rng.randint(0, 500)}
        if self.rng.random() < 0.3:
            schema = {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + self.rng.randint(2, 99)}
        if self.rng.random() < 0.2:
            schema = {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": self.rng.choice((2, 5, 7))}
        return schema

    def number(self, depth: int = 0) -> Schema:
        low = round(self.rng.uniform(-100, 100), 2)
        return {"type": "number", "minimum": low, "maximum": round(low + self.rng.uniform(0.5, 50), 2)}

    def enum(self, depth: int = 0) -> Schema:
        return {"enum": [self.value() for _ in range(self.rng.randint(1, 4))]}

    def const(self, depth: int = 0) -> Schema:
        return {"const": self.value()}

    def value(self) -> Any:
        return self.rng.choice(
            ("on", "off", 'a "b"\n\\c', "ünï 😀", "", 0, -7, 2.5, True, False, None, [], [1, "x"], {"k": [None]})
        )

    def several_types(self, depth: int) -> Schema:
        low = self.rng.randint(0, 50)
        return {
            "type": self.rng.sample(["string", "integer", "null", "boolean"], 2),
            "maxLength": 6,
            "minimum": low,
            "maximum": low + 50,
        }

    def any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.any(depth) for _ in range(self.rng.randint(1, 3))]}

    def all_of(self, depth: int) -> Schema:
        if self.rng.random() < 0.5:
            low = self.rng.randint(-50, 50)
            return {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + self.rng.randint(0, 20)}]}
        first, second = self.rng.sample(NAMES, 2)
        closed = {"type": "object", "additionalProperties": False}
        return {
            "allOf": [
                {**closed, "properties": {first: self.any(depth), second: True}, "required": [first]},
                {**closed, "properties": {first: True, second: self.any(depth)}},
            ]
        }

    def reference(self, depth: int) -> Schema:
        if self.definitions and (depth <= 0 or self.rng.random() < 0.5):
            return {"$ref": f"#/$defs/{self.rng.choice(sorted(self.definitions))}"}
        made = self.any(depth) if depth > 0 else self.string()
        name = "".join(self.rng.choices(string.ascii_letters, k=6))
        self.definitions[name] = made
        return {"$ref": f"#/$defs/{name}"}

    def tree(self) -> Schema:
        """A schema that refers to itself, and may stop at every level."""
        self.definitions["tree"] = {
            "type": "object",
            "properties": {
                "leaf": self.any(0),
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
            },
            "required": ["leaf"],
            "additionalProperties": False,
        }
        return {"$ref": "#/$defs/tree"}
