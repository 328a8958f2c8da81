"""``/admin/shadows``: what operators see of shadows, and of the pairs of answers that were kept."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.traffic.answers import Answer
from gateway.traffic.ending import Ending
from gateway.traffic.keys import Key, Keyring, hash_key
from gateway.traffic.shadow.sampling import ShadowPlan
from gateway.traffic.shadow.service import Asked, Shadows
from gateway.wire.shadows import ShadowList, ShadowPairList
from tests.gateway.harness import Gateway, run, serving

PAIRS = "/admin/shadows/pairs?model=chat&target=next"
CHAT = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def shadowing(gateway: Gateway, *texts: str) -> AsyncIterator[Shadows]:
    """A gateway whose model ``chat`` has answered these texts, and its shadow always "4"."""

    async def ask(target: str, endpoint: str, body: bytes) -> Asked:
        message = {"role": "assistant", "content": "4"}
        return Asked(200, msgspec.json.encode({"choices": [{"message": message, "finish_reason": "stop"}]}))

    plan = ShadowPlan("next", 0.5)
    shadows = gateway.context.shadows = Shadows(ask, None, gateway.context.metrics)
    shadows.change({"chat": [plan]})
    work = asyncio.create_task(shadows.run())
    await asyncio.sleep(0)
    for text in texts:
        copies = shadows.copy("chat", CHAT, b'{"model": "chat"}', [plan], f"req-{text}")
        copies.primary(Ending(200, "ok", answer=Answer(text, (), "stop")))
    labels = 'model="chat",outcome="compared",target="next"'
    while await gateway.metric(f"penstock_shadow_requests_total{{{labels}}}") < len(texts):
        await asyncio.sleep(0.005)
    try:
        yield shadows
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


def test_without_shadows_there_is_nothing_to_see(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            assert (await gateway.get("/admin/shadows")).json == {"shadows": [], "unwritten": 0}
            found = await gateway.get(PAIRS)
            assert (found.status, found.json["error"]["code"]) == (404, "not_found")

    run(scenario())


def test_agreement_is_shown(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, shadowing(gateway, "4", "5", "4."):
            found = await gateway.get("/admin/shadows")
            (shadow,) = msgspec.json.decode(found.body, type=ShadowList).shadows
            assert (shadow.model, shadow.target, shadow.sample, shadow.keep) == ("chat", "next", 0.5, "pairs")
            assert (shadow.waiting, shadow.under_way, shadow.rest) == (0, 0, 0)
            (endpoint,) = shadow.endpoints
            assert (endpoint.endpoint, endpoint.compared) == (CHAT, 3)
            assert endpoint.agreement == pytest.approx(2 / 3)
            assert 0 < endpoint.agreement_low < 2 / 3 < endpoint.agreement_high < 1

    run(scenario())


def test_pairs_are_shown(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, shadowing(gateway, "4", "5", "6"):

            async def pairs(more: str = "") -> list[Any]:
                found = await gateway.get(PAIRS + more)
                assert found.status == 200, found.body
                return msgspec.json.decode(found.body, type=ShadowPairList).pairs

            newest, before = await pairs()
            assert [newest.answer.text, before.answer.text] == ["6", "5"]
            assert (newest.shadow.text, newest.request_id, newest.request) == ("4", "req-6", '{"model":"chat"}')
            assert not newest.agrees and newest.comparison.numbers == ("4", "6")
            assert await pairs("&limit=1") == [newest]
            assert {pair.answer.text for pair in await pairs("&differing=false")} == {"4", "5", "6"}

    run(scenario())


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("", 400, "model"),
        ("?model=chat", 400, "target"),
        ("?model=chat&target=", 400, "target"),
        ("?model=chat&target=next&limit=0", 400, "limit"),
        ("?model=chat&target=next&limit=201", 400, "limit"),
        ("?model=chat&target=next&limit=many", 400, "limit"),
        ("?model=chat&target=next&differing=maybe", 400, "differing"),
        ("?model=chat&target=other", 404, "target"),
        ("?model=other&target=next", 404, "target"),
        ("?" + "&".join(f"x{number}=1" for number in range(50)), 400, "query"),
    ],
)
def test_what_makes_no_sense(model_folder: Path, query: str, status: int, param: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, shadowing(gateway):
            found = await gateway.get(f"/admin/shadows/pairs{query}")
            assert (found.status, found.json["error"]["param"]) == (status, param)

    run(scenario())


def test_only_administrators_see_them(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, shadowing(gateway):
            gateway.context.keys = Keyring([(hash_key(b"sk"), Key(id="team"))])
            for path in ("/admin/shadows", PAIRS):
                assert (await gateway.get(path)).status == 401
                assert (await gateway.request("GET", path, headers={"authorization": "Bearer sk"})).status == 403

    run(scenario())
