"""Rollouts of a gateway: what is kept, what follows from it and when, and what operators may do."""

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.traffic.answers import Answer
from gateway.traffic.ending import Ending
from gateway.traffic.rollout.rollout import RolloutConfig, RolloutPlan
from gateway.traffic.rollout.service import LOOK_EVERY, NotPossible, Rollouts
from gateway.wire.rollouts import RolloutShown


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def a_plan(*guards: str, what: str = "adapter 12", **config: Any) -> RolloutPlan:
    guard = guards or ("error_rate", "ttft")
    made = msgspec.convert({"guard": guard, "dwell": 60.0, "exclude": 0.2, **config}, RolloutConfig)
    return RolloutPlan(made, "stable", "canary", what)


class Traffic:
    """Requests for the model ``chat``, one a second; the canary's times are ``slower`` times as long."""

    def __init__(self, rollouts: Rollouts, clock: Clock, seed: int = 1) -> None:
        self.rollouts = rollouts
        self.clock = clock
        self.random = random.Random(seed)
        self.uid = 0

    def send(self, count: int, slower: float = 1.0, *, look: bool = True) -> None:
        for _ in range(count):
            self.clock.now += 1.0
            self.uid += 1
            canary = self.random.random() * 100 < (self.rollouts.weight("chat") or 0.0)
            self.rollouts.came("chat", self.uid, canary, "")
            ttft = self.random.lognormvariate(0, 0.3) * (slower if canary else 1.0)
            ending = Ending(200, "ok", ttft=ttft, e2e=2 * ttft, output_tokens=7, answer=Answer("Hello"))
            self.rollouts.ended("chat", self.uid, ending, f"req-{self.uid}")
            if look:
                self.rollouts.look()


def started(folder: Path | None = None, plan: RolloutPlan | None = None) -> tuple[Rollouts, Traffic]:
    clock = Clock()
    rollouts = Rollouts(folder, clock)
    rollouts.change({"chat": plan or a_plan()})
    return rollouts, Traffic(rollouts, clock)


def again(folder: Path, plan: RolloutPlan | None = None) -> Rollouts:
    """The rollouts of the next process."""
    rollouts = Rollouts(folder, Clock())
    rollouts.change({"chat": plan or a_plan()})
    return rollouts


def only(rollouts: Rollouts) -> RolloutShown:
    (shown,) = rollouts.shown()
    return shown


def save(rollouts: Rollouts) -> None:
    asyncio.run(rollouts.save())


def test_a_slow_canary_is_rolled_back_and_the_reason_is_shown() -> None:
    rollouts, traffic = started()
    changed: list[tuple[str, float | None]] = []
    rollouts.on_change = lambda model: changed.append((model, rollouts.weight(model)))
    assert rollouts.weight("chat") == 5
    traffic.send(4000, slower=1.5)
    assert changed == [("chat", 0.0)]
    shown = only(rollouts)
    assert (shown.status, shown.weight) == ("rolled_back", 0.0)
    assert "ttft 1." in shown.reason and "limit 40 : 1" in shown.reason
    assert [one.what for one in shown.history] == ["rolled back", "begun at 5 %"]
    assert shown.canaries > 5 and shown.controls > 10 * shown.canaries
    worst = next(guard for guard in shown.guards if guard.name == "ttft")
    assert worst.worse >= worst.worse_limit == 40
    assert shown.missing == []


def test_a_good_canary_goes_up_step_by_step() -> None:
    rollouts, traffic = started(plan=a_plan("ttft"))
    weights: list[float | None] = []
    rollouts.on_change = lambda model: weights.append(rollouts.weight(model))
    while rollouts.weight("chat") != 100:
        traffic.send(100, slower=0.8)
    assert weights == [25, 50, 100]
    shown = only(rollouts)
    assert (shown.status, shown.step, shown.steps) == ("promoted", 4, 4)
    assert [one.what for one in shown.history] == ["to 100 %", "to 50 %", "to 25 %", "begun at 5 %"]


def test_what_is_missing_is_said() -> None:
    rollouts, traffic = started()
    assert only(rollouts).missing == [
        "error_rate: evidence 1 : 1 that it is less than 2 times as frequent, or rarer than 1%, of 100 : 1",
        "ttft: evidence 1 : 1 that it is worse by less than 20%, if at all, of 100 : 1",
        "another 60 s at this weight",
    ]
    traffic.send(59)
    assert only(rollouts).missing[-1] == "another 1 s at this weight"


