"""Records have a sketch of the prompt, and the share of low margins, of what a native worker answers."""

from pathlib import Path
from typing import Any

import pytest

from engine.link import Submit
from tests.gateway.fake_worker import sketch_of
from tests.gateway.harness import run
from tests.gateway.lane.upstream import obliging
from tests.gateway.record.test_recording import record_of, settings
from tests.gateway.traffic.harness import chat, configured
from tests.gateway.traffic.test_routes import HERE, targets

COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize("stream", [False, True])
def test_a_native_answer(stream: bool, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, here=0) as (section, (worker,)),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            await gateway.post(chat("a prompt", stream=stream))
            record = await record_of(tmp_path)
            (asked,) = worker.submitted
            assert asked.sketch and record.embedding == sketch_of(asked) and len(record.embedding) == 128
            assert record.uncertainty is not None
            assert record.uncertainty.low_margin == sum(token % 2 for token in HERE) / len(HERE)

    run(scenario())


def test_of_several_prompts_and_choices_the_first(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, here=0) as (section, (worker,)),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            asked: dict[str, Any] = {"model": "chat", "prompt": ["one", "and another"], "n": 2}
            assert (await gateway.post(asked, COMPLETIONS)).status == 200
            submitted: list[Submit] = worker.submitted
            assert [one.sketch for one in submitted] == [True, False, False, False]
            assert (await record_of(tmp_path)).embedding == sketch_of(submitted[0])

    run(scenario())


def test_where_nothing_is_recorded_nobody_asks(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = settings(tmp_path).partition("log:")[0]
        async with (
            targets(tmp_path, model_folder, obliging, here=0) as (section, (worker,)),
            configured(tmp_path, text + section) as gateway,
        ):
            assert (await gateway.post(chat())).status == 200
            assert [one.sketch for one in worker.submitted] == [False]

    run(scenario())


def test_a_worker_that_knows_of_no_sketches(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as vLLM's, and one of an earlier version."""
    monkeypatch.setattr("tests.gateway.fake_worker._scored", lambda output, submit, first: output)

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, here=0) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            assert (await gateway.post(chat())).status == 200
            record = await record_of(tmp_path)
            assert record.embedding is None
            assert record.uncertainty is not None and record.uncertainty.low_margin is None

    run(scenario())
