"""Does everything that the Dockerfile names exist? No container engine is needed to see that."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.app import ROUTES
from gateway.settings import Settings
from penstock import build_parser

ROOT = Path(__file__).parent.parent
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip


class Instruction(NamedTuple):
    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.rest)


def parse(text: str) -> list[list[Instruction]]:
    """The instructions of each stage; those before the first FROM are stage 0."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[list[Instruction]] = [[]]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"unknown instruction {name!r}")
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, rest.strip()))
    return stages


TEXT = (ROOT / "Dockerfile").read_text()
STAGES = parse(TEXT)
BUILD, FINAL = STAGES[1], STAGES[-1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def one(stage: list[Instruction], name: str) -> Instruction:
    found = [instruction for instruction in stage if instruction.name == name]
    assert len(found) == 1, name
    return found[0]


def copied() -> set[str]:
    sources: set[str] = set()
    for instruction in BUILD:
        if instruction.name == "COPY":
            sources.update(instruction.words[:-1])
    return sources


def test_an_unknown_instruction_is_seen() -> None:
    with pytest.raises(ValueError, match="COPPY"):
        parse("FROM x\nCOPPY a b")


def test_continued_lines_are_one_instruction() -> None:
    assert parse("FROM x\nRUN a && \\\n  b")[1][1] == Instruction("RUN", "a && b")


def test_every_copied_file_exists_and_reaches_the_build() -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert ignore[0] == "*"
    assert {word[1:] for word in ignore if word.startswith("!")} == copied()
    assert all((ROOT / source).exists() for source in copied())


def test_everything_that_is_packaged_is_copied() -> None:
    tools = PROJECT["tool"]["setuptools"]
    packaged = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    packaged = {name for name in packaged if any(fnmatch(name, one) for one in tools["packages"]["find"]["include"])}
    modules = {f"{name}.py" for name in tools["py-modules"]}
    project = PROJECT["project"]
    assert copied() == packaged | modules | {"pyproject.toml", project["readme"], *project["license-files"]}


def test_later_stages_copy_from_stages_that_exist() -> None:
    names = {stage[0].words[-1] for stage in STAGES[1:]}
    for instruction in FINAL:
        if instruction.name == "COPY":
            assert instruction.words[0].removeprefix("--from=") in names


def test_the_server_runs_as_nobody_special() -> None:
    names = [instruction.name for instruction in FINAL]
    user = one(FINAL, "USER").rest
    assert user not in ("root", "0")
    assert any(i.name == "RUN" and "useradd" in i.words and i.words[-1] == user for i in FINAL)
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_command_is_one_that_penstock_takes() -> None:
    entry, command = json.loads(one(FINAL, "ENTRYPOINT").rest), json.loads(one(FINAL, "CMD").rest)
    assert entry == ["penstock"]
    assert entry[0] in PROJECT["project"]["scripts"]
    args = build_parser().parse_args(command)
    assert (args.command, args.host, args.model) == ("serve", "0.0.0.0", None)


def test_health_is_asked_where_it_is_answered() -> None:
    health = one(FINAL, "HEALTHCHECK").rest
    found = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)'", health)
    assert found is not None
    assert "GET" in ROUTES[found[2]]
    port = next(iter(Settings.__struct_defaults__[i] for i, f in enumerate(Settings.__struct_fields__) if f == "port"))
    assert found[1] == one(FINAL, "EXPOSE").rest == str(port)
    compile(json.loads(health[health.index("[") :])[2], "HEALTHCHECK", "exec")


def test_every_extra_that_is_installed_exists() -> None:
    extras = re.findall(r"\.\[(\w+)\]", TEXT)
    assert extras
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_every_argument_is_declared_in_its_stage_and_no_host_is_named() -> None:
    shared = {i.rest.partition("=")[0] for i in STAGES[0]}
    for stage in STAGES[1:]:
        declared = {i.rest.partition("=")[0] for i in stage if i.name == "ARG"}
        used = {name for i in stage if i.name == "RUN" for name in re.findall(r"\$\{?(\w+)", i.rest)}
        assert used <= declared
        assert set(re.findall(r"\$\{(\w+)\}", stage[0].rest)) <= shared
    assert set(re.findall(r"https?://([^:/'\"]+)", TEXT)) == {"127.0.0.1"}


def test_the_default_python_is_one_we_support() -> None:
    version = next(i.rest.partition("=")[2] for i in STAGES[0] if i.rest.startswith("PYTHON="))
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert version in ("3.11", "3.12", "3.13")
