"""Variants, fallbacks and time limits, on models that pass through, that are answered here, and that are mixed."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from gateway.api import routed
from gateway.traffic.keys import hash_key, new_key
from gateway.traffic.routes import cause_of
from tests.gateway.fake_worker import FakeWorker
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Talk, Upstream, obliging
from tests.gateway.traffic.harness import Gateway, chat, configured

HERE = [sorted(ByteLevel.alphabet()).index(letter) for letter in "here"]
MIXED = ("lanes", "stable here", "canary here")


def words(text: str) -> Callable[[Talk], Any]:
    """A script that answers with a text of its own."""

    async def script(talk: Talk) -> None:
        if talk.request.json.get("stream"):
            talk.begin_stream()
            talk.event(text)
            talk.end_stream()
        else:
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            talk.reply({"object": "chat.completion", "choices": choices})

    return script


def failing(status: int, **error: str) -> Callable[[Talk], Any]:
    async def script(talk: Talk) -> None:
        talk.reply({"error": {"message": "no", **error}}, status)

    return script


@contextlib.asynccontextmanager
async def targets(
    tmp_path: Path, model_folder: Path, *scripts: Any, here: int | None = None, **fake: Any
) -> AsyncIterator[tuple[str, list[Any]]]:
    """Targets a, b, c…, each an upstream with its script but that at ``here``, a worker of ours; and the section."""
    async with contextlib.AsyncExitStack() as stack:
        lines, made = ["targets:"], list[Any]()
        for index, script in enumerate(scripts):
            name = "abcdef"[index]
            if index == here:
                worker = FakeWorker(model_folder, script=lambda submit: HERE, **fake)
                await worker.start(str(tmp_path / "w.sock"))
                stack.push_async_callback(worker.stop)
                lines.append(f"  {name}: {{engine: native, workers: ['unix:{tmp_path}/w.sock']}}")
                made.append(worker)
            else:
                upstream = await stack.enter_async_context(Upstream(script))
                lines.append(f"  {name}: {{engine: openai, urls: ['{upstream.url}'], model: m}}")
                made.append(upstream)
        yield "\n".join(lines) + "\n", made


async def said(gateway: Gateway, **fields: Any) -> tuple[str, str]:
    """The variant and the text of an answer."""
    headers = {name: str(fields.pop(name)) for name in list(fields) if name[:2] == "x_" or name == "authorization"}
    answer = await gateway.post(chat(**fields), **headers)
    assert answer.status == 200, answer.body
    return answer.headers["x-penstock-variant"], answer.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("kind", MIXED)
def test_weights_split_requests_and_users_stay_where_they_are(kind: str, tmp_path: Path, model_folder: Path) -> None:
    here = {"lanes": None, "stable here": 0, "canary here": 1}[kind]
    models = "models: {chat: {variants: {stable: {target: a, weight: 70}, canary: {target: b, weight: %d}}, %s}}\n"

    async def scenario() -> None:
        async with targets(tmp_path, model_folder, words("A"), words("B"), here=here) as (section, _):
            text = {"stable": "A", "canary": "B", (["stable", "canary"][here] if here is not None else ""): "here"}
            async with configured(tmp_path, models % (30, "sticky: user") + section) as gateway:
                before: dict[str, str] = {}
                for index in range(60):
                    user = f"u{index}"
                    variant, answer = await said(gateway, user=user)
                    assert answer == text[variant]
                    before[user] = variant
                    assert await said(gateway, user=user) == (variant, answer)
                counts = collections.Counter(before.values())
                assert 8 <= counts["canary"] <= 30
                assert (
                    gateway.metric('penstock_variant_requests_total{model="chat",outcome="ok",variant="canary"}')
                    == 2 * counts["canary"]
                )

                await gateway.reload(models % (70, "sticky: user") + section)
                for user, variant in before.items():
                    after, _ = await said(gateway, user=user)
                    assert variant == "stable" or after == "canary"  # nobody comes back

                assert await said(gateway, x_penstock_variant="canary") == ("canary", text["canary"])
                refused = await gateway.post(chat(), x_penstock_variant="kanary")
                assert refused.status == 400 and "'stable', 'canary'" in refused.json["error"]["message"]
                listed = await gateway.get("/v1/models")
                assert [model["id"] for model in listed.json["data"]] == ["chat"]

    run(scenario())


@pytest.mark.parametrize("rule", ["session", "key", "header:x-team"])
def test_what_requests_may_stick_to(rule: str, tmp_path: Path, model_folder: Path) -> None:
    models = "models: {chat: {variants: {s: {target: a, weight: 1}, c: {target: b, weight: 1}}, sticky: 'RULE'}}\n"
    secrets = [new_key() for _ in range(4)]
    if rule == "key":
        models += "keys:\n" + "".join(
            f"- {{id: k{i}, hash: '{hash_key(k.encode())}'}}\n" for i, k in enumerate(secrets)
        )

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), words("B")) as (section, _),
            configured(tmp_path, models.replace("RULE", rule) + section) as gateway,
        ):
            for index, key in enumerate(secrets):
                ways: dict[str, dict[str, Any]] = {
                    "session": {"x_session_id": index},
                    "key": {"authorization": f"Bearer {key}"},
                    "header:x-team": {"x_team": index},
                }
                found = {(await said(gateway, **ways[rule]))[0] for _ in range(6)}
                assert len(found) == 1
            if rule == "session":
                assert len({(await said(gateway, prompt_cache_key="k"))[0] for _ in range(6)}) == 1
            if rule != "key":  # without it, each request stands for itself
                assert len({(await said(gateway))[0] for _ in range(20)}) == 2

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
def test_what_a_variant_adds(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    models = "models: {chat: {variants: {only: {target: a, system: Be brief., sampling: {max_tokens: 3, seed: 7}}}}}\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), here=here) as (section, (a,)),
            configured(tmp_path, models + section) as gateway,
        ):
            await said(gateway, seed=9)
            if here is None:
                sent = a.requests[0].json
                assert sent["messages"] == [
                    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}
                ]  # fmt: skip
                assert (sent["model"], sent["max_tokens"], sent["seed"]) == ("m", 3, 9)
            else:
                sampling = a.submitted[0].sampling
                assert (sampling.max_tokens, sampling.seed) == (3, 9)

    run(scenario())


FALLBACK = "models: {chat: {target: a, fallback: [{target: b, when: [%s]}, c], timeout: {first_token: 300ms}}}\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("here", [None, 0, 2])
@pytest.mark.parametrize(
    ("script", "on", "by"),
    [
        (failing(503), "unavailable", "b"),
        (failing(500), "error", "b"),
        (failing(500), "timeout", "c"),
        (failing(429), "overloaded", "b"),
        (failing(400, code="context_length_exceeded"), "context_length", "b"),
        (failing(400, code="invalid_value"), "error", None),
    ],
)
def test_fallbacks(
    script: Any, on: str, by: str | None, here: int | None, stream: bool, tmp_path: Path, model_folder: Path
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, script, words("B"), words("C"), here=here) as (section, made),
            configured(tmp_path, FALLBACK % on + section) as gateway,
        ):
            if here == 0:
                codes: dict[str, Any] = {"overloaded": "overloaded", "context_length": "context_length_exceeded"}
                made[0].refuse = ("invalid_request" if by is None else codes.get(on, "internal"), "no")
                if on == "unavailable":
                    await made[0].stop()
                    async with asyncio.timeout(5):
                        while gateway.context.targets["a"].fleet.ready:
                            await asyncio.sleep(0.01)
            answer = await gateway.post(chat(stream=stream))
            if by is None:
                assert answer.status == 400 and answer.headers.get("x-penstock-variant", "default") == "default"
                return
            assert answer.status == 200, answer.body
            assert answer.headers["x-penstock-variant"] == by
            assert {"b": b"B", "c": b"here" if here == 2 and not stream else b"h" if here == 2 else b"C"}[
                by
            ] in answer.body
            assert (
                sum(
                    gateway.metric(f'penstock_fallbacks_total{{cause="{cause}",model="chat",variant="default"}}')
                    for cause in ("unavailable", "error", "overloaded", "context_length")
                )
                == 1
            )

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_an_answer_that_does_not_begin_in_time_is_asked_for_elsewhere(
    here: int | None, tmp_path: Path, model_folder: Path
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, silent, words("B"), words("C"), here=here) as (section, made),
            configured(tmp_path, FALLBACK % "timeout" + section) as gateway,
        ):
            answer = await gateway.post(chat(stream=True))
            assert answer.status == 200 and answer.headers["x-penstock-variant"] == "b"
            await asyncio.wait_for(made[0].left.wait(), 5)

    run(scenario())


async def silent(talk: Talk) -> None:
    await asyncio.sleep(30)


async def endless(talk: Talk) -> None:
    talk.begin_stream()
    while True:
        talk.event("x")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("here", [None, 0])
def test_an_answer_that_is_not_complete_in_time_ends_with_an_error(
    here: int | None, tmp_path: Path, model_folder: Path
) -> None:
    models = "models: {chat: {target: a, timeout: {total: 300ms}}}\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, endless, here=here, auto=here is None) as (section, (a,)),
            configured(tmp_path, models + section) as gateway,
        ):
            sent = await gateway.send(chat(stream=True))
            if here == 0:
                await a.until(lambda: a.running)
                a.step()
            answer = await sent.answer()
            assert answer.status == 200
            assert "upstream_timeout" in answer.events[-1]
            whole = await gateway.post(chat())
            assert whole.status in ((504,) if here == 0 else (504, 200))

    run(scenario())


def test_the_time_is_over_when_the_timer_says_so_though_the_clock_is_not_there_yet(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = "models: {chat: {target: a, fallback: [b], timeout: {total: 300ms}}}\n"

    class Coarse(routed._Answering):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            clock = self._clock
            self._clock = lambda: clock() - 0.01

    monkeypatch.setattr(routed, "_Answering", Coarse)

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, silent, words("B"), here=0, auto=False) as (section, (a, b)),
            configured(tmp_path, models + section) as gateway,
        ):
            sent = await gateway.send(chat(stream=True))
            await a.until(lambda: a.running)
            answer = await sent.answer()
            assert answer.status == 504
            assert answer.json["error"]["message"] == "The answer was not complete within 0.3 s."
            assert not b.requests

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_a_client_that_leaves_frees_its_work(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    models = "models: {chat: {target: a, fallback: [b]}}\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, endless, words("B"), here=here) as (section, made),
            configured(tmp_path, models + section) as gateway,
        ):
            sent = await gateway.send(chat(stream=True))
            await sent.reader.readuntil(b"\n\n")
            sent.leave()
            await asyncio.wait_for(made[0].left.wait(), 5)
            async with asyncio.timeout(5):
                while gateway.context.in_flight:
                    await asyncio.sleep(0.01)

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_a_target_that_is_away_is_passed_over(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    models = "models: {chat: {variants: {s: {target: a, weight: 1}}, fallback: [b]}}\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, words("A"), words("B"), here=here) as (section, made),
            configured(tmp_path, models + section) as gateway,
        ):
            await made[0].stop()
            variant, text = await said(gateway)
            assert variant == "b" and text in ("B", "here")

    run(scenario())


def test_pipelined_requests_of_routes_keep_their_order(tmp_path: Path, model_folder: Path) -> None:
    models = "models: {chat: {target: a, fallback: [b]}, other: {target: b}}\n"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, words("B"), here=1) as (section, _),
            configured(tmp_path, models + section) as gateway,
            gateway.openai() as client,
        ):
            for _ in range(3):
                first = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "x"}])
                assert first.choices[0].message.content == "one two three"
                other = await client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
                assert other.choices[0].message.content == "here"

    run(scenario())


def test_causes() -> None:
    assert [cause_of(status) for status in (400, 404, 429, 500, 502, 503, 504)] == [
        None, None, "overloaded", "error", "unavailable", "unavailable", "timeout"
    ]  # fmt: skip
    assert cause_of(429, "rate_limit_exceeded") is None
    assert cause_of(400, "context_length_exceeded") == "context_length"
