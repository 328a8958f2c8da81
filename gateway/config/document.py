"""Where does it stand in the file? YAML as plain values, with the line of each."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

_MOST: Final = 300_000
"""Values of a file: no more have to be looked at where aliases of aliases stand for any number of them."""
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"

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


class _Loader(yaml.SafeLoader):
    """YAML as it is, except that what looks like a date is text, as all that is written."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(text: str) -> Document:
    """The YAML document in ``text``."""
    try:
        loader = _Loader(text)
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
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Document(None, {}, (Fault(line, (), f"this is no YAML: it has the character U+{error.character:04X}"),))
    except RecursionError:
        return Document(None, {}, (Fault(1, (), "this is nested too deeply, or refers to itself"),))
    except (yaml.YAMLError, ValueError) as error:
        return Document(None, {}, (Fault(1, (), f"this is no YAML: {' '.join(str(error).split())}"),))


def _walk(node: Node, path: Path, lines: dict[Path, int], faults: list[Fault]) -> None:
    """Note the line of everything below ``node``, and what mappings have twice or by no name."""
    if len(lines) >= _MOST:
        raise ValueError(f"with its aliases it has more than {_MOST:,} values")
    lines.setdefault(path, node.start_mark.line + 1)
    if path and isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null" and not node.value:
        faults.append(Fault(lines[path], path, "nothing stands here: say what it is, or leave it out"))
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
