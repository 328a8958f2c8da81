"""Shadows that answer, and such as are dead, slow, or say too much."""

import asyncio
import contextlib
import logging
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.telemetry.metrics import Metrics
from gateway.traffic.answers import CHAT, MESSAGES, RESPONSES, Answer, Said
from gateway.traffic.ending import Ending
from gateway.traffic.leader import Followers, ToLeader
from gateway.traffic.shadow import review, saved, service
from gateway.traffic.shadow.compare import compare
from gateway.traffic.shadow.judging import Judged
from gateway.traffic.shadow.line import FAILURES, UNDER_WAY, WAITING
from gateway.traffic.shadow.reports import CopiesLost, Telling
from gateway.traffic.shadow.sampling import ShadowPlan
from gateway.traffic.shadow.service import ANSWER_LIMIT, Asked, Copies, Shadows
from gateway.wire.shadows import ShadowStanding
from tests.gateway.harness import run

PLAN = ShadowPlan("next")
BODY = b'{"model": "chat", "stream": true, "messages": [{"role": "user", "content": "2 + 2?"}]}'


def said(text: str) -> Asked:
    message = {"role": "assistant", "content": text}
    return Asked(200, msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))


def ended(text: str) -> Ending:
    return Ending(200, "ok", answer=Answer(text, (), "stop"))


class Rig:
    """Shadows of one model, ``chat``, all of whose requests go to the target ``next``."""

    def __init__(self, shadows: Shadows, metrics: Metrics) -> None:
        self.shadows = shadows
        self.metrics = metrics

    def copy(self, body: bytes = BODY, endpoint: str = CHAT, plan: ShadowPlan = PLAN) -> Copies:
        return self.shadows.copy("chat", endpoint, body, (plan,), "req-1")

    def pair(self, text: str, **more: Any) -> None:
        self.copy(**more).primary(ended(text))

    @property
    def counts(self) -> dict[str, float]:
        """By outcome, as the metrics have it."""
        page = self.metrics.page().decode().splitlines()
        name = 'penstock_shadow_requests_total{model="chat",outcome="'
        return {
            line.removeprefix(name).partition('"')[0]: float(line.rpartition(" ")[2])
            for line in page
            if line.startswith(name)
        }

    @property
    def standing(self) -> ShadowStanding:
        (shadow,) = self.shadows.shown().shadows
        (found,) = shadow.endpoints
        return found

    async def until(self, **counts: int) -> None:
        """Wait until so many copies have had these outcomes, and none another."""
        while self.counts != counts:
            assert sum(self.counts.values()) <= sum(counts.values()), self.counts
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def working(
    ask: Callable[[str, str, bytes], Awaitable[Asked]],
    folder: Path | None = None,
    plan: ShadowPlan = PLAN,
    **more: Any,
) -> AsyncIterator[Rig]:
    metrics = Metrics()
    shadows = Shadows(ask, folder, metrics, **more)
    shadows.change({"chat": [plan]})
    work = asyncio.create_task(shadows.run())
    await asyncio.sleep(0)
    try:
        yield Rig(shadows, metrics)
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_PAUSE", 0.001)
    monkeypatch.setattr(service, "_REST", 0.0)


async def four(target: str, endpoint: str, body: bytes) -> Asked:
    return said("Four.")


async def never(target: str, endpoint: str, body: bytes) -> Asked:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def test_what_is_wanted() -> None:
    shadows = Shadows(four, None, Metrics())
    assert shadows.wants("chat", "req-1") == ()
    shadows.change({"chat": [PLAN, ShadowPlan("other", 0.0)], "more": []})
    assert shadows.wants("chat", "req-1") == (PLAN,)
    assert shadows.wants("more", "req-1") == shadows.wants("other", "req-1") == ()


