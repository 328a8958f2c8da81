"""What of pairs is kept, where, and who can read it: no more than the request log lets be, and no longer."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flywheel.content import Mode
from flywheel.erasure import erase, retain
from flywheel.log import beside
from flywheel.user_keys import UserKeys
from gateway.record.recorder import Recorder, RecordPlan
from gateway.telemetry.metrics import Metrics
from gateway.traffic.answers import CHAT, Answer
from gateway.traffic.shadow.judging import Pair, judge
from gateway.traffic.shadow.privacy import Privacy, is_line
from gateway.traffic.shadow.sampling import ShadowPlan
from gateway.traffic.shadow.service import Asked, Shadows
from gateway.wire.shadows import ShadowPair
from tests.gateway.harness import run
from tests.gateway.traffic.shadow.test_judging import said
from tests.gateway.traffic.shadow.test_review import line
from tests.gateway.traffic.shadow.test_service import PLAN, Rig, ended

EMAIL = "anna@example.com"


def asked(user: str | None = "ann") -> bytes:
    body: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": f"I am {EMAIL}"}]}
    return msgspec.json.encode(body if user is None else {**body, "user": user})


@contextlib.asynccontextmanager
async def keeping(
    folder: Path, mode: Mode = "full", models: Mapping[str, Mode] = {}, keys: Mapping[str, Mode] = {}
) -> AsyncIterator[Rig]:
    """Shadows beside a request log in ``folder / "log"``."""

    async def ask(target: str, endpoint: str, body: bytes) -> Asked:
        return Asked(200, said("It is five."))

    recorder = Recorder(RecordPlan(path=str(folder / "log"), content=mode, models=models, keys=keys))
    shadows = Shadows(ask, folder / "data", metrics := Metrics())
    shadows.obey(Privacy(recorder))
    shadows.change({"chat": [PLAN]})
    recorder.start()
    work = asyncio.create_task(shadows.run())
    await asyncio.sleep(0)
    try:
        yield Rig(shadows, metrics)
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        recorder.close()


def tell(rig: Rig, body: bytes, answer: str = f"Ask {EMAIL}.", key: str = "") -> None:
    rig.shadows.copy("chat", CHAT, body, (PLAN,), "req-1", key).primary(ended(answer))


def everywhere(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def newest(rig: Rig, differing: bool = True) -> list[ShadowPair]:
    return rig.shadows.pairs("chat", "next", 9, differing=differing) or []


def test_what_a_user_said_is_sealed_and_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as rig:
            tell(rig, asked())
            await rig.until(compared=1)
            (pair,) = newest(rig)
            assert (pair.request, pair.answer.text) == (asked().decode(), f"Ask {EMAIL}.")
            await asyncio.sleep(0.01)  # until it is written
        assert len(list(beside.folder(tmp_path / "log").iterdir())) == 1
        assert not any(word in everywhere(tmp_path) for word in (EMAIL.encode(), b"ann", b"five"))
        assert [path.name for path in (tmp_path / "data" / "shadows").iterdir()] == ["agreement.json"]
        async with keeping(tmp_path) as rig:
            assert newest(rig) == [pair]

    run(scenario())


def test_an_erased_users_pairs_are_unreadable_at_once_and_then_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.user_keys._LOOK_AFTER", 0.0)

    async def scenario() -> None:
        async with keeping(tmp_path) as rig:
            for user in ("ann", "bob", "ann", None):
                tell(rig, asked(user))
                await asyncio.sleep(0.01)
            tell(rig, asked(), "It is five.")  # they agree: that is in memory alone
            await rig.until(compared=5)
            assert len(newest(rig, differing=False)) == 5
            files = beside.folder(tmp_path / "log")
            while everywhere(files).count(b"\n") < 4:
                await asyncio.sleep(0.005)
            copies = {path: path.read_bytes() for path in files.iterdir()}
            keys = UserKeys(tmp_path / "log" / "keys.sqlite")
            keys.erase("ann")
            assert [pair.request for pair in newest(rig, differing=False)] == [
                asked(None).decode(),
                asked("bob").decode(),
            ]
            told: list[str] = []
            await asyncio.to_thread(erase, tmp_path / "log", "ann", told.append)
            assert "2 pairs of answers that shadows had kept are gone" in told
            assert everywhere(files).count(b"\n") == 2
            assert keys.owner("ann").hex().encode() not in everywhere(files)
            tell(rig, asked(), "A new one.")  # who comes back is somebody again
            await rig.until(compared=6)
            assert [pair.answer.text for pair in newest(rig)][:1] == ["A new one."]
            keys.close()
        for path, data in copies.items():  # a backup brings nothing back
            path.write_bytes(data)
        async with keeping(tmp_path) as rig:
            assert len(newest(rig)) == 2

    run(scenario())


@pytest.mark.parametrize(
    ("settings", "key", "kept"),
    [
        ({"mode": "redacted"}, "", True),
        ({"mode": "hash"}, "", False),
        ({"mode": "none"}, "", False),
        ({"models": {"chat": "redacted"}}, "", True),
        ({"models": {"chat": "none"}}, "", False),
        ({"keys": {"team": "none"}}, "team", False),
        ({"keys": {"team": "redacted"}, "models": {"chat": "full"}}, "team", True),
    ],
)
@pytest.mark.parametrize("user", ["ann", None])
def test_no_more_is_kept_than_the_log_may_keep(
    tmp_path: Path, settings: dict[str, Any], key: str, kept: bool, user: str | None
) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, **settings) as rig:
            tell(rig, asked(user), msgspec.json.encode({EMAIL: 4111111111111111}).decode(), key)
            await rig.until(compared=1)
            found = newest(rig)
            assert len(found) == kept
            if kept:
                assert EMAIL not in repr(found) and "4111" not in repr(found)
                assert "[EMAIL]" in (found[0].request or "") and "[CARD]" in found[0].answer.text
            await asyncio.sleep(0.01)
        assert EMAIL.encode() not in everywhere(tmp_path)

    run(scenario())


def test_comparisons_have_no_more_of_it_either() -> None:
    def pair(mode: Mode) -> Pair:
        answer = Answer(msgspec.json.encode({EMAIL: 1, "tel": "+49 30 901820"}).decode(), (("f", EMAIL),), "stop")
        return Pair("req-1", "chat", "next", CHAT, 3.0, asked(), answer, said('{"tel": "030 901821"}'), mode)

    full, redacted, hashed = judge(pair("full")), judge(pair("redacted")), judge(pair("hash")._replace(asked=None))
    assert full is not None and redacted is not None and hashed is not None
    assert full.comparison == redacted.comparison == hashed.comparison  # they count the same
    assert full.paths == redacted.paths == ("$.[EMAIL]", "$.tel")  # they outlive their user
    assert msgspec.json.decode(full.line, type=ShadowPair).comparison.fields == (f"$.{EMAIL}", "$.tel")
    assert (hashed.paths, hashed.line) == ((), b"")
    kept = msgspec.json.decode(redacted.line, type=ShadowPair)
    assert "901820" in full.line.decode()
    assert not any(piece in redacted.line.decode() for piece in (EMAIL, "901820", "+49", "901821"))
    assert kept.comparison.fields == redacted.paths
    assert kept.answer.calls == (("f", "[EMAIL]"),)


def test_long_texts_are_searched_before_they_are_cut() -> None:
    text = "x" * ((1 << 16) - 8) + " " + EMAIL
    found = judge(Pair("r", "m", "t", CHAT, 0.0, asked(), Answer(text, (), "stop"), said(text), "redacted"))
    assert found is not None and b"anna" not in found.line


def test_what_cannot_be_sealed_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"no folder")
    privacy = Privacy(Recorder(RecordPlan(path=str(tmp_path / "log"))))
    assert privacy.seal(line(1), 1.0, asked()) == b""
    assert privacy.seal(line(1), 1.0, asked(None)) == line(1)
    assert privacy.mode("chat", "") == "full"


def test_without_a_log_there_are_no_keys(tmp_path: Path) -> None:
    for privacy in (Privacy(), Privacy(None), Privacy(Recorder(None))):
        assert privacy.folder is None
        assert privacy.mode("chat", "") == "full"
        assert privacy.seal(line(1), 1.0, asked()) == line(1)
        assert privacy.open(line(1)) == msgspec.json.decode(line(1), type=ShadowPair)
        assert privacy.open(b'{"owner":"00","at":1.0,"sealed":"AAAA"}') is None


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b'{"sealed": 5}', b"\xff", b'"x"'])
def test_what_is_no_pair(body: bytes) -> None:
    assert not is_line(body)


def test_pairs_go_for_their_age(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path) as rig:
            tell(rig, asked())
            tell(rig, asked(None))
            await rig.until(compared=2)
            while everywhere(beside.folder(tmp_path / "log")).count(b"\n") < 2:
                await asyncio.sleep(0.005)

    run(scenario())
    today = datetime.datetime.now(datetime.UTC).date()
    retain(tmp_path / "log", today + datetime.timedelta(days=1), 2, None)
    assert everywhere(beside.folder(tmp_path / "log")).count(b"\n") == 2
    retain(tmp_path / "log", today + datetime.timedelta(days=9), 2, None)
    assert everywhere(beside.folder(tmp_path / "log")) == b""


def test_a_plan_that_keeps_nothing_keeps_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        plan = ShadowPlan("next", keep="none")
        async with keeping(tmp_path) as rig:
            rig.shadows.copy("chat", CHAT, asked(), (plan,), "req-1").primary(ended("It is six."))
            await rig.until(compared=1)
            assert newest(rig, differing=False) == []

    run(scenario())