def test_a_model_without_a_rollout_has_no_weight_and_reports_in_vain() -> None:
    rollouts, _ = started()
    assert rollouts.weight("other") is None
    rollouts.came("other", 1, True, "")
    rollouts.began("other", 1, 0.1)
    rollouts.ended("other", 1, Ending(200, "ok"))
    assert not rollouts.reads_answers("other") and not rollouts.reads_answers("chat")
    assert started(plan=a_plan("refusal_rate"))[0].reads_answers("chat")


@pytest.mark.parametrize("model", ["chat", "../../etc/passwd", "Qwen/Qwen3-8B", "모델 " * 60, ".", "a" * 300])
def test_a_restart_resumes_a_rollout_where_it_was_whatever_its_model_is_called(tmp_path: Path, model: str) -> None:
    plan = a_plan("error_rate", "ttft", "ttft_p95", "length")
    clock = Clock()
    first = Rollouts(tmp_path, clock)
    first.change({model: plan})
    for uid in range(400):
        clock.now += 1
        first.came(model, uid, uid % 4 == 0, "")
        ending = Ending(200, "failed" if uid % 37 == 0 else "ok", ttft=0.1 + uid % 7, output_tokens=1 + uid % 5)
        first.ended(model, uid, ending)
        first.look()
    first.hold(model, "lunch")
    save(first)
    second = Rollouts(tmp_path, clock)
    second.change({model: plan})
    before, after = only(first), only(second)
    assert after == before
    assert after.canaries > 50 and all(guard.worse != 1.0 for guard in after.guards)
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "rollouts"]