def test_what_came_of_copies_in_another_process_is_known_to_the_one_that_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_TELL", 0.01)

    async def refuse(target: str, endpoint: str, body: bytes) -> Asked:
        return Asked(500, b"") if b"fail" in body else said("Four.")

    async def scenario() -> None:
        to_leader = ToLeader(tmp_path / "l")
        async with (
            working(four, tmp_path / "data") as leader,
            working(refuse, tmp_path / "other", to_leader=to_leader) as follower,
        ):
            followers = Followers(tmp_path / "l", lambda _, it: leader.shadows.take(it), lambda _: None)  # type: ignore[arg-type]
            tasks = [asyncio.create_task(one.run()) for one in (followers, to_leader)]
            for text in ("Four.", "four", "Five."):
                follower.pair(text)
            follower.pair("Six", body=BODY.replace(b"2 + 2?", b"fail"))
            await follower.until(compared=3, failed=1)
            leader.pair("Five.")
            await leader.until(compared=1)  # its own, in the metrics
            async with asyncio.timeout(5):
                while (leader.standing.compared, leader.standing.failed) != (4, 1):
                    await asyncio.sleep(0.005)
            assert leader.standing.agreement == 0.5 and leader.standing.failures == {"500": 1}
            pairs = leader.shadows.pairs("chat", "next", 10, differing=False) or []
            assert sorted(pair.answer.text for pair in pairs) == ["Five.", "Five.", "Four.", "four"]
            assert not follower.shadows.pairs("chat", "next", 10, differing=False)  # the leader's to keep
            (file,) = (tmp_path / "data" / "shadows").glob("*.jsonl")
            async with asyncio.timeout(5):
                while len(file.read_bytes().splitlines()) < 2:
                    await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert not (tmp_path / "other").exists()

    run(scenario())


def test_pairs_that_are_too_much_to_tell_are_compared_all_the_same() -> None:
    now = 10.0
    told: list[Any] = []
    telling = Telling(told.append, lambda: now)
    comparison = compare(Answer("Four."), Answer("Five."))
    key = ("chat", "next", CHAT)
    for size in (1 << 19, 1 << 19, 1):
        telling.judged(key, Judged(comparison, (), b"x" * size))
    now += 1.0
    telling.judged(key, Judged(comparison, (), b"y"))
    telling.judged(key, Judged(comparison, (), b""))
    assert [(len(one.line), one.left) for one in told] == [
        (1 << 19, False), (1 << 19, False), (0, True), (1, False), (0, False)
    ]  # fmt: skip
    shadows = Shadows(four, None, Metrics())
    shadows.change({"chat": [PLAN]})
    for one in told:
        shadows.take(one)
    shadows.take(CopiesLost(("chat", "gone", CHAT), "dropped", "", 3))  # of a shadow that there is no more
    (shadow,) = shadows.shown().shadows
    assert shadow.endpoints[0].compared == 5 and shadows.shown().unwritten == 1


def test_many_losses_are_told_at_once() -> None:
    told: list[Any] = []
    telling = Telling(told.append)
    for _ in range(1000):
        telling.lost(("chat", "next", CHAT), "dropped", "")
    telling.lost(("chat", "next", CHAT), "failed", "500")
    telling.flush()
    telling.flush()
    assert [(one.loss, one.why, one.count) for one in told] == [("dropped", "", 1000), ("failed", "500", 1)]


def test_pairs_are_compared() -> None:
    async def scenario() -> None:
        asked: list[tuple[str, str, bytes]] = []

        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            asked.append((target, endpoint, body))
            return said("Four.")

        async with working(ask) as rig:
            for text in ("Four.", "four", "Five."):
                rig.pair(text)
            await rig.until(compared=3)
            target, endpoint, body = asked[0]
            assert (target, endpoint) == ("next", CHAT)
            assert msgspec.json.decode(body) == {"model": "chat", "messages": [{"role": "user", "content": "2 + 2?"}]}
            found = rig.standing
            assert (found.endpoint, found.compared) == (CHAT, 3)
            assert [found.exact, found.normalised, found.agreement] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
            page = rig.metrics.page().decode()
            assert 'penstock_shadow_agreement_ratio{model="chat",target="next"} 0.6666' in page
            assert "penstock_shadow_waiting 0.0" in page
            (pair,) = rig.shadows.pairs("chat", "next", 10) or []
            assert (pair.answer.text, pair.shadow.text, pair.agrees) == ("Five.", "Four.", False)
            both = rig.shadows.pairs("chat", "next", 10, differing=False) or []
            assert sorted(pair.agrees for pair in both) == [False, True, True]
            assert rig.shadows.pairs("chat", "other", 10) is None
            assert rig.shadows._held == 0

    run(scenario())


