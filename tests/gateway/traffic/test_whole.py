"""Every endpoint, every kind of connection, and changes of the configuration, on models with variants of every kind."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine.link import Failed
from flywheel.record import Record
from gateway.api.inside import ask
from gateway.traffic.keys import hash_key
from tests.gateway.harness import read_answer, request_bytes, run
from tests.gateway.lane.harness import CHAT, until
from tests.gateway.lane.upstream import USAGE, Talk, obliging, sse
from tests.gateway.record.test_recording import record_of, records
from tests.gateway.traffic.harness import chat, configured
from tests.gateway.traffic.test_ends import BEARER, FALLBACK, KEY, ROLLOUT, WAYS, counted, let_go, settings
from tests.gateway.traffic.test_routes import failing, targets
from tests.gateway.traffic.test_watching import rollout_of

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "chat", "prompt": "x"},
    "/v1/embeddings": {"model": "chat", "input": "x"},
    "/v1/responses": {"model": "chat", "input": "x"},
    "/v1/messages": {"model": "chat", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
    "/v1/messages/count_tokens": {"model": "chat", "messages": [{"role": "user", "content": "x"}]},
    CHAT: chat("x", n=2),
}
SHADOW = FALLBACK.replace("b]}", "b], shadow: [{target: b, sample: 100%}]}")


async def anything(talk: Talk) -> None:
    """Answer whatever is asked for."""
    text = [{"type": "text", "text": "x"}]
    answers: dict[str, dict[str, Any]] = {
        "/v1/completions": {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}], "usage": USAGE},
        "/v1/embeddings": {"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}},
        "/v1/responses": {"id": "r", "object": "response", "status": "completed", "output": []},
        "/v1/messages": {"type": "message", "content": text, "stop_reason": "end_turn"},
        "/v1/messages/count_tokens": {"input_tokens": 3},
    }
    path = talk.request.line.split()[1]
    if path in answers:
        talk.reply(answers[path])
    else:
        await obliging(talk)


@pytest.mark.parametrize("here", WAYS)
def test_every_endpoint(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    models = ROLLOUT.replace("rollout:", "shadow: [{target: b, sample: 100%}], fallback: [a, b], rollout:")

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, anything, anything, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, models) + section) as gateway,
        ):
            for path, body in BODIES.items():
                for variant in ("stable", "canary"):
                    answer = await gateway.post(body, path, x_penstock_variant=variant)
                    assert (answer.status, answer.headers["x-penstock-variant"]) == (200, variant), (path, answer)
                assert (await gateway.post(body, path)).status == 200
            await let_go(gateway)
            assert counted(gateway) == {("chat", "ok"): 3 * len(BODIES)}  # no copy is counted
            assert len(records(tmp_path)) == 3 * (len(BODIES) - 1)  # to count tokens is no request of a model

    run(scenario())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", CHAT])
@pytest.mark.parametrize("here", WAYS)
def test_nobody_can_answer(here: int | None, path: str, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, failing(503), failing(500), here=here) as (section, made),
            configured(tmp_path, settings(tmp_path, FALLBACK) + section) as gateway,
        ):
            if here is not None:
                made[here].refuse = ("internal", "no")
            for number, stream in enumerate((False, True), 1):
                answer = await gateway.post(BODIES[path] | {"stream": stream}, path)
                assert (answer.status, answer.headers["x-penstock-variant"]) == (500, "b")
                record = await record_of(tmp_path, number)
                assert (record.outcome, record.status, record.variant) == ("failed", 500, "b")
                if here == 1:  # the error is our own
                    assert (answer.json.get("type") == "error") is (path == "/v1/messages")
                    assert record.error_type == "internal_error"
            await let_go(gateway)
            assert counted(gateway) == {("chat", "failed"): 2}

    run(scenario())


@pytest.mark.parametrize("durability", ["", "os", "disk"])
@pytest.mark.parametrize("here", WAYS)
def test_pipelining(here: int | None, durability: str, tmp_path: Path, model_folder: Path) -> None:
    log = f"log: {{path: {tmp_path / 'log'}, durability: {durability}}}\n" if durability else ""
    asked = [("chat", True), ("plain", False), ("chat", False), ("plain", True)]

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, FALLBACK + log + section) as gateway,
        ):
            for last in ({}, {"connection": "close"}):
                reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                for number, (model, stream) in enumerate(asked):
                    headers = {"x-request-id": f"r{number}", **(last if number == 3 else {})}
                    writer.write(request_bytes("POST", CHAT, chat(model=model, stream=stream), headers))
                for number in range(len(asked)):
                    answer = await asyncio.wait_for(read_answer(reader), 5)
                    assert (answer.status, answer.headers["x-request-id"]) == (200, f"r{number}")
                if last:
                    assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
            await let_go(gateway)
            assert not log or len(records(tmp_path)) == 2 * len(asked)

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_what_is_too_large_is_said_and_recorded(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, FALLBACK) + section) as gateway,
        ):
            answer = await gateway.post(chat("x" * (1 << 21)))
            assert answer.status == 413 and answer.json["error"]["code"] == "request_too_large"
            record = await record_of(tmp_path)
            assert (record.status, record.outcome) == (413, "invalid")
            await let_go(gateway)

    run(scenario())


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("here", [None, 1])
def test_who_reads_slowly_is_waited_for(here: int | None, log: bool, tmp_path: Path, model_folder: Path) -> None:
    sent = 0

    async def flood(talk: Talk) -> None:
        nonlocal sent
        talk.begin_stream()
        data = sse({"choices": [{"index": 0, "delta": {"content": "x" * 50_000}, "finish_reason": None}]})
        while True:
            talk.chunk(data)
            sent += len(data)
            await talk.writer.drain()

    async def scenario() -> None:
        text = settings(tmp_path, SHADOW) if log else SHADOW
        async with (
            targets(tmp_path, model_folder, flood, obliging, here=here) as (section, _),
            configured(tmp_path, text + section) as gateway,
        ):
            under_way = await gateway.send(chat(stream=True))
            before = -1
            async with asyncio.timeout(10):
                while before != sent or not sent:  # until nothing more goes out
                    before = sent
                    await asyncio.sleep(0.3)
            assert sent < 40 << 20
            under_way.leave()
            await let_go(gateway)

    run(scenario())


async def slow(talk: Talk) -> None:
    talk.begin_stream()
    for _ in range(30):
        talk.event("x")
        await asyncio.sleep(0.02)
    talk.end_stream()


@pytest.mark.parametrize("here", WAYS)
def test_reloads_while_requests_run(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = settings(tmp_path, ROLLOUT.replace("rollout:", "shadow: [{target: a, sample: 100%}], rollout:"))
        log = text[text.index("log:") :]
        async with (
            targets(tmp_path, model_folder, slow, slow, slow, here=here, delay=0.02) as (section, made),
            configured(tmp_path, text + section) as gateway,
        ):
            if here is not None:
                made[here].script = lambda submit: [70] * 30
            without_b = "".join(line for line in section.splitlines(True) if not line.startswith("  b:"))
            running: list[asyncio.Task[Any]] = []
            for after in (
                text.replace("canary: {target: b}", "canary: {target: c}") + section,  # another canary
                "models: {chat: {target: c}}\n" + log + without_b,  # no rollout, and its first canary is gone
                text + section,  # all is as it was
                "models: {other: {target: a}}\n" + log + section,  # the model is gone
            ):
                for variant in ({"x_penstock_variant": "stable"}, {"x_penstock_variant": "canary"}, {}, {}):
                    if variant and "variants" not in gateway.file.read_text():
                        continue
                    asked = chat(stream=True, max_tokens=40)
                    running.append(asyncio.create_task(gateway.post(asked, **variant)))
                await asyncio.sleep(0.1)
                await gateway.reload(after)
            assert (await gateway.post(chat())).status == 404
            for one in running:
                answer = await one
                assert (answer.status, answer.events[-1]) == (200, "[DONE]"), answer
            await let_go(gateway)
            assert len(records(tmp_path)) == len(running) + 1
            await until(lambda: not gateway.serving._retiring)

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_a_canary_that_is_away_is_rolled_back(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    models = ROLLOUT.replace("rollout:", "fallback: [a], rollout:").replace("60s", "0.2s")

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, made),
            configured(tmp_path, models + section) as gateway,
        ):
            await made[1].stop()
            for _ in range(150):
                answer = await gateway.post(chat())
                assert answer.status == 200 and answer.headers["x-penstock-variant"] in ("stable", "a")
            await until(lambda: rollout_of(gateway).status == "rolled_back")
            assert "error_rate 100.0%" in rollout_of(gateway).reason

    run(scenario(), 40)


@pytest.mark.parametrize("here", WAYS)
def test_forbidden_models(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    keys = f"keys: [{{id: k, hash: '{hash_key(KEY.encode())}', models: [plain]}}]\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, made),
            configured(tmp_path, settings(tmp_path, FALLBACK) + keys + section) as gateway,
        ):
            for path, body in BODIES.items():
                there = await gateway.post(body, path, authorization=BEARER, x_request_id="x")
                nowhere = await gateway.post(body | {"model": "nope"}, path, authorization=BEARER, x_request_id="x")
                assert there.status == nowhere.status == 403
                assert there.body.replace(b"chat", b"nope") == nowhere.body
                assert (await gateway.post(body, path)).status == 401
            await let_go(gateway)
            assert not any(getattr(one, "requests", None) or getattr(one, "submitted", None) for one in made)

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_background_work_takes_no_place(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    """A line of a batch is asked like this."""
    models = ROLLOUT.replace("}}}\n", "}}, plain: {target: a}, other: {target: b}}\n")

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, models) + section, max_queue=0) as gateway,
        ):
            app = gateway.serving._app
            assert app is not None
            names = ("chat", "plain", "other")
            for name in names:
                assert (await ask(app, CHAT, json.dumps(chat(model=name)).encode())).status == 200
                assert (await gateway.post(chat(model=name))).status == 429
            await let_go(gateway)
            assert counted(gateway) == {(name, outcome): 1 for name in names for outcome in ("ok", "refused")}
            assert [record.model for record in records(tmp_path) if record.outcome == "ok"] == list(names)
            await asyncio.sleep(0.3)
            assert rollout_of(gateway).controls == rollout_of(gateway).canaries == 0

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_who_came_before_a_drain_may_fall_back(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def late(talk: Talk) -> None:
        await asyncio.sleep(0.2)
        talk.reply({"error": {"message": "no"}}, 503)

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, late, obliging, here=here) as (section, made),
            configured(tmp_path, FALLBACK + section) as gateway,
        ):
            if here == 0:
                made[0].auto = False
            asked = asyncio.create_task(gateway.post(chat()))
            await asyncio.sleep(0.1)
            gateway.context.draining = True
            if here == 0:
                made[0].send(Failed(made[0].submitted[-1].id, "internal", "no"))
            answer = await asked
            assert (answer.status, answer.headers["x-penstock-variant"]) == (200, "b")
            assert (await gateway.post(chat())).status == 503
            await let_go(gateway)

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_who_leaves_while_the_record_is_written(
    here: int | None, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, FALLBACK) + section) as gateway,
        ):
            recorder = gateway.context.recorder
            assert recorder is not None and recorder.log is not None
            append: Any = recorder.log.append
            begun: list[str] = []

            def later(record: Record, *more: Any) -> None:
                begun.append(record.request_id)
                asyncio.get_running_loop().call_later(0.1, append, record, *more)

            monkeypatch.setattr(recorder.log, "append", later)
            for number, stream in enumerate((False, True), 1):
                sent = await gateway.send(chat(stream=stream))
                await until(lambda: len(begun) == number)  # noqa: B023
                sent.leave()
                await record_of(tmp_path, number)
                await let_go(gateway)
            sent = await gateway.send(chat())
            await until(lambda: len(begun) == 3)
            for connection in list(gateway.state.connections):
                connection.shutdown()  # as a drain does
            assert (await asyncio.wait_for(sent.answer(), 5)).status == 200
            await until(lambda: not gateway.state.connections)

    run(scenario())
