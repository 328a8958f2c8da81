"""What in docs/ is made from the code? ``python docs/generate.py`` writes those pages: `pages` has the list.

Whatever can be read off the code is not written a second time by hand; a test fails when the pages are out of date.
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ROOMS = ("gateway", "scheduler", "engine", "kernels", "bench")
_NOTE = "Made from the code by `python docs/generate.py`: change the code, not this page."


def reference() -> str:
    """reference.md: every command, option, endpoint, metric and error code."""
    return "\n".join(_reference()) + "\n"


def files() -> str:
    """files.md: every module with the question that its first line says it answers."""
    return "\n".join(_files()) + "\n"


def conformance() -> str:
    """conformance.md: every field of every request body, and what becomes of it."""
    return "\n".join(_conformance()) + "\n"


def gpu_kernels() -> str:
    """gpu-kernels.md: what each Triton kernel needs of a GPU."""
    return "\n".join(_gpu_kernels()) + "\n"


def pages() -> dict[Path, str]:
    """Each page that is made here, and what belongs in it."""
    return {
        DOCS / "reference.md": reference(),
        DOCS / "conformance.md": conformance(),
        DOCS / "files.md": files(),
        DOCS / "gpu-kernels.md": gpu_kernels(),
    }


def _reference() -> Iterator[str]:
    from gateway.app import ROUTES
    from gateway.openapi import summary
    from gateway.telemetry.metrics import METRICS
    from gateway.wire.errors import ERROR_CODES
    from penstock import build_parser

    yield from ("# Reference", "", _NOTE, "", "## Commands", "")
    for name, parser in subparsers(build_parser()).items():
        yield from (f"### penstock {name}", "", parser.description or "", "")
        yield from _table(("option", "meaning"), [(_code(_usage(one)), meaning(one)) for one in options(parser)])
    yield from _configuration()
    yield from ("## Endpoints", "")
    rows = [
        (_code(f"{method} {path}"), summary(handler))
        for path, methods in ROUTES.items()
        for method, handler in methods.items()
    ]
    yield from _table(("endpoint", "what it does"), rows)
    yield from ("## Metrics", "", "On the Prometheus page, `/metrics`.", "")
    yield from _table(
        ("metric", "kind", "labels", "meaning"),
        [
            (_code(name), metric.kind, ", ".join(map(_code, metric.labels)), metric.help)
            for name, metric in METRICS.items()
        ],
    )
    yield from ("## Error codes", "", "In the field `code` of OpenAI's error object.", "")
    yield from _table(("code", "meaning"), [(_code(code), meaning) for code, meaning in ERROR_CODES.items()])


def _configuration() -> Iterator[str]:
    """What may stand in a configuration file, section by section."""
    from gateway.config.keys import ApiKey, Counting, KeyLimits
    from gateway.config.models import Fallback, Model, Rollout, Sampling, Shadow, Timeout, Variant
    from gateway.config.structs import NativeTarget, OpenAITarget, VllmTarget, schema

    made = schema()["$defs"]
    yield from (
        "## Configuration file",
        "",
        "Of `penstock serve --config FILE`: YAML with two sections, `models` and `targets`, each a mapping from names "
        "to what follows, and where they are needed `keys`, a list, and `limits`. Sizes may be written as `2GiB`, "
        "times as `500ms`, shares as `90%`, amounts as `200k`. Other fields are refused.",
        "",
    )
    sections = (
        ("A model", Model, None),
        ("Each of its `variants`", Variant, None),
        ("`sampling` of a variant", Sampling, None),
        ("A `fallback`: the name of a target, or", Fallback, None),
        ("`timeout` of a model", Timeout, None),
        ("A `shadow`", Shadow, None),
        ("`rollout` of a model", Rollout, None),
        ("A target with `engine: native`", NativeTarget, None),
        ("A target with `engine: vllm`: the same, and", VllmTarget, NativeTarget),
        ("A target with `engine: openai`", OpenAITarget, None),
        ("A key", ApiKey, None),
        ("Limits of a key: `limits`, and each of `model_limits`", KeyLimits, None),
        ("`limits`: where they are counted", Counting, None),
    )
    for title, struct, beside in sections:
        known = {"engine", *(beside.__struct_fields__ if beside is not None else ())}
        fields = {name: field for name, field in made[struct.__name__]["properties"].items() if name not in known}
        shown = [
            (_code(name), _json_type(field), field.get("description", "as in a chat request"))
            for name, field in fields.items()
        ]
        yield from (f"### {title}", "", *_table(("field", "type", "meaning"), shown))


def _conformance() -> Iterator[str]:
    from gateway.openapi import OPERATIONS

    yield from ("# Conformance: every field of every request", "", _NOTE, "")
    yield from (
        "A field *works*, or it has *no effect*, as at OpenAI or Anthropic, or it is *refused* with a 400 that names "
        "it, unless it says what is so anyway. Fields that are not listed are accepted and mean nothing, as at OpenAI; "
        "`/v1/messages` refuses them, as Anthropic does. `null` means the default everywhere. Files are uploaded as "
        "forms; see the [reference](reference.md).",
        "",
    )
    for (method, path), operation in OPERATIONS.items():
        if operation.body is None:
            continue
        yield from (f"## {method} {path}", "")
        yield from _table(("field", "type", "", "note"), list(_fields(operation.body)))


def _fields(body: type) -> Iterator[tuple[str, str, str, str]]:
    """The rows of one request: a field, its JSON type, what becomes of it, and why or how."""
    _, components = msgspec.json.schema_components([body], ref_template="{name}")
    properties = components[body.__name__]["properties"]
    refused, ignored = getattr(body, "refused", {}), getattr(body, "ignored", {})
    notes = {path.rstrip("_"): ("refused", _refusal(refusal)) for path, refusal in refused.items()}
    notes |= {path: ("no effect", note) for path, note in ignored.items()}
    for name, schema in properties.items():
        status, note = notes.pop(name, ("works", ""))
        yield _code(name), _json_type(schema), status, note
        for path in [path for path in notes if path.startswith(f"{name}.")]:
            status, note = notes.pop(path)
            yield _code(path), "", status, note
    if notes:
        raise ValueError(f"{body.__name__} has no field {', '.join(notes)}")


def _refusal(refusal: Any) -> str:
    neutral = " or ".join(_code(json.dumps(value)) for value in refusal.neutral if value is not None)
    return f"{refusal.reason}{f'; {neutral} is accepted' if neutral else ''}"


def _json_type(schema: dict[str, Any]) -> str:
    """A property's type in a word or two."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(t for t in map(_json_type, schema["anyOf"]) if t != "null"))
    if "enum" in schema:
        return " or ".join(_code(str(value)) for value in schema["enum"] if value is not None)
    kind = schema.get("type", "object" if "$ref" in schema else "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and schema.get("items"):
        return f"array of {_json_type(schema['items'])}"
    return str(kind)


def _files() -> Iterator[str]:
    yield from ("# Every file, and the question it answers", "", _NOTE, "")
    for room in ROOMS:
        yield from (f"## {room}", "")
        rows = [
            (f"[`{path.relative_to(ROOT)}`](../{path.relative_to(ROOT)})", question(path.read_text()))
            for path in sorted((ROOT / room).rglob("*.py"))
        ]
        yield from _table(("file", "question"), rows)


def _gpu_kernels() -> Iterator[str]:
    made = json.loads((ROOT / "tests/kernels/gpu_resources.json").read_text())
    yield from ("# What each GPU kernel needs", "", "Made by `python docs/generate.py` from what a test compiles.", "")
    yield from (
        f"Compiled by Triton {made['triton']} for Hopper (`sm_90`) and, where it can run there, Ampere (`sm_80`), at "
        "the constants that models have; nothing here was measured on a GPU. Registers and spilled bytes are a "
        "thread's, shared memory (bytes) and warps a block's. `tests/kernels/test_gpu_resources.py` fails when a "
        "kernel spills more or takes more shared memory; `python -m tests.kernels.gpu_resources --write` makes the "
        "table anew.",
        "",
    )
    numbers = ("warps", "registers", "spilled", "shared")
    for operation in dict.fromkeys(row["operation"] for row in made["kernels"]):
        yield from (f"## {operation}", "")
        rows = [
            (row["call"], _code(row["kernel"]), f"sm_{row['arch']}", *(f"{row[name]:,}" for name in numbers))
            for row in made["kernels"]
            if row["operation"] == operation
        ]
        yield from _table(("call", "kernel", "arch", *numbers), rows)


def subparsers(parser: argparse.ArgumentParser, before: str = "") -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and of each of its commands where it has any."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found |= subparsers(sub, f"{before}{name} ") or {f"{before}{name}": sub}
    return found


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, ``--help`` aside."""
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def meaning(option: argparse.Action) -> str:
    """An option's help text, as ``--help`` shows it."""
    return (option.help or "") % vars(option)


def question(source: str) -> str:
    """The first paragraph of a module's docstring: the question it answers, and perhaps the answer in a sentence."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("``", "`")


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar or action.dest)
    flags = ", ".join(action.option_strings)
    if action.nargs == 0:
        return flags
    return f"{flags} {'|'.join(map(str, action.choices)) if action.choices else action.metavar or action.dest.upper()}"


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from map(_row, rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for page, text in pages().items():
        page.write_text(text)
        print(f"wrote {page.relative_to(ROOT)}")
