"""Do the commands that people are told to type exist?"""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def make_targets(text: str) -> set[str]:
    """What ``text`` says to make: in code, words after ``make`` that are neither options nor assignments."""
    pieces = re.findall(r"```\w*\n(.*?)```|`(make [^`]*)`", text, flags=re.DOTALL)
    code = "\n".join(block or inline for block, inline in pieces)
    found: set[str] = set()
    for line in re.findall(r"^make ([^#\n]*)", code, flags=re.MULTILINE):
        words = re.sub(r'\w+=("[^"]*"|\S*)', "", line).split()
        found.update(word for word in words if not word.startswith("-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_target_that_a_page_names_exists(page: Path) -> None:
    assert make_targets(page.read_text()) <= TARGETS


def test_targets_are_found_in_text() -> None:
    text = 'Say `make one`:\n```sh\nmake two ARGS="-k three" # make four\nmake X=y five -j2\n```'
    assert make_targets(text) == {"one", "two", "five"}


@pytest.mark.parametrize("target", ["serve", "test", "lint", "typecheck", "demo-model", "bench-engine", "clean"])
def test_the_targets_that_were_promised_can_be_planned(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_whole_suite() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
