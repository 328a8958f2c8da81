"""Limits of requests that are answered here: what they reserve, and what they are counted with at every end."""

import asyncio
from pathlib import Path

from engine.link import Submit
from gateway.traffic.keys import Key, Keyring, hash_key
from gateway.traffic.limits.contract import Decided, Unknown, Verdict
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.limit import Account, Limits, Rate
from tests.gateway.harness import Gateway, chat, request_bytes, run, serving

CHAT = "/v1/chat/completions"
KEY = {"authorization": "Bearer sk"}
USED = 'penstock_key_tokens_total{key="team"}'


def limit(gateway: Gateway, limits: Limits = Limits(), **scopes: object) -> None:  # noqa: B008
    key = Key(id="team", limits=limits, **scopes)  # type: ignore[arg-type]
    gateway.context.keys = Keyring([(hash_key(b"sk"), key)])


def remaining(gateway: Gateway, tokens: Rate) -> int:
    """Tokens that are neither used nor held now."""
    verdict = gateway.context.limits.store.reserve((Account("team", Limits(tokens=tokens)),), 0, print)
    assert verdict is not None and not isinstance(verdict, Unknown)
    assert verdict.tokens is not None
    return verdict.tokens.remaining


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.002)


HOUR = Rate(1000, 3600)


def test_answers_say_what_is_left_and_count_with_their_usage(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            limit(gateway, Limits(requests=Rate(10, 3600), tokens=HOUR))
            answer = await gateway.post(CHAT, chat(max_tokens=20), **KEY)
            prompt, used = answer.json["usage"]["prompt_tokens"], answer.json["usage"]["total_tokens"]
            assert answer.headers["x-ratelimit-limit-requests"] == "10"
            assert answer.headers["x-ratelimit-remaining-requests"] == "9"
            assert answer.headers["x-ratelimit-reset-requests"] == "6m0s"
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - prompt - 20)
            assert remaining(gateway, HOUR) == 1000 - used
            streamed = await gateway.post(CHAT, chat(max_tokens=20, stream=True), **KEY)
            assert streamed.headers["x-ratelimit-remaining-tokens"] == str(1000 - used - prompt - 20)
            assert remaining(gateway, HOUR) == 1000 - 2 * used
            assert await gateway.metric(USED) == 2 * used
            assert await gateway.metric('penstock_key_requests_total{key="team"}') == 2
            several = await gateway.post(CHAT, chat(max_tokens=5, n=3), **KEY)
            assert several.headers["x-ratelimit-remaining-tokens"] == str(1000 - 2 * used - prompt - 15)

    run(scenario())


