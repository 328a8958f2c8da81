"""Where does it stand in the file? YAML as plain values, with the line of each."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value from the top of the document."""


def listed(names: Iterable[Any]) -> str:
    """``a, b or c``."""
    *before, last = map(str, names)
    return f"{', '.join(before)} or {last}" if before else last


class Fault(NamedTuple):
    """What is wrong in a file: the message says what would be right. ``line`` counts from 1."""

    line: int
    path: Path
    message: str

    def shown(self, file: str) -> str:
        """The fault in a line, as compilers write theirs."""
        return f"{file}:{self.line}: {show(self.path)}{': ' if self.path else ''}{self.message}"


def show(path: Path) -> str:
    """``targets.qwen.urls[0]``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f"{'.' if text else ''}{step}"
    return text


class Document(NamedTuple):
    """A document's ``value``, the ``lines`` of all that is in it, and what YAML itself has against it."""

    value: Any
    lines: Mapping[Path, int]
    faults: tuple[Fault, ...] = ()

    def fault(self, path: Path, message: str) -> Fault:
        """A fault at ``path``, or the nearest above it that stands in the file."""
        at = path
        while at and at not in self.lines:
            at = at[:-1]
        return Fault(self.lines.get(at, 1), path, message)


def read(text: str) -> Document:
    """The YAML document in ``text``."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        lines: dict[Path, int] = {}
        faults: list[Fault] = []
        _walk(node, (), lines, faults)
        value = None if faults else loader.construct_document(node)
        return Document(value, lines, tuple(faults))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        about = f" {error.context}" if error.context else ""
        return Document(None, {}, (Fault(line, (), f"this is no YAML: {error.problem}{about}"),))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        return Document(None, {}, (Fault(1, (), f"this is no YAML: {reason or 'it is nested too deeply'}"),))


def _walk(node: Node, path: Path, lines: dict[Path, int], faults: list[Fault]) -> None:
    """Note the line of everything below ``node``, and what mappings have twice or by no name."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, faults)
    if not isinstance(node, MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            said = key.value if isinstance(key, ScalarNode) else "a list or a mapping"
            faults.append(Fault(line, path, f"{said} can't be a name here: put it in quotes if it is one"))
            continue
        if key.value in seen:
            faults.append(Fault(line, (*path, key.value), "this stands here twice: remove one of the two"))
        seen.add(key.value)
        lines[(*path, key.value)] = line
        _walk(value, (*path, key.value), lines, faults)