def test_a_rollout_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Not a bit of evidence is lost: the same traffic leads to the same verdict at the same request."""
    whole, traffic = started(tmp_path / "whole")
    ends: list[int] = []
    whole.on_change = lambda model: ends.append(traffic.uid)
    traffic.send(3000, slower=1.4)
    rollouts, parts = started(tmp_path / "parts")
    rollouts.on_change = lambda model: ends.append(parts.uid)
    while rollouts.weight("chat"):
        parts.send(1, slower=1.4)
        if not rollouts._entries["chat"].rollout._blocks._open and parts.uid < ends[0] - 20:  # between two blocks
            save(rollouts)
            parts.rollouts = rollouts = Rollouts(tmp_path / "parts", parts.clock)
            rollouts.change({"chat": a_plan()})
            rollouts.on_change = lambda model: ends.append(parts.uid)
    assert len(ends) == 2 and ends[0] == ends[1]


@pytest.mark.parametrize("other", [a_plan(what="adapter 13"), a_plan(alpha=0.01), a_plan("itl")])
def test_another_canary_or_other_conditions_begin_anew(tmp_path: Path, other: RolloutPlan) -> None:
    rollouts, traffic = started(tmp_path)
    traffic.send(4000, slower=1.5)
    assert only(rollouts).status == "rolled_back"
    save(rollouts)
    rollouts.change({"chat": a_plan()})
    assert only(rollouts).status == "rolled_back"  # it is the same one
    for one in (rollouts, again(tmp_path, other)):
        one.change({"chat": other})
        shown = only(one)
        assert (shown.status, shown.weight, shown.canaries) == ("running", 5, 0)
        assert [change.what for change in shown.history] == ["begun at 5 %", "rolled back", "begun at 5 %"]
        assert "another one" in shown.reason


def test_a_rollout_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    rollouts, traffic = started(tmp_path)
    traffic.send(4000, slower=1.5)
    save(rollouts)
    assert len(list(tmp_path.rglob("*.json"))) == 1
    rollouts.change({})
    assert rollouts.weight("chat") is None and rollouts.shown() == []
    save(rollouts)
    assert list(tmp_path.rglob("*.json")) == []
    rollouts.change({"chat": a_plan()})
    assert only(rollouts).status == "running"


@pytest.mark.parametrize("data", [b"", b"{", b'{"model": "chat"}', b"\xff\xfe"])
def test_a_file_of_no_use_is_put_aside(tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    rollouts, _ = started(tmp_path)
    save(rollouts)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(data)
    found = again(tmp_path)
    assert only(found).status == "running"
    assert path.with_suffix(".bad").read_bytes() == data
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "model=chat begins anew" in record.getMessage()


def test_a_file_whose_state_does_not_fit_its_plan_is_put_aside(tmp_path: Path) -> None:
    rollouts, traffic = started(tmp_path)
    traffic.send(100)
    save(rollouts)
    (path,) = tmp_path.rglob("*.json")
    saved = msgspec.json.decode(path.read_bytes())
    guards = saved["state"]["guards"]
    changes: list[dict[str, Any]] = [{"step": 9}, {"guards": {}}, {"guards": {**guards, "ttft": {}}}]
    for change in changes:
        path.write_bytes(msgspec.json.encode({**saved, "state": {**saved["state"], **change}}))
        assert only(again(tmp_path)).canaries == 0
        assert path.with_suffix(".bad").exists()


def test_a_folder_that_can_not_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rollouts").write_text("in the way")
    rollouts, traffic = started(tmp_path)
    for _ in range(3):
        save(rollouts)
    traffic.send(4000, slower=1.5)
    assert only(rollouts).status == "rolled_back"
    assert rollouts.failures == 3
    assert len([record for record in caplog.records if "can't be saved" in record.getMessage()]) == 1
    (tmp_path / "rollouts").unlink()
    save(rollouts)  # what could not be written is not forgotten
    assert only(again(tmp_path)).status == "rolled_back"


def test_without_a_folder_all_is_well_until_a_restart() -> None:
    rollouts, _ = started()
    save(rollouts)
    assert rollouts.failures == 0


def test_a_roll_back_follows_the_verdict_and_is_saved_at_once(tmp_path: Path) -> None:
    """The weight is 0 within two looks of the last request that it took, and the file says so without waiting."""
    rollouts, traffic = started(tmp_path)

    async def scenario() -> None:
        running = asyncio.create_task(rollouts.run())
        traffic.send(4000, slower=1.5, look=False)
        assert rollouts.weight("chat") == 5
        async with asyncio.timeout(4 * LOOK_EVERY):
            while rollouts.weight("chat"):
                await asyncio.sleep(0.01)
        async with asyncio.timeout(4 * LOOK_EVERY):
            while rollouts._entries["chat"].unsaved or rollouts._urgent.is_set():
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
    assert only(again(tmp_path)).status == "rolled_back"


def test_what_is_known_at_the_end_is_saved(tmp_path: Path) -> None:
    rollouts, traffic = started(tmp_path)

    async def scenario() -> None:
        running = asyncio.create_task(rollouts.run())
        await asyncio.sleep(0)
        traffic.send(500)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
    assert only(again(tmp_path)).canaries == only(rollouts).canaries > 10


def test_operators_promote_roll_back_and_begin_again() -> None:
    rollouts, traffic = started()
    weights: list[float | None] = []
    rollouts.on_change = lambda model: weights.append(rollouts.weight(model))
    rollouts.promote("chat", "it is urgent")
    assert only(rollouts).reason == "promoted by an operator: it is urgent"
    with pytest.raises(NotPossible, match="promoted already"):
        rollouts.promote("chat")
    traffic.send(100, slower=9.0)  # nobody is compared with anybody any more
    rollouts.roll_back("chat", "no, it is bad")
    with pytest.raises(NotPossible, match="rolled back already"):
        rollouts.roll_back("chat")
    with pytest.raises(NotPossible, match="it is rolled back"):
        rollouts.hold("chat")
    rollouts.restart("chat")
    assert weights == [100, 0, 5]
    shown = only(rollouts)
    assert (shown.status, shown.canaries, shown.reason) == ("running", 0, "begun again by an operator")
    with pytest.raises(KeyError):
        rollouts.promote("other")


def test_one_that_is_held_stays_but_may_still_be_rolled_back() -> None:
    rollouts, traffic = started(plan=a_plan("ttft"))
    with pytest.raises(NotPossible, match="it isn't held"):
        rollouts.go_on("chat")
    rollouts.hold("chat", "the weekend")
    with pytest.raises(NotPossible, match="held already"):
        rollouts.hold("chat")
    traffic.send(5000, slower=0.8)
    shown = only(rollouts)
    assert (shown.status, shown.weight) == ("held", 5)
    assert shown.missing == ["an operator holds it"]
    rollouts.go_on("chat")
    rollouts.look()
    assert rollouts.weight("chat") == 25
    rollouts.hold("chat")
    traffic.send(5000, slower=2.0)
    assert only(rollouts).status == "rolled_back"


def test_the_last_fifty_changes_are_remembered(tmp_path: Path) -> None:
    rollouts, traffic = started(tmp_path)
    for index in range(60):
        traffic.clock.now += 1
        rollouts.restart("chat", str(index))
    save(rollouts)
    history = only(again(tmp_path)).history
    assert len(history) == 50
    assert history[0].why == "begun again by an operator: 59" and history[0].at > history[1].at


def test_feedback_that_comes_minutes_later_counts() -> None:
    rollouts, traffic = started(plan=a_plan("feedback"))
    rated: list[tuple[float, str, float]] = []
    chance = random.Random(2)
    for uid in range(1, 6000):
        traffic.clock.now += 1.0
        canary = chance.random() < 0.1
        rollouts.came("chat", uid, canary, "")
        rollouts.ended("chat", uid, Ending(200, "ok"), f"req-{uid}")
        if chance.random() < 0.5:
            rated.append((traffic.clock.now + 300.0, f"req-{uid}", float(chance.random() < (0.4 if canary else 0.8))))
        while rated and rated[0][0] < traffic.clock.now:
            _, request, score = rated.pop(0)
            assert rollouts.feedback(request, score)
        rollouts.look()
        if not rollouts.weight("chat"):
            break
    assert only(rollouts).status == "rolled_back"
    assert "feedback below the control's average: " in only(rollouts).reason
    assert not rollouts.feedback("req-1", 1.0)  # long ago
    assert not rollouts.feedback("unheard of", 1.0)


def test_one_that_follows_goes_by_what_the_leader_saves(tmp_path: Path) -> None:
    leader, traffic = started(tmp_path)
    follower = Rollouts(tmp_path, traffic.clock, leads=False)
    follower.change({"chat": a_plan()})
    changed: list[float | None] = []
    follower.on_change = lambda model: changed.append(follower.weight(model))
    assert follower.weight("chat") == 5  # nothing has been saved yet
    traffic.send(4000, slower=1.5)
    follower.look()
    assert follower.weight("chat") == 5
    save(leader)
    follower.look()
    assert only(follower) == only(leader)
    leader.restart("chat")
    save(leader)
    follower.look()
    follower.look()
    assert changed == [0, 5]


def test_one_that_follows_waits_until_the_leader_has_read_the_same_configuration(tmp_path: Path) -> None:
    leader, traffic = started(tmp_path)
    traffic.send(4000, slower=1.5)
    save(leader)
    other = a_plan(what="adapter 13", steps=(10, 100))
    follower = Rollouts(tmp_path, traffic.clock, leads=False)
    follower.change({"chat": other})
    follower.look()
    assert follower.weight("chat") == 10
    leader.change({"chat": other})
    leader.promote("chat")
    save(leader)
    follower.look()
    assert follower.weight("chat") == 100


def test_one_that_follows_neither_writes_nor_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leader, traffic = started(tmp_path)
    save(leader)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(b"{")
    follower = Rollouts(tmp_path, traffic.clock, leads=False)
    follower.change({"chat": a_plan()})
    traffic.rollouts = follower
    traffic.send(1000, slower=9.0)
    save(follower)
    assert only(follower).canaries == 0 and follower.weight("chat") == 5
    assert list(path.parent.glob("chat*")) == [path] and path.read_bytes() == b"{"
    assert not caplog.records


def test_what_can_not_be_weighed_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, traffic = started()

    def fail(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(rollouts._entries["chat"].rollout.guards[1], "add", fail)
    traffic.send(400)
    assert only(rollouts).status == "rolled_back"
    assert "can't be weighed" in only(rollouts).reason


def test_no_folder_is_made_where_there_are_no_rollouts(tmp_path: Path) -> None:
    rollouts = Rollouts(tmp_path)
    rollouts.change({})
    save(rollouts)
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_not_saved_again(tmp_path: Path) -> None:
    rollouts, traffic = started(tmp_path)
    save(rollouts)
    (path,) = tmp_path.rglob("*.json")
    path.unlink()
    save(rollouts)
    assert not path.exists()
    traffic.send(200)
    save(rollouts)
    assert path.exists()


def test_a_stream_that_goes_on_for_minutes_is_no_slow_first_token() -> None:
    rollouts, traffic = started(plan=a_plan("ttft", dwell=1e9))
    for uid in range(800):
        traffic.clock.now += 1.0
        canary = uid % 10 == 0
        rollouts.came("chat", uid, canary, "")
        if canary:
            rollouts.began("chat", uid, 0.1)  # and it never ends
        else:
            rollouts.ended("chat", uid, Ending(200, "ok", ttft=0.1, e2e=5.0))
        rollouts.look()
    shown = only(rollouts)
    assert shown.status == "running" and shown.canaries > 40
    assert "ttft 1.00 times" in shown.guards[0].says
