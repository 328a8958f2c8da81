"""The files in examples/ are right, and the first one is served as it stands."""

from pathlib import Path

import pytest

from gateway.plan import make_plan
from gateway.settings import Settings
from tests.serving import Serving

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_right_and_says_how_to_serve_it(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LARGE_KEY", "FLEET_SECRET"):
        monkeypatch.setenv(name, "secret")
    plan = make_plan(Settings(config=str(example)))
    assert plan.names or plan.routes
    assert f"penstock serve --config examples/{example.name}" in example.read_text()


def test_there_is_one_for_each_common_case() -> None:
    assert [example.stem for example in EXAMPLES] == [
        *("adapters", "canary", "fleet", "keys", "local-and-remote", "log", "one-model", "shadow", "two-models")
    ]


def test_the_simplest_one_is_served() -> None:
    with Serving("--config", "examples/one-model.yaml") as serving:
        assert "model chat" in serving.ready_line
        answer = serving.client().chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "What is 7 + 5?"}]
        )
        assert answer.model == "chat" and answer.choices[0].message.content == "12"