@pytest.mark.parametrize("shadow_first", [False, True])
def test_whoever_answers_first_waits_for_the_other(shadow_first: bool) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        answered = asyncio.Event()

        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            await gate.wait()
            answered.set()
            return said("Four.")

        async with working(ask) as rig:
            copies = rig.copy()
            assert copies.wanted
            if shadow_first:
                gate.set()
                await answered.wait()
                await asyncio.sleep(0.01)
                assert rig.counts == {} and copies.wanted
                copies.primary(ended("Four."))
            else:
                copies.primary(ended("Four."))
                await asyncio.sleep(0.01)
                assert rig.counts == {}
                gate.set()
            await rig.until(compared=1)
            copies.primary(ended("Four."))  # once more does no harm
            await asyncio.sleep(0.01)
            assert rig.counts == {"compared": 1.0}

    run(scenario())


def test_a_primary_may_leave_its_answer_unread() -> None:
    async def scenario() -> None:
        async with working(four) as rig:
            for size in (0, 3):  # what is cut is no answer
                body = said("Four.").body[size:]
                rig.copy().primary(Ending(200, "ok"), Said(CHAT, [body[:9], body[9:]], len(body), False))
            await rig.until(compared=1, unread=1)
            assert rig.standing.exact == 1
            rig.copy().primary(Ending(499, "disconnected"), Said(CHAT, [said("Four.").body], 9, False))
            await rig.until(compared=1, unread=2)
            assert rig.shadows._held == 0

    run(scenario())


@pytest.mark.parametrize(
    "ending",
    [
        Ending(503, "failed"),
        Ending(499, "disconnected", answer=Answer("Fo")),  # it left in the middle
        Ending(200, "ok"),
    ],
)
def test_without_a_whole_answer_there_is_nothing_to_compare(ending: Ending) -> None:
    async def scenario() -> None:
        async with working(four) as rig:
            rig.copy().primary(ending)
            await rig.until(unread=1)
            assert rig.shadows._held == 0

    run(scenario())


def test_what_is_over_is_not_asked_any_more() -> None:
    async def scenario() -> None:
        asked = 0

        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0.01)
            return said("Four.")

        async with working(ask) as rig:
            for _ in range(UNDER_WAY + 10):
                rig.copy().primary(Ending(503, "failed"))
            await rig.until(unread=UNDER_WAY + 10)
            await asyncio.sleep(0.05)
            assert asked == 0

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "outcome", "why"),
    [
        (Asked(404, b"{}"), "failed", {"404": 1}),
        (Asked(0, b""), "failed", {"0": 1}),
        (Asked(200, b"x" * (ANSWER_LIMIT + 1)), "failed", {"too long": 1}),
        (Asked(200, b"{}"), "unread", {}),
        (Asked(200, b"<html>"), "unread", {}),
    ],
)
def test_what_a_shadow_may_say_instead(answer: Asked, outcome: str, why: dict[str, int]) -> None:
    async def scenario() -> None:
        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            return answer

        async with working(ask) as rig:
            rig.pair("Four.")
            await rig.until(**{outcome: 1})
            assert rig.standing.failures == why
            assert rig.shadows._held == 0

    run(scenario())


def test_requests_that_cannot_be_copied_are_not_asked() -> None:
    async def scenario() -> None:
        async with working(never) as rig:
            rig.pair("Four.", body=b'{"conversation": "conv_1"}', endpoint=RESPONSES)
            await rig.until(unread=1)
            assert not rig.copy(endpoint="/v1/embeddings").wanted
            assert rig.counts == {"unread": 1.0}

    run(scenario())


def test_a_dead_target_is_left_alone() -> None:
    async def scenario() -> None:
        asked = 0

        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            nonlocal asked
            asked += 1
            raise ConnectionRefusedError

        async with working(ask) as rig:
            for _ in range(500):
                rig.pair("Four.")
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            assert FAILURES <= asked <= FAILURES + UNDER_WAY
            assert rig.counts == {"failed": asked, "dropped": 500 - asked}
            assert rig.standing.failures == {"no answer": asked}
            (shadow,) = rig.shadows.shown().shadows
            assert shadow.rest > 0 and (shadow.waiting, shadow.under_way) == (0, 0)
            assert rig.shadows._held == 0

    run(scenario())


