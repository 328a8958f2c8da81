"""However a request ends, and whichever way it takes: it is counted once, recorded once, settled once, and lets go."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.traffic.keys import hash_key, new_key
from tests.gateway.harness import run
from tests.gateway.lane.harness import until
from tests.gateway.lane.upstream import Talk, obliging
from tests.gateway.record.test_recording import broken, record_of, records
from tests.gateway.traffic.harness import Gateway, chat, configured
from tests.gateway.traffic.test_routes import endless, failing, said, silent, targets, words
from tests.gateway.traffic.test_watching import rollout_of

WAYS = [None, 0, 1]
"""Where a worker of ours is: nowhere, as the first target, as the second."""
FALLBACK = "models: {chat: {target: a, fallback: [b]}, plain: {target: a}}\n"
ROLLOUT = (
    "models: {chat: {variants: {stable: {target: a}, canary: {target: b}}, "
    "rollout: {guard: [error_rate], steps: [50, 100], dwell: 60s}}}\n"
)
MESSAGES = "/v1/messages"


def settings(folder: Path, models: str, **limits: str | int) -> str:
    """A configuration with a log; and with `KEY`, if it has limits."""
    text = f"{models}log: {{path: {folder / 'log'}}}\n"
    return f"{text}keys: [{{id: k, hash: '{hash_key(KEY.encode())}', limits: {limits}}}]\n" if limits else text


KEY = new_key()
BEARER = f"Bearer {KEY}"


def counted(gateway: Gateway) -> dict[tuple[str, str], float]:
    """How many requests have ended, by model and outcome."""
    found: dict[tuple[str, str], float] = {}
    for family in gateway.context.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "penstock_requests_total" and sample.labels["endpoint"].startswith("/v1/"):
                key = sample.labels["model"], sample.labels["outcome"]
                found[key] = found.get(key, 0) + sample.value
    return found


async def let_go(gateway: Gateway) -> None:
    """Nothing is left of any request."""
    context, lanes = gateway.context, gateway.serving.lanes
    assert lanes is not None
    await until(lambda: not (context.in_flight or context.queued or context.exchanges or lanes._running))


@pytest.mark.parametrize("here", WAYS)
def test_answers(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, FALLBACK) + section) as gateway,
        ):
            for stream in (False, True):
                assert (await gateway.post(chat(stream=stream))).status == 200
            await let_go(gateway)
            assert counted(gateway) == {("chat", "ok"): 2}
            assert len(records(tmp_path)) == 2

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_a_stream_that_breaks_has_failed(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, broken, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, FALLBACK) + section) as gateway,
        ):
            answer = await gateway.post(chat(stream=True))
            assert answer.status == 200 and "bad_upstream" in answer.events[-1]
            assert (await record_of(tmp_path)).outcome == "failed"
            await let_go(gateway)
            assert counted(gateway) == {("chat", "failed"): 1}
            failed = 'penstock_variant_requests_total{model="chat",outcome="failed",variant="default"}'
            assert gateway.metric(failed) == 1

    run(scenario())


async def broken_later(talk: Talk) -> None:
    """A long answer that is no stream, and breaks off."""
    talk.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    talk.chunk(b'{"choices": "' + b"x" * (1 << 21))
    await talk.writer.drain()
    await asyncio.sleep(0.05)
    talk.reset()


@pytest.mark.parametrize("here", [None, 1])
def test_a_long_answer_that_breaks_is_broken_off(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, broken_later, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, FALLBACK) + section) as gateway,
        ):
            sent = await gateway.send(chat())
            found = b""
            try:
                while part := await sent.reader.read(1 << 20):
                    found += part
            except ConnectionError:
                pass
            sent.leave()
            assert len(found) > 1 << 20 and not found.endswith(b"0\r\n\r\n") and b"error" not in found
            assert (await record_of(tmp_path)).outcome == "failed"
            await let_go(gateway)
            assert counted(gateway) == {("chat", "failed"): 1}

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_a_fallback_costs_no_second_request(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = settings(tmp_path, FALLBACK, requests="1/min", tokens="100k/min", concurrent=1)
        async with (
            targets(tmp_path, model_folder, failing(503), obliging, here=here) as (section, made),
            configured(tmp_path, text + section) as gateway,
        ):
            if here == 0:
                made[0].refuse = ("internal", "no")
            answer = await gateway.post(chat(max_tokens=10), authorization=BEARER)
            assert answer.status == 200 and answer.headers["x-ratelimit-remaining-requests"] == "0"
            await let_go(gateway)
            usage = 10 if here != 1 else len("u:hi\na:") + 4
            assert gateway.metric('penstock_key_tokens_total{key="k"}') == usage
            assert gateway.metric('penstock_key_requests_total{key="k"}') == 1
            refused = await gateway.post(chat(), authorization=BEARER)
            assert refused.status == 429 and refused.json["error"]["code"] == "rate_limit_exceeded"
            assert (await record_of(tmp_path, 2)).error_type == "rate_limit_exceeded"

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_clients_may_leave_at_any_moment(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = settings(tmp_path, FALLBACK, tokens="100k/min", concurrent=1).replace(
            "b]}", "b], timeout: {first_token: 400ms}}"
        )
        async with (
            targets(tmp_path, model_folder, silent, endless, here=here, delay=0.02) as (section, made),
            configured(tmp_path, text + section) as gateway,
        ):
            if here is not None:
                made[here].script = lambda submit: [0] * 1000
            for number, wait in enumerate((0.0, 0.03, 0.42, 0.7), 1):  # also while a fallback is asked, and after that
                sent = await gateway.send(chat(stream=True), authorization=BEARER)
                await asyncio.sleep(wait)
                sent.leave()
                assert (await record_of(tmp_path, number)).outcome == "disconnected"
                await let_go(gateway)  # and with it the only place
            assert counted(gateway) == {("chat", "disconnected"): 4}
            assert gateway.metric("penstock_disconnects_total") == 4

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_whole_answers_from_elsewhere_have_no_first_token(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def slow(talk: Talk) -> None:
        await asyncio.sleep(0.4)
        await obliging(talk)

    models = "models: {chat: {target: a, fallback: [b], timeout: {first_token: 200ms}}}\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, slow, obliging, here=here) as (section, _),
            configured(tmp_path, models + section) as gateway,
        ):
            assert (await said(gateway))[0] == "default"
            assert (await gateway.post(chat(stream=True))).headers["x-penstock-variant"] == "b"

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_who_has_reached_a_limit_says_nothing_of_a_variant(
    here: int | None, tmp_path: Path, model_folder: Path
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, ROLLOUT, requests="40/min") + section) as gateway,
        ):
            statuses = [(await gateway.post(chat(), authorization=BEARER)).status for _ in range(100)]
            assert statuses.count(429) >= 50
            await until(lambda: rollout_of(gateway).controls > 5)
            assert [said.split()[0] for said in rollout_of(gateway).guards[0].says.split("error_rate ")[1:]] == ["0.0%"]
            assert "control's 0.0%" in rollout_of(gateway).guards[0].says

    run(scenario())


@pytest.mark.parametrize("here", WAYS)
def test_bodies_that_are_hard_to_read(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    """None of them is a fault of ours, and each is recorded."""
    parts = {
        "number": b'"temperature": 1' + b"0" * 400,
        "utf-8": b'"metadata": {"user_id": "\xff"}',
        "depth": b'"metadata": ' + b"[" * 100_000 + b"]" * 100_000,
        "types": b'"user": {}, "stop": {}, "metadata": 5, "prompt_cache_key": []',
    }

    async def scenario() -> None:
        text = settings(
            tmp_path, FALLBACK.replace("b]}", "b], sticky: user}").replace("plain: {", "plain: {content: none, ")
        )
        async with (
            targets(tmp_path, model_folder, words("A"), words("B"), here=here) as (section, _),
            configured(tmp_path, text + section) as gateway,
        ):
            for model in (b"chat", b"plain"):
                for name, part in parts.items():
                    body = b'{"model": "%b", "messages": [{"role": "user", "content": "x"}], %b}' % (model, part)
                    answer = await gateway.post(body)
                    assert answer.status in (200, 400, 502), (name, answer)
                    if name == "depth":
                        assert answer.json["error"]["code"] == "invalid_json"
            await let_go(gateway)
            found = records(tmp_path)
            assert len(found) == 2 * len(parts)
            kept = [record.content is not None and record.content.mode != "none" for record in found]
            assert not any(
                kept[len(parts) :]
            )  # nothing of a model's words that says so, whether they can be read or not

    run(scenario())


@pytest.mark.parametrize("what", ["watch", "began", "copy", "ended", "begin", "end"])
@pytest.mark.parametrize("here", [None, 1])
def test_faults_of_ours_cost_no_answer(
    what: str, here: int | None, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: Any, **named: Any) -> None:
        raise RuntimeError("a fault")

    async def scenario() -> None:
        models = ROLLOUT.replace("rollout:", "shadow: [{target: b, sample: 100%}], rollout:")
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path, models) + section) as gateway,
        ):
            watching, recorder = gateway.context.watching, gateway.context.recorder
            assert watching is not None and recorder is not None
            places: dict[str, tuple[object, str]] = {
                "watch": (watching.rollouts, "came"), "began": (watching.rollouts, "began"),
                "copy": (watching.shadows, "copy"), "ended": (watching.rollouts, "ended"),
                "begin": (recorder, "begin"), "end": (recorder, "end"),
            }  # fmt: skip
            monkeypatch.setattr(*places[what], fault)
            for stream in (False, True):
                assert (await asyncio.wait_for(gateway.post(chat(stream=stream)), 5)).status == 200
            await let_go(gateway)

    run(scenario())


def test_what_a_model_with_a_route_has_no_endpoint_for(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        for here, status in ((None, 404), (1, 404), (0, 200)):
            folder = tmp_path / str(here)
            folder.mkdir()
            async with (
                targets(folder, model_folder, obliging, obliging, here=here) as (section, _),
                configured(folder, FALLBACK.replace(", plain: {target: a}", "") + section) as gateway,
            ):
                assert (await gateway.post({"model": "chat", "prompt": "x"}, "/tokenize")).status == status
                assert (await gateway.get("/v1/models/chat")).status == 200
                assert (await gateway.get("/v1/models/other")).status == 404

    run(scenario())
