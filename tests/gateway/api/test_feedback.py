"""What is said of an answer is on record, and counts for the rollout that it is about."""

import asyncio
import time
from pathlib import Path

import pytest

from flywheel.log.frame import Kind
from flywheel.log.reading import read_frames
from flywheel.record import decode_feedback
from flywheel.user_keys import UserKeys, keys_path
from gateway.traffic.rollout.blocks import LATE
from tests.gateway.harness import run
from tests.gateway.lane.harness import until
from tests.gateway.lane.upstream import obliging
from tests.gateway.traffic.harness import chat, configured
from tests.gateway.traffic.test_routes import targets, words

LOG = "models: {chat: {target: a}}\nlog: {path: %s}\n"
ROLLOUT = (
    "models: {chat: {variants: {stable: {target: a}, canary: {target: b}}, rollout: {guard: [feedback], "
    "steps: [50, 100], dwell: 1h}}}\n"
)


def test_feedback_goes_into_the_log(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, LOG % (tmp_path / "log") + section) as gateway,
        ):
            said = {"request_id": "req-1", "score": 0.5, "label": "meh", "correction": "better so", "user": "u"}
            answer = await gateway.post(said, "/v1/feedback")
            assert answer.status == 200 and answer.json == {
                "request_id": "req-1", "recorded": True, "counted": False, "object": "feedback"
            }  # fmt: skip
            [frame] = [frame for frame in read_frames(tmp_path / "log") if frame.kind == Kind.FEEDBACK]
            found = decode_feedback(frame.body)
            assert (found.request_id, found.score, found.label, found.user) == ("req-1", 0.5, "meh", "u")
            assert found.correction is None and found.sealed is not None  # only the user's key opens it
            keys = UserKeys(keys_path(tmp_path / "log"))
            assert keys.unseal("u", found.sealed) == {"correction": b"better so"}
            keys.close()
            for wrong in ({"request_id": "req-1"}, {"score": 1}, {"request_id": "", "score": 1}):
                assert (await gateway.post(wrong, "/v1/feedback")).status == 400

    run(scenario())


def test_without_a_log_there_is_nowhere_to_put_it(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, "models: {chat: {target: a}}\n" + section) as gateway,
        ):
            answer = await gateway.post({"request_id": "req-1", "score": 1}, "/v1/feedback")
            assert answer.status == 503 and "no request log" in answer.json["error"]["message"]

    run(scenario())


def test_a_canary_that_users_dislike_is_rolled_back(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), words("B")) as (section, _),
            configured(tmp_path, ROLLOUT + section) as gateway,
        ):
            rollouts = gateway.context.rollouts
            assert rollouts is not None
            for _ in range(200):
                answer = await gateway.post(chat())
                canary = answer.headers["x-penstock-variant"] == "canary"
                said = {"request_id": answer.headers["x-request-id"], "score": -1 if canary else 1}
                assert (await gateway.post(said, "/v1/feedback")).json["counted"]
            await asyncio.sleep(0.5)
            assert rollouts.shown()[0].status == "running"  # there may be more to come
            monkeypatch.setattr(rollouts, "_clock", lambda: time.time() + LATE + 60)
            await until(lambda: rollouts.shown()[0].status == "rolled_back")
            assert "feedback" in rollouts.shown()[0].reason

    run(scenario())