def test_requests_at_fault_do_not_count_against_the_target() -> None:
    async def scenario() -> None:
        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            return Asked(400, b"{}")

        async with working(ask) as rig:
            for _ in range(20):
                rig.pair("Four.")
            await rig.until(failed=20)
            (shadow,) = rig.shadows.shown().shadows
            assert shadow.rest == 0

    run(scenario())


def test_a_slow_target_holds_so_many_and_no_more() -> None:
    async def scenario() -> None:
        async with working(never) as rig:
            kept = [rig.copy() for _ in range(1000)]
            await asyncio.sleep(0.01)
            (shadow,) = rig.shadows.shown().shadows
            assert shadow.under_way == UNDER_WAY
            # Those that ask took theirs after all had come.
            assert shadow.waiting + UNDER_WAY == sum(copies.wanted for copies in kept) == WAITING
            assert rig.counts == {"dropped": 1000 - WAITING}
            assert rig.shadows._held == WAITING * len(BODY)

    run(scenario())


def test_a_slow_target_is_given_up_and_then_left_alone() -> None:
    async def scenario() -> None:
        async with working(never, timeout=0.01) as rig:
            for _ in range(WAITING):
                rig.pair("Four.")
            while sum(rig.counts.values()) < WAITING:
                await asyncio.sleep(0.005)
            failed = rig.counts["failed"]
            assert FAILURES <= failed < FAILURES + UNDER_WAY
            assert rig.counts == {"failed": failed, "dropped": WAITING - failed}
            assert rig.standing.failures == {"timeout": failed}
            rig.pair("Four.")
            assert rig.counts == {"failed": failed, "dropped": WAITING - failed + 1}

    run(scenario())


def test_a_flooding_target_takes_no_memory() -> None:
    async def scenario() -> None:
        flood = b"x" * (ANSWER_LIMIT + 1)

        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            return Asked(200, flood)

        async with working(ask) as rig:
            for _ in range(300):
                rig.copy()
                await asyncio.sleep(0)
            assert rig.shadows._held == 0
            assert rig.standing.failed <= FAILURES + UNDER_WAY and rig.standing.dropped >= 280
            assert set(rig.standing.failures) == {"too long"}

    run(scenario())


def test_all_copies_together_have_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_HELD", 10_000)
    monkeypatch.setattr(service, "_BODY", 6_000)

    async def scenario() -> None:
        gate = asyncio.Event()

        async def ask(target: str, endpoint: str, body: bytes) -> Asked:
            await gate.wait()
            return said("x" * 5500)

        body = b'{"user": "%b"}' % (b"x" * 3986)
        async with working(ask) as rig:
            first = [rig.copy(body) for _ in range(3)]
            assert [copies.wanted for copies in first] == [True, True, False]
            assert not rig.copy(b"x" * 6001).wanted
            gate.set()
            await rig.until(dropped=3)  # of two answers there is room for one
            assert [copies.wanted for copies in first] == [False, True, False]
            assert 9_000 < rig.shadows._held <= 10_000
            first[0].primary(ended("x"))
            first[1].primary(ended("x"))
            await rig.until(dropped=3, compared=1)
            assert rig.shadows._held == 0

    run(scenario())


def test_pairs_and_counts_survive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with working(four, tmp_path) as rig:
            rig.pair("Four.")
            rig.pair("Five.")
            rig.pair("Four.", endpoint=MESSAGES)  # whose answers have another shape
            await rig.until(compared=2, unread=1)
        async with working(four, tmp_path) as rig:
            (shadow,) = rig.shadows.shown().shadows
            assert [(it.endpoint, it.compared, it.unread) for it in shadow.endpoints] == [
                (CHAT, 2, 0),
                (MESSAGES, 0, 1),
            ]
            (pair,) = rig.shadows.pairs("chat", "next", 10) or []
            assert pair.answer.text == "Five."
            assert 'penstock_shadow_agreement_ratio{model="chat",target="next"} 0.5' in rig.metrics.page().decode()
            rig.pair("Four.")
            await rig.until(compared=1)
            assert rig.shadows.shown().shadows[0].endpoints[0].compared == 3
        files = sorted((tmp_path / "shadows").iterdir())
        assert len(files) == 2
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    run(scenario())


