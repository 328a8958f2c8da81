"""Do the pages say what the code says? Nothing undocumented, and nothing documented that isn't there."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from docs import generate
from gateway.app import ROUTES
from gateway.openapi import summary
from gateway.settings import Settings, flag
from gateway.telemetry.metrics import METRICS
from gateway.wire.errors import ERROR_CODES
from penstock import build_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SUFFIXES = ("py", "md", "svg", "json", "toml", "yaml")
# Files that come into being when somebody runs something.
MADE = {"bench/results/engine.md", "bench/results/engine.json"}
# Files of others' formats.
THEIRS = {"adapter_config.json"}


def missing_paths(text: str, folder: Path) -> list[str]:
    """Links and file names in ``text`` that lead nowhere from ``folder`` or from the top."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    named = re.findall(rf"`((?:[\w.-]+/)*[\w.-]+\.(?:{'|'.join(SUFFIXES)})|(?:[\w.-]+/)+)`", text)
    gone = [link for link in links if "://" not in link and not (folder / link).exists()]
    gone += [
        name for name in named if not ((folder / name).exists() or (ROOT / name).exists() or name in MADE | THEIRS)
    ]
    return gone


def unknown_metrics(text: str) -> list[str]:
    """Names in ``text`` that look like metrics of ours but aren't."""
    found = set(re.findall(r"\bpenstock_[a-z_]+[a-z]\b", text))
    return sorted(name for name in found if re.sub(r"_(bucket|sum|count)$", "", name) not in METRICS)


def wrong_commands(text: str) -> list[str]:
    """Command lines in ``text`` that `penstock` wouldn't take."""
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)) + "\n"
    inline = "\n".join(re.findall(r"`(penstock [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    wrong = []
    for line in re.findall(r"^(?:\S*/)?(penstock .*)$", blocks + inline, flags=re.MULTILINE):
        words = shlex.split(line, comments=True)[1:]
        try:
            _quiet(build_parser()).parse_args(words)
        except _Refused as refused:
            if "required" not in str(refused) or any(word.startswith("-") for word in words):
                wrong.append(f"{line}: {refused}")
    return wrong


class _Refused(Exception):
    pass


def _quiet(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    def refuse(message: str) -> None:
        raise _Refused(message)

    parser.error = refuse  # type: ignore[method-assign, assignment]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _quiet(sub)
    return parser


@pytest.mark.parametrize("page", ["reference.md", "files.md", "gpu-kernels.md"])
def test_generated_pages_are_up_to_date(page: str) -> None:
    path = ROOT / "docs" / page
    assert path.read_text() == generate.pages()[path], "run: python docs/generate.py"


def test_every_option_endpoint_metric_and_code_says_what_it_means() -> None:
    for command, parser in generate.subparsers(build_parser()).items():
        assert parser.description, command
        for action in generate.options(parser):
            assert generate.meaning(action), f"{command} {action.dest}"
    assert all(metric.help for metric in METRICS.values())
    assert all(ERROR_CODES.values())
    for path, methods in ROUTES.items():
        assert all(summary(handler) for handler in methods.values()), path


def test_every_setting_is_an_option_of_serve() -> None:
    serve = generate.subparsers(build_parser())["serve"]
    offered = {word for action in generate.options(serve) for word in action.option_strings or [action.dest]}
    for field in Settings.__struct_fields__:
        assert {field, flag(field)} & offered, field


def test_every_module_says_which_question_it_answers() -> None:
    for room in generate.ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert generate.question(path.read_text()), f"{path.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert missing_paths(text, page.parent) == []
    assert unknown_metrics(text) == []
    if page.name != "reference.md":
        assert wrong_commands(text) == []


def test_every_room_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = {path.parent for room in generate.ROOMS for path in (ROOT / room).rglob("__init__.py")}
    shown = {package.relative_to(ROOT).as_posix() for package in packages if f"`{package.relative_to(ROOT)}/`" in text}
    small = {"kernels", "bench"}  # what is inside them is a list, not a map: files.md has it
    expected = {
        name
        for name in (package.relative_to(ROOT).as_posix() for package in packages)
        if "/" not in name or name.partition("/")[0] not in small
    }
    assert expected <= shown


def test_the_checks_can_fail() -> None:
    assert missing_paths("[x](gone.md) `engine/gone.py` `gone/`", ROOT) == ["gone.md", "engine/gone.py", "gone/"]
    assert missing_paths("[x](docs/architecture.md#rooms) `engine/link.py` `engine/`", ROOT) == []
    assert unknown_metrics("`penstock_gone_total`") == ["penstock_gone_total"]
    assert unknown_metrics("`penstock_time_to_first_token_seconds_bucket`") == []
    assert wrong_commands("```sh\npenstock serve --gone 3\n```")
    assert wrong_commands("`penstock gone`")
    assert wrong_commands("```sh\n.venv/bin/penstock serve ./folder --port 9  # why\n```") == []
