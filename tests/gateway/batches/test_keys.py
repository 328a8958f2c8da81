"""A batch's lines are the requests of the key that it was created with: its limits, its models, its end."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.app import App
from gateway.batches import work
from gateway.traffic.keys import Key
from gateway.traffic.limits.limit import Limits, Rate
from gateway.wire.batches import Batch, CreateBatch
from gateway.wire.errors import rate_limit_exceeded
from tests.gateway.batches.builders import (
    StubApp,
    content,
    jsonl,
    line,
    numbered,
    opened,
    submit,
    until,
    upload,
    with_files,
)
from tests.gateway.harness import Gateway, run
from tests.gateway.lane.upstream import obliging
from tests.gateway.traffic.harness import configured
from tests.gateway.traffic.test_routes import targets
from tests.gateway.traffic.test_scopes import ring


def chats(count: int, model: str = "fake", **fields: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}
    return jsonl([line(str(number), body=body) for number in range(count)])


async def created(gateway: Gateway, key: str, data: bytes) -> str:
    """A batch that is created by the client with this key."""
    assert gateway.context.batches is not None
    file = await upload(gateway.context.batches, data, key=gateway.context.keys.check(f"Bearer {key}".encode()).id)
    asked = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answer = await gateway.post("/v1/batches", asked, authorization=f"Bearer {key}")
    assert answer.status == 200, answer.body
    return str(answer.json["id"])


async def ended(gateway: Gateway, id: str) -> tuple[Batch, list[Any], list[Any]]:
    """The batch, what was answered and what failed."""
    batches = gateway.context.batches
    assert batches is not None
    batch = await until(batches, id, "completed")
    return batch, await content(batches, batch.output_file_id), await content(batches, batch.error_file_id)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_LINGER", 0.0)


@pytest.mark.parametrize(
    ("limits", "count"),
    [(Limits(concurrent=2), 5), (Limits(requests=Rate(6, 1)), 10), (Limits(tokens=Rate(60, 1)), 10)],
)
def test_lines_wait_for_limits(limits: Limits, count: int, model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path, fake={"delay": 0.005}) as gateway:
            gateway.context.keys = ring(team=Key(id="team", limits=limits), all=Key(id="all"))
            id = await created(gateway, "team", chats(count))
            free = await created(gateway, "all", chats(20))
            assert (await ended(gateway, free))[0].request_counts.completed == 20  # the others don't wait with them
            batch, answered, failed = await ended(gateway, id)
            assert (len(answered), failed, batch.request_counts.completed) == (count, [], count)
            page = (await gateway.get("/metrics")).body.decode()
            assert f'penstock_key_requests_total{{key="team"}} {count:.1f}' in page
            assert batch.usage is not None
            assert f'penstock_key_tokens_total{{key="team"}} {batch.usage.total_tokens:.1f}' in page

    run(scenario(), 30)


def test_lines_that_pass_through_are_as_limited(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging) as (section, made),
            configured(tmp_path, "models: {chat: {target: a}, other: {target: a}}\n" + section) as gateway,
            opened(tmp_path / "batches", App(gateway.context)) as batches,
        ):
            limits = Limits(requests=Rate(3, 1))
            other = jsonl([line("other", body={"model": "other", "messages": []})])
            gateway.context.keys = ring(team=Key(id="team", limits=limits, models=frozenset({"chat"})))
            file = await upload(batches, chats(6, "chat") + other, key="team")
            batch = await batches.create(asking(file.id), "team")
            batch = await until(batches, batch.id, "completed")
            assert batch.request_counts.completed == 6
            (failed,) = await content(batches, batch.error_file_id)
            assert code(failed) == "model_not_allowed"
            page = (await gateway.get("/metrics", authorization="Bearer team")).body.decode()
            assert 'penstock_key_requests_total{key="team"} 6.0' in page
            assert 'penstock_key_refused_total{key="team",limit="requests"}' in page
            assert len(made[0].requests) == 6

    run(scenario())


def test_what_can_not_be_had_any_more_is_an_error_of_the_line(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway:
            gateway.context.keys = ring(
                day=Key(id="day", limits=Limits(tokens_per_day=60)),
                small=Key(id="small", limits=Limits(tokens=Rate(20, 60))),
                other=Key(id="other", models=frozenset({"other"})),
            )
            _, answered, failed = await ended(gateway, await created(gateway, "day", chats(20)))
            assert answered and failed and len(answered) + len(failed) == 20
            assert {code(one) for one in failed} == {"insufficient_quota"}
            _, answered, failed = await ended(gateway, await created(gateway, "small", chats(2, max_tokens=50)))
            assert not answered and {code(one) for one in failed} == {"rate_limit_exceeded"}
            assert "larger than the limit" in failed[0]["response"]["body"]["error"]["message"]
            _, answered, failed = await ended(gateway, await created(gateway, "other", chats(2)))
            assert not answered and {code(one) for one in failed} == {"model_not_allowed"}

    run(scenario())


def code(failed: Any) -> str:
    return str(failed["response"]["body"]["error"]["code"])


def test_a_key_that_is_taken_away_takes_its_batches_with_it(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway:
            few = Key(id="team", limits=Limits(concurrent=1, requests=Rate(3, 60)))
            gateway.context.keys = ring(old=few)
            id = await created(gateway, "old", chats(8))
            assert gateway.context.batches is not None
            while (await batch_of(gateway, id)).request_counts.completed < 3:
                await asyncio.sleep(0.005)
            gateway.context.keys = ring(newer=few)  # another secret, the same key
            await asyncio.sleep(0.1)
            assert (await batch_of(gateway, id)).request_counts.failed == 0
            gateway.context.keys = ring(another=Key(id="another"))
            _, answered, failed = await ended(gateway, await created(gateway, "another", chats(1)))
            assert len(answered) == 1
        # The next server has the key no more.
        async with with_files(model_folder, tmp_path) as gateway:
            gateway.context.keys = ring(another=Key(id="another"))
            _, answered, failed = await ended(gateway, id)
            assert (len(answered), len(failed)) == (3, 5) and {code(one) for one in failed} == {"invalid_api_key"}
            assert "'team'" in failed[0]["response"]["body"]["error"]["message"]
            assert {one["response"]["status_code"] for one in failed} == {401}

    run(scenario())


async def batch_of(gateway: Gateway, id: str) -> Batch:
    assert gateway.context.batches is not None
    found = await gateway.context.batches.get(id, "team")
    assert found is not None
    return found


def test_a_restart_remembers_whose_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        async with opened(tmp_path, app) as batches:
            file = await upload(batches, numbered(2), key="team")
            made = await batches.create(asking(file.id), "team")
            await until(batches, made.id, "in_progress")
        app.open.set()
        async with opened(tmp_path, app) as batches:
            await until(batches, made.id, "completed")
        assert {scope["state"]["key"] for scope in app.scopes} == {"team"}

    run(scenario())


def asking(file: str) -> CreateBatch:
    return CreateBatch(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")


def test_who_waits_for_a_limit_takes_no_place(tmp_path: Path) -> None:
    """Lines that wait for hours leave the places for requests to other batches, and few are tried again each time."""

    async def scenario() -> None:
        refused = 0

        class Limited(StubApp):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                nonlocal refused
                if scope["state"]["key"] != "team":
                    await super().__call__(scope, receive, send)
                    return
                refused += 1
                error = rate_limit_exceeded("requests", "no", {"retry-after": "1"})
                scope["state"]["fault"] = error
                headers = [(b"retry-after", b"1")]
                await send({"type": "http.response.start", "status": 429, "headers": headers})
                await send({"type": "http.response.body", "body": error.body})

        async with opened(tmp_path, Limited(), concurrency=8) as batches:
            file = await upload(batches, numbered(100), key="team")
            waits = await batches.create(asking(file.id), "team")
            await until(batches, waits.id, "in_progress")
            for _ in range(2):
                await until(batches, (await submit(batches, numbered(50))).id, "completed")
            await asyncio.sleep(1.2)
            assert refused <= 9 + 4  # one waits for a place already when the first eight are refused
            assert await batches.cancel(waits.id, "team") is not None
            batch = await until(batches, waits.id, "cancelled")
            assert batch.request_counts.failed == 100

    run(scenario())
