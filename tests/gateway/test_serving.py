"""Targets are replaced in three steps, and a step that fails leaves all as it was. The rest needs real processes."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.api.context import Context, ReloadError
from gateway.serving import Serving
from gateway.settings import Settings
from gateway.telemetry.trace import NOTHING
from tests.gateway.harness import run
from tests.gateway.lane.harness import until
from tests.gateway.lane.upstream import Upstream

FILE = "models: {chat: {target: a}}\ntargets: {a: {engine: openai, urls: ['%s']}}\n"


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, text: str) -> AsyncIterator[tuple[Serving, Context, Path]]:
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    context = Context(max_queue=10, max_body=1000)
    settings = Settings(config=str(file))
    made = Serving(settings, context, tmp_path, lambda settings, address: [sys.executable, "-c", "exit(7)"])
    running = asyncio.create_task(made.run())
    try:
        await made.ready()
        yield made, context, file
    finally:
        made.kill()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def reason(context: Context) -> str | None:
    """Why it is not ready, asked anew each time, which a type checker doesn't know of properties."""
    return context.not_ready


def test_what_cannot_be_started_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, serving(tmp_path, FILE % upstream.url) as (made, context, file):
            before = made.plan
            for more, said in (
                ("b: {engine: native}", "target b: the worker exited with status 7 before it was ready"),
                ("b: {engine: native, workers: ['unix:/x'], tls_ca: /nowhere}", "--worker-tls-ca /nowhere"),
                ("b: {engine: openai, urls: ['http://b'], api_key_env: NO_SUCH_KEY}", "NO_SUCH_KEY has no key in it"),
            ):
                file.write_text((FILE % upstream.url).replace("]}}", f"]}}, {more}}}"))
                with pytest.raises(ReloadError, match=said):
                    await made.reload()
                assert made.plan is before and context.names() == ["chat"] and context.not_ready is None
            file.write_text(FILE % upstream.url)
            assert await made.reload() == []

    run(scenario())


def test_what_is_recorded_changes_with_the_rest_or_not_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Upstream() as upstream:
            text = f"{FILE % upstream.url}log: {{path: {tmp_path}/log, content: full}}\ntelemetry: {{sample: 1}}\n"
            async with serving(tmp_path, text) as (made, context, file):
                recorder = context.recorder
                assert recorder is not None and recorder.telemetry is not None
                for wrong in (
                    text.replace("]}}", "]}, b: {engine: native}}").replace("full", "none"),
                    text.replace("/log,", "/elsewhere,").replace("sample: 1", "sample: 0"),
                ):
                    file.write_text(wrong)
                    with pytest.raises(ReloadError):
                        await made.reload()
                    assert recorder.mode("chat", "") == "full"
                    assert recorder.telemetry.traces.join(NOTHING).sampled

    run(scenario())


def test_an_upstream_that_is_away_is_taken_all_the_same_and_a_name_can_be_given_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            Upstream() as upstream,
            Upstream() as other,
            serving(tmp_path, FILE % upstream.url) as (made, context, file),
        ):
            file.write_text(
                (FILE % upstream.url).replace("]}}", f"]}}, b: {{engine: openai, urls: ['{other.url}']}}}}")
            )
            assert await made.reload() == ["target b added"]
            assert context.names() == ["chat"]  # it has no name yet
            file.write_text(file.read_text().replace("target: a", "target: b"))
            assert await made.reload() == ["model chat: leads to b now"]
            assert made.lanes is not None
            assert [target.name for target in made.lanes] == [f"b/127.0.0.1:{other.port}"]
            await until(lambda: context.not_ready is None)

    run(scenario())


def test_a_worker_that_never_answers_ends_the_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "penstock.yaml"
        file.write_text("models: {chat: {target: a}}\ntargets: {a: {engine: native}}\n")
        context = Context(max_queue=10, max_body=1000)
        made = Serving(Settings(config=str(file)), context, tmp_path, lambda *_: [sys.executable, "-c", "exit(7)"])
        assert context.not_ready is not None and context.names() == []
        with pytest.raises(ReloadError, match="still starting"):
            await made.reload()
        with pytest.raises(Exception, match="target a: the worker exited with status 7"):
            await made.run()

    run(scenario())


def test_a_worker_elsewhere_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.serving._ELSEWHERE_WITHIN", 0.2)

    async def scenario() -> None:
        async with Upstream() as upstream, serving(tmp_path, FILE % upstream.url) as (made, context, file):
            more = f"]}}, b: {{engine: native, workers: ['unix:{tmp_path}/w.sock']}}}}\n"
            file.write_text((FILE % upstream.url).replace("]}}\n", more).replace("a}}", "a}, later: {target: b}}"))
            assert await made.reload() == ["target b added", "model later added"]
            assert context.faults() == {"chat": None, "later": "The model 'later' is still being loaded."}
            assert reason(context) is None
            assert made.lanes is not None and bool(made.lanes.choosing)
            file.write_text(FILE % upstream.url)
            assert await made.reload() == ["target b removed", "model later removed"]
            assert reason(context) is None and not made.lanes.choosing

    run(scenario())


FLEET = """
models:
  one: {target: a}
  two: {target: b}
  both: {target: b, fallback: [a]}
targets:
  a: {engine: openai, urls: ["%s"]}
  b: {engine: openai, urls: ["%s"]}
"""


def test_a_model_that_is_away_is_told_and_takes_nobody_else_out_of_service(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            Upstream() as upstream,
            Upstream() as other,
            serving(tmp_path, FLEET % (upstream.url, other.url)) as (made, context, _),
        ):

            def probed(target: str, up: bool) -> None:
                lane = made.lanes.lane_to(target) if made.lanes is not None else None
                assert lane is not None
                for one in lane.targets:
                    one.up = up
                lane.targets.changed()

            assert context.faults() == {"one": None, "two": None, "both": None}
            probed("b", False)
            assert context.faults() == {"one": None, "two": "No upstream can be reached.", "both": None}
            page = context.metrics.page().decode()
            assert 'penstock_model_up{model="one"} 1.0' in page
            assert 'penstock_model_up{model="two"} 0.0' in page
            assert reason(context) is None
            probed("a", False)
            assert reason(context) == "No upstream can be reached."
            probed("b", True)
            assert reason(context) is None

    run(scenario())
