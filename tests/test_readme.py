"""Is what the README shows right? That its example runs is tested against a running server, elsewhere."""

import ast
import json
import re
import shlex
from pathlib import Path

from gateway.app import ROUTES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench" / "results" / "engine.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def rows(text: str) -> set[str]:
    """Rows of tables that hold a figure: a median with its range."""
    return {line for line in text.splitlines() if re.match(r"\|.*\d \([\d,.]+–[\d,.]+\)", line)}  # noqa: RUF001


def test_the_two_commands_come_first() -> None:
    lines = blocks("sh")[0].splitlines()
    assert [shlex.split(line, comments=True) for line in lines] == [["make", "serve"], ["make", "test"]]


def test_the_curl_example_sends_json_to_an_endpoint() -> None:
    words = shlex.split(next(block for block in blocks("sh") if "curl" in block).replace("\\\n", " "))
    url = next(word for word in words if "://" in word)
    assert "POST" in ROUTES[re.sub(r"^http://127\.0\.0\.1:8000", "", url)]
    body = json.loads(words[words.index("-d") + 1])
    assert set(body) == {"model", "messages"}


def test_the_python_examples_parse_and_all_examples_ask_the_same_model() -> None:
    examples = blocks("python")
    assert len(examples) == 2
    for example in examples:
        ast.parse(example)
    assert set(re.findall(r'\bmodel(?:="|": ")([\w-]+)"', TEXT)) == {"penstock-demo"}


def test_every_endpoint_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(/[\w/.-]+)`", TEXT))
    assert {"/v1/responses", "/openapi.json"} <= named <= set(ROUTES)


def test_every_figure_was_measured() -> None:
    measured = rows(RESULTS.read_text()) if RESULTS.exists() else set()
    assert rows(TEXT) == measured


def test_a_figure_is_seen() -> None:
    assert rows("| `tiny` | Penstock | 4,096 (2,731–8,192); 20% |\n| a | b |") == {  # noqa: RUF001
        "| `tiny` | Penstock | 4,096 (2,731–8,192); 20% |"  # noqa: RUF001
    }


def test_the_licence_is_the_one_it_says() -> None:
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
