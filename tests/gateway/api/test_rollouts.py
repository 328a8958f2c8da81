"""``/admin/rollouts``: what it shows, what it does, and to whom."""

from pathlib import Path
from typing import Any

import pytest

from gateway.traffic.keys import Keyring, plain_keys
from gateway.traffic.rollout.rollout import RolloutConfig, RolloutPlan
from gateway.traffic.rollout.service import Rollouts
from tests.gateway.harness import Gateway, run, serving

MODEL = "team/chat"


def with_rollout(gateway: Gateway) -> Rollouts:
    rollouts = gateway.context.rollouts = Rollouts(None)
    rollouts.change({MODEL: RolloutPlan(RolloutConfig(), "stable", "canary")})
    gateway.context.metrics.rollouts.watch(rollouts)
    return rollouts


async def act(gateway: Gateway, action: str, reason: str = "") -> tuple[int, dict[str, Any]]:
    found = await gateway.post(f"/admin/rollouts/{MODEL}", {"action": action, "reason": reason})
    return found.status, found.json


def test_without_rollouts_there_are_none(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            assert (await gateway.get("/admin/rollouts")).json == {"rollouts": []}
            found = await gateway.get(f"/admin/rollouts/{MODEL}")
            assert (found.status, found.json["error"]["code"]) == (404, "not_found")
            assert (await act(gateway, "promote"))[0] == 404

    run(scenario())


def test_how_a_rollout_stands(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            with_rollout(gateway)
            (shown,) = (await gateway.get("/admin/rollouts")).json["rollouts"]
            for path in (MODEL, MODEL.replace("/", "%2F")):
                alone = await gateway.get(f"/admin/rollouts/{path}")
                assert alone.json.keys() == shown.keys() and alone.json["model"] == MODEL
            assert (shown["stable"], shown["canary"], shown["status"]) == ("stable", "canary", "running")
            assert (shown["weight"], shown["step"], shown["steps"]) == (5, 1, 4)
            assert [guard["name"] for guard in shown["guards"]] == ["error_rate", "ttft_p95"]
            assert {guard["worse_limit"] for guard in shown["guards"]} == {40}
            assert shown["history"][0]["what"] == "begun at 5 %"
            assert len(shown["missing"]) == 3

    run(scenario())


def test_an_operator_decides(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            rollouts = with_rollout(gateway)
            for action, status, weight in (
                ("hold", "held", 5),
                ("go_on", "running", 5),
                ("promote", "promoted", 100),
                ("roll_back", "rolled_back", 0),
                ("restart", "running", 5),
            ):
                code, shown = await act(gateway, action, "because")
                assert (code, shown["status"], shown["weight"]) == (200, status, weight)
                assert shown["history"][0]["why"].endswith("by an operator: because")
                assert rollouts.weight(MODEL) == weight
                labels = f'{{model="{MODEL}"}}'
                assert await gateway.metric(f"penstock_rollout_weight{labels}") == weight

    run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"action": "go_on"}, 409, "conflict"),
        ({"action": "explode"}, 400, "invalid_value"),
        ({}, 400, "missing_required_parameter"),
        (b"{", 400, "invalid_json"),
    ],
)
def test_what_makes_no_sense_is_refused(model_folder: Path, body: Any, status: int, code: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            with_rollout(gateway)
            found = await gateway.post(f"/admin/rollouts/{MODEL}", body)
            assert (found.status, found.json["error"]["code"]) == (status, code)

    run(scenario())


def test_clients_neither_see_nor_change_rollouts(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            rollouts = with_rollout(gateway)
            gateway.context.keys = Keyring(plain_keys(["sk"]))
            assert (await gateway.get("/admin/rollouts")).status == 401
            assert (await act(gateway, "promote"))[0] == 401
            assert rollouts.weight(MODEL) == 5

    run(scenario())
