"""What rollouts and shadows get to know of requests, whichever way these take; and what follows for the requests."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.api.context import Context
from tests.gateway.harness import run
from tests.gateway.lane.harness import CHAT, until
from tests.gateway.traffic.harness import Gateway, chat, configured
from tests.gateway.traffic.test_routes import failing, said, silent, targets, words

WAYS = [None, 0, 1]
"""Where a worker of ours is: nowhere, as the stable variant, as the canary."""
ROLLOUT = (
    "models: {chat: {variants: {stable: {target: a}, canary: {target: b}}, rollout: {guard: [%s], "
    "steps: [50, 100], dwell: 0.2s}}}\n"
)
SHADOW = "models: {chat: {target: a, shadow: [{target: b, sample: 100%}]}}\n"


def rollout_of(gateway: Gateway) -> Any:
    assert gateway.context.rollouts is not None
    return gateway.context.rollouts.shown()[0]


@pytest.mark.parametrize("here", WAYS)
@pytest.mark.parametrize("guard", ["error_rate", "bad_outcome_rate"])
def test_a_canary_that_fails_is_rolled_back_by_itself(
    guard: str, here: int | None, tmp_path: Path, model_folder: Path
) -> None:
    bad = failing(500) if guard == "error_rate" else words("I'm sorry, but I can't help with that.")

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), bad, here=here) as (section, made),
            configured(tmp_path, ROLLOUT % guard + section) as gateway,
        ):
            if here == 1:
                made[1].refuse = ("internal", "no")
            assert rollout_of(gateway).status == "running"
            for _ in range(200):
                await gateway.post(chat())
            await until(lambda: rollout_of(gateway).status == "rolled_back")
            shown = rollout_of(gateway)
            assert guard in shown.reason and "limit" in shown.reason
            for _ in range(20):
                assert (await said(gateway))[0] == "stable"

            answer = await gateway.get("/admin/rollouts")
            assert answer.json["rollouts"][0]["reason"] == shown.reason
        # A restart goes on where it was.
        async with configured(tmp_path, ROLLOUT % guard + section, ready=False) as gateway:
            assert rollout_of(gateway).status == "rolled_back"

    run(scenario(), 40)


def test_a_canary_that_is_as_good_takes_over(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), words("B")) as (section, _),
            configured(tmp_path, ROLLOUT % "error_rate" + section) as gateway,
        ):
            deadline = time.monotonic() + 30
            while rollout_of(gateway).status == "running" and time.monotonic() < deadline:
                await asyncio.gather(*(gateway.post(chat()) for _ in range(20)))
            assert rollout_of(gateway).status == "promoted"
            assert {(await said(gateway))[0] for _ in range(10)} == {"canary"}
            assert rollout_of(gateway).canaries >= 100

    run(scenario(), 40)


@pytest.mark.parametrize("here", WAYS)
def test_a_full_queue_is_no_evidence_against_anybody(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        models = (ROLLOUT % "error_rate, bad_outcome_rate").replace("rollout:", "fallback: [a, b], rollout:")
        async with (
            targets(tmp_path, model_folder, words("A"), words("B"), here=here) as (section, _),
            configured(tmp_path, models + section, max_queue=0) as gateway,
        ):
            for _ in range(60):
                answer = await gateway.post(chat())
                assert (answer.status, answer.json["error"]["code"]) == (429, "overloaded")
            await until(lambda: rollout_of(gateway).canaries > 10)
            for guard in rollout_of(gateway).guards:
                assert "0.0% of 0 requests, the control's 0.0% of 0" in guard.says
            page = (await gateway.get("/metrics")).body.decode()
            assert "penstock_fallbacks_total{" not in page

    run(scenario())


def test_testers_and_fallbacks_are_no_evidence(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        models = (ROLLOUT % "error_rate").replace("rollout:", "fallback: [a, b], rollout:").replace("0.2s", "60s")
        async with (
            targets(tmp_path, model_folder, failing(500), words("B")) as (section, _),
            configured(tmp_path, models + section) as gateway,
        ):
            for _ in range(60):
                await gateway.post(chat(), x_penstock_variant="canary")
            await asyncio.sleep(0.6)
            shown = rollout_of(gateway)
            assert shown.canaries == shown.controls == 0
            for _ in range(60):  # the stable one fails, and the canary answers: that is the stable one's failure
                assert (await gateway.post(chat())).status == 200
            await until(lambda: rollout_of(gateway).controls > 10)
            [guard] = rollout_of(gateway).guards
            assert "error_rate 0.0%" in guard.says and "control's 100.0%" in guard.says

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("here", WAYS)
def test_answers_are_compared_with_those_of_shadows(
    here: int | None, stream: bool, tmp_path: Path, model_folder: Path
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("It is 41."), words("It is 42."), here=here) as (section, made),
            configured(tmp_path, SHADOW + section) as gateway,
        ):
            shadows = gateway.context.shadows
            assert shadows is not None
            for _ in range(3):
                answer = await gateway.post(chat(stream=stream))
                assert answer.status == 200 and b"is 42" not in answer.body
            await until(lambda: bool(pairs_of(gateway.context)))
            await until(lambda: gateway.metric(COMPARED) == 3)
            pair = pairs_of(gateway.context)[0]
            assert not pair.comparison.agrees
            if here is None:
                assert (pair.answer.text, pair.shadow.text) == ("It is 41.", "It is 42.")
                assert not made[1].requests[0].json.get("stream")
                assert (
                    gateway.metric(
                        'penstock_requests_total{endpoint="/v1/chat/completions",model="chat",outcome="ok",status="200"}'
                    )
                    == 3
                )
            listed = await gateway.get("/admin/shadows")
            assert listed.status == 200 and b'"compared":3' in listed.body.replace(b" ", b"")

    run(scenario())


COMPARED = 'penstock_shadow_requests_total{model="chat",outcome="compared",target="b"}'


def pairs_of(context: Context) -> list[Any]:
    assert context.shadows is not None
    return context.shadows.pairs("chat", "b", 10) or []


@pytest.mark.parametrize("script", [silent, failing(500)])
def test_a_shadow_that_does_not_answer_is_not_noticed(script: Any, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), script) as (section, _),
            configured(tmp_path, SHADOW + section, max_queue=4) as gateway,
        ):
            for _ in range(30):  # more than may wait: shadows don't count among them
                assert (await said(gateway))[1] == "A"
            assert gateway.context.queued == 0

    run(scenario())


def test_nothing_is_collected_where_all_copies_are_dropped(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), words("B")) as (section, _),
            configured(tmp_path, SHADOW + section) as gateway,
        ):
            watching, route = gateway.context.watching, gateway.context.routes["chat"]
            assert watching is not None
            for taken in (True, False):
                watched = watching.watch(route.to("a"), CHAT, b'{"model": "chat"}', "req-1")
                assert watched is not None
                if not taken:
                    gateway.context.shadows._running = False  # type: ignore[union-attr]  # nobody asks: all are dropped
                watched.first(streamed=True)
                assert (watched._collector is not None) is taken
                watched.add(b"data: {}\n\n")
                watched.ended(200, "ok")

    run(scenario())