def test_counts_are_written_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_SAVE", 0.01)

    async def scenario() -> None:
        async with working(four, tmp_path) as rig:
            rig.pair("Four.")
            await rig.until(compared=1)
            while not (tmp_path / "shadows" / "agreement.json").exists():
                await asyncio.sleep(0.005)

    run(scenario())


def test_counts_that_cannot_be_read_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shadows").mkdir()
    (tmp_path / "shadows" / "agreement.json").write_bytes(b"{")
    shadows = Shadows(four, tmp_path, Metrics())
    shadows.change({"chat": [PLAN]})
    assert shadows.shown().shadows[0].endpoints == []
    assert "can't be read" in caplog.text


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(service, "_SAVE", 0.005)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(review, "append", full)
            patch.setattr(saved, "write_whole", full)
            async with working(four, tmp_path) as rig:
                for number in range(40):
                    rig.pair(f"{number}")
                    await asyncio.sleep(0.002)
                await rig.until(compared=40)
                await asyncio.sleep(0.02)
                assert rig.shadows.shown().unwritten == 40
                assert len(rig.shadows.pairs("chat", "next", 100) or []) == 40

    with caplog.at_level(logging.WARNING):
        run(scenario())
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and all("No space left on device" in message for message in warned)


def test_nothing_of_what_users_say_is_kept_where_a_plan_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        plan = ShadowPlan("next", keep="none")
        async with working(four, tmp_path, plan) as rig:
            rig.pair("Five.", plan=plan)
            await rig.until(compared=1)
            assert rig.shadows.pairs("chat", "next", 10, differing=False) == []
        assert [file.name for file in (tmp_path / "shadows").iterdir()] == ["agreement.json"]
        assert b"Five" not in (tmp_path / "shadows" / "agreement.json").read_bytes()

    run(scenario())


def test_a_shadow_that_is_taken_away_is_forgotten() -> None:
    async def scenario() -> None:
        async with working(never) as rig:
            copies = [rig.copy() for _ in range(UNDER_WAY + 5)]
            await asyncio.sleep(0.005)
            rig.shadows.change({})
            assert rig.shadows.shown().shadows == [] and rig.counts == {}
            assert rig.shadows.pairs("chat", "next", 10) is None
            for one in copies:
                one.primary(ended("Four."))
            assert rig.counts == {}  # no label of a shadow that isn't there
            rig.shadows.change({"chat": [PLAN]})
            (shadow,) = rig.shadows.shown().shadows
            assert (shadow.waiting, shadow.under_way, shadow.endpoints) == (0, 0, [])

    run(scenario())


def test_what_is_known_stays_when_something_else_changes() -> None:
    async def scenario() -> None:
        async with working(four) as rig:
            rig.pair("Five.")
            await rig.until(compared=1)
            rig.shadows.change({"chat": [ShadowPlan("next", 0.5), ShadowPlan("other")]})
            next, other = rig.shadows.shown().shadows
            assert (next.sample, next.endpoints[0].compared, other.endpoints) == (0.5, 1, [])
            assert len(rig.shadows.pairs("chat", "next", 10) or []) == 1

    run(scenario())


def test_before_and_after_the_work_copies_are_dropped() -> None:
    async def scenario() -> None:
        async with working(never) as rig:
            during = rig.copy()
            await asyncio.sleep(0.005)
            assert during.wanted
        await asyncio.sleep(0.005)
        assert not rig.copy().wanted
        assert rig.counts == {"dropped": 2.0}
        during.primary(ended("Four."))
        assert rig.shadows._held == 0

    run(scenario())


def test_a_fault_of_ours_stops_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with working(four) as rig:
            with monkeypatch.context() as patch:
                patch.setattr(service, "shadow_body", broken)
                rig.pair("Four.")
                await rig.until(failed=1)
            with monkeypatch.context() as patch:
                patch.setattr(service, "judge_all", broken)
                rig.pair("Four.")
                await rig.until(failed=1, unread=1)
            rig.pair("Four.")
            await rig.until(failed=1, unread=1, compared=1)

    run(scenario())
    assert len([record for record in caplog.records if record.exc_info]) == 2
