"""May a client's JSON schema be handed to llguidance? What llguidance itself would not notice, or not survive."""

from collections.abc import Iterable, Iterator, Set
from typing import Any, Final
from urllib.parse import unquote

MAX_NESTING: Final = 60
"""Objects and arrays within each other. llguidance's own reader of JSON stops at 128, and we wrap schemas in others."""

MAX_FOLLOWED: Final = 1000
"""The nesting of a schema and of all that it refers to, together. llguidance follows references on the stack: with a
chain of 3,000 levels it overflows 8 MiB and takes the process with it (1.9.1)."""


class ConstraintError(ValueError):
    """An answer can't be held to this; the message says why, for the person who sent it."""


def check_schema(schema: object) -> dict[str, Any]:
    """The schema as an object, if it is one that some value can match, as far as can be seen here.

    Raises:
        ConstraintError: it is no schema, nested too deeply, refers to something outside of it, or never ends.
    """
    if schema is True:
        return {}
    if schema is False:
        raise ConstraintError("no value matches the schema 'false'")
    if not isinstance(schema, dict):
        raise ConstraintError("a JSON schema is an object, or true")
    _check_ends(schema, _targets(schema))
    return schema


def _targets(schema: dict[str, Any]) -> dict[str, Any]:
    """What each reference points to that can be reached from the schema.

    Places are counted once for each way in which they are spelt, as llguidance follows them.
    """
    targets: dict[str, Any] = {}
    depths = {id(schema): _nesting(schema)}
    followed = depths[id(schema)]
    left: list[object] = [schema]
    for place in left:
        for reference in _references(place):
            if reference in targets:
                continue
            target = targets[reference] = _resolve(schema, reference)
            if id(target) not in depths:
                depths[id(target)] = _nesting(target)
                left.append(target)
            followed += depths[id(target)]
            if followed > MAX_FOLLOWED:
                raise ConstraintError(f"the schema's references together lead more than {MAX_FOLLOWED} levels deep")
    return targets


def _nesting(node: object) -> int:
    """How many objects and arrays are within each other."""
    depth, level = 0, [node]
    while level:
        depth += 1
        if depth > MAX_NESTING:
            raise ConstraintError(f"the schema is nested more than {MAX_NESTING} levels deep")
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, (dict, list))]
    return depth


def _inside(node: object) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


_DATA: Final = frozenset({"const", "default", "enum", "example", "examples"})
_NAMED: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def _references(schema: object) -> Iterator[str]:
    """What ``$ref`` names in a schema and those within it, but not in data, and not where it is a property's name."""
    left = [schema]
    while left:
        node = left.pop()
        if not isinstance(node, dict):
            left.extend(_inside(node))
            continue
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference
        for key, value in node.items():
            if key in _NAMED:
                left.extend(_inside(value))
            elif key not in _DATA:
                left.append(value)


def _resolve(schema: dict[str, Any], reference: str) -> object:
    """What a JSON pointer (RFC 6901) within the schema points to."""
    if reference != "#" and not reference.startswith("#/"):
        raise ConstraintError(f"'$ref' {reference!r}: only references into the schema itself, as '#/…', are followed")
    node: Any = schema
    for step in unquote(reference[2:]).split("/") if len(reference) > 1 else ():
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            raise ConstraintError(f"'$ref' {reference!r} points to nothing")
    return node


def _check_ends(schema: dict[str, Any], targets: dict[str, Any]) -> None:
    """Refuse a schema of which every value would have to contain another: a model under it could never stop."""
    ending: set[str] = set()
    while True:
        more = {name for name, node in targets.items() if name not in ending and _ends(node, ending)}
        if not more:
            break
        ending |= more
    if not _ends(schema, ending):
        raise ConstraintError("no value matches the schema: it requires itself again within itself, without end")


def _ends(node: object, ending: Set[str]) -> bool:
    """Whether some value of a schema ends, if those of the references in ``ending`` do."""
    if not isinstance(node, dict) or "const" in node or "enum" in node:
        return True
    reference = node.get("$ref")
    if isinstance(reference, str) and reference not in ending:
        return False
    for key in ("anyOf", "oneOf"):
        choices = node.get(key)
        if isinstance(choices, list) and choices and not any(_ends(choice, ending) for choice in choices):
            return False
    parts = node.get("allOf")
    if isinstance(parts, list) and not all(_ends(part, ending) for part in parts):
        return False
    if node.get("type") == "object":
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            return all(_ends(properties.get(name), ending) for name in required if isinstance(name, str))
    if node.get("type") == "array" and isinstance(node.get("minItems"), int) and node["minItems"] > 0:
        return _ends(node.get("items"), ending)
    return True