def test_who_exceeds_a_limit_is_told_in_openais_way(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            limit(gateway, Limits(requests=Rate(1, 3600)))
            assert (await gateway.post(CHAT, chat(), **KEY)).status == 200
            refused = await gateway.post(CHAT, chat(stream=True), **KEY)
            assert refused.status == 429
            assert refused.json["error"]["code"] == "rate_limit_exceeded"
            assert refused.json["error"]["type"] == "requests"
            assert 3590 <= int(refused.headers["retry-after"]) <= 3600
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert len(gateway.worker.submitted) == 1
            assert await gateway.metric('penstock_key_refused_total{key="team",limit="requests"}') == 1
            message = {"model": "fake", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
            assert (await gateway.post("/v1/messages", message, **KEY)).json["error"]["type"] == "rate_limit_error"
            limit(gateway, Limits(tokens=Rate(10, 60)))
            assert "retry-after" not in (await gateway.post(CHAT, chat(max_tokens=20), **KEY)).headers

    run(scenario())


def test_a_client_that_leaves_has_used_what_was_done_for_it(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            limit(gateway, Limits(concurrent=1, tokens=HOUR))
            prompt = len((await _submitted(gateway, steps=0)).tokens) // 4
            assert (await gateway.post(CHAT, chat(), **KEY)).json["error"]["message"].count("same time") == 1
            await _leave(gateway)
            assert await gateway.metric(USED) == prompt  # it left before the first byte
            await _submitted(gateway, steps=3)
            await _leave(gateway)
            assert await gateway.metric(USED) == prompt + prompt + 3
            assert remaining(gateway, HOUR) == 1000 - 2 * prompt - 3

    async def _submitted(gateway: Gateway, steps: int) -> Submit:
        """A request under way, so many tokens of whose answer have come."""
        gateway.worker.submitted.clear()
        reader, gateway_writer = await gateway.connect()
        writers.append(gateway_writer)
        gateway_writer.write(request_bytes("POST", CHAT, chat(max_tokens=20, stream=True), KEY))
        await until(lambda: gateway.worker.submitted)
        for _ in range(steps):
            gateway.worker.step()
            await reader.readuntil(b"\n\n")
        return gateway.worker.submitted[0]

    async def _leave(gateway: Gateway) -> None:
        writers.pop().close()
        await until(lambda: not gateway.context.in_flight)

    writers: list[asyncio.StreamWriter] = []
    run(scenario())


def test_what_the_server_failed_at_counts_nothing(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            limit(gateway, Limits(concurrent=1, tokens=HOUR))
            gateway.worker.refuse = ("internal", "it broke")
            for _ in range(2):
                assert (await gateway.post(CHAT, chat(), **KEY)).status == 500
            assert remaining(gateway, HOUR) == 1000
            assert (await gateway.post(CHAT, chat(max_tokens=10_000), **KEY)).status == 400
            assert await gateway.metric('penstock_key_requests_total{key="team"}') == 2

    run(scenario())


def test_embeddings_count_with_their_inputs(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            limit(gateway, Limits(concurrent=1, tokens=HOUR))
            for _ in range(2):
                answer = await gateway.post("/v1/embeddings", {"model": "fake", "input": ["ab", "cd"]}, **KEY)
                assert answer.status == 200
            used = answer.json["usage"]["total_tokens"]
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - 2 * used)
            assert remaining(gateway, HOUR) == 1000 - 2 * used

    run(scenario())


def test_limits_of_one_model_and_a_keys_priority(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            limit(gateway, model_limits={"fake": Limits(requests=Rate(1, 60))}, priority=3)
            answer = await gateway.post(CHAT, chat(priority=1), **KEY)
            assert answer.headers["x-ratelimit-limit-requests"] == "1"
            assert "x-ratelimit-limit-tokens" not in answer.headers
            (submit,) = gateway.worker.submitted
            assert (submit.priority, submit.tenant) == (2, "team")
            assert (await gateway.post(CHAT, chat(), **KEY)).status == 429
            limit(gateway, model_limits={"other": Limits(requests=Rate(1, 60))})
            answer = await gateway.post(CHAT, chat(user="me"), **KEY)
            assert not any(name.startswith("x-ratelimit") for name in answer.headers)
            assert gateway.worker.submitted[1].tenant == "me"

    run(scenario())


class Slow(LocalStore):
    """A store that decides later, or can't."""

    def __init__(self, known: bool = True) -> None:
        super().__init__()
        self.known = known
        self.waiting: list[asyncio.TimerHandle] = []

    def reserve(self, accounts: tuple[Account, ...], tokens: int, decided: Decided) -> Verdict | None:
        def decide() -> None:
            found = super(Slow, self).reserve(accounts, tokens, decided) if self.known else Unknown("It is away.")
            assert found is not None
            decided(found)

        self.waiting.append(asyncio.get_running_loop().call_later(0.02, decide))
        return None


def test_a_verdict_may_take_a_while(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            limit(gateway, Limits(requests=Rate(1, 60)))
            gateway.context.limits.store = Slow()
            assert (await gateway.post(CHAT, chat(), **KEY)).status == 200
            assert (await gateway.post(CHAT, chat(), **KEY)).status == 429
            gateway.context.limits.store = Slow(known=False)
            unknown = await gateway.post(CHAT, chat(), **KEY)
            assert (unknown.status, unknown.json["error"]["message"]) == (503, "It is away.")

    run(scenario())


def test_a_verdict_that_nobody_waits_for_any_more_holds_nothing() -> None:
    async def scenario() -> None:
        from gateway.telemetry.metrics import Metrics
        from gateway.traffic.limits.limiter import Limiter

        limiter = Limiter(Metrics())
        limiter.store = store = Slow()
        key = Key(id="team", limits=Limits(concurrent=1))
        asking = asyncio.create_task(limiter.enter(key, "fake", 0))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.sleep(0.05)
        assert asking.cancelled()
        limiter.store = LocalStore.__new__(LocalStore)
        limiter.store.__dict__.update(store.__dict__)
        assert await limiter.enter(key, "fake", 0) is not None

    run(scenario())
