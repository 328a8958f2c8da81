"""Streams that go on with another upstream, with no seam to be seen; and those that can't, and say why."""

import json
from typing import Any

import pytest

from gateway.lane.answer_so_far import AnswerSoFar
from tests.gateway.harness import Answer, run
from tests.gateway.lane.harness import CHAT, Lane, chat, lane, until
from tests.gateway.lane.upstream import Upstream
from tests.gateway.lane.vllm_upstream import IDS, PROMPT, TEXTS, WHOLE, Break, VllmUpstream

COMPLETIONS = "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {CHAT: chat("hi"), COMPLETIONS: {"model": "m", "prompt": "hi"}}


def text_of(answer: Answer) -> str:
    said = (choice for event in answer.events[:-1] for choice in json.loads(event)["choices"])
    return "".join(choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in said)


def reasons_of(answer: Answer) -> list[str]:
    choices = (choice for event in answer.events[:-1] for choice in json.loads(event)["choices"])
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


async def until_known(gateway: Lane) -> None:
    await until(lambda: all(target.continues for target in gateway.targets))


async def first_at(gateway: Lane, upstream: Upstream) -> None:
    """Have the next request go to ``upstream``: the others look busy until then."""
    for target in gateway.targets:
        target.foreign = 0.0 if target.address.port == upstream.port else 100.0


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("breaks", ["reset", "error", "end", "silence", "garbage", "nonsense"])
def test_a_stream_goes_on_without_a_seam(path: str, breaks: Break) -> None:
    async def scenario() -> None:
        async with VllmUpstream(breaks) as bad, VllmUpstream() as good, lane(bad, good, idle=0.3) as gateway:
            await until_known(gateway)
            await first_at(gateway, bad)
            asked = BODIES[path] | {"stream": True, "max_tokens": 12, "stream_options": {"include_usage": True}}
            found = await gateway.post(asked, path)
            assert (text_of(found), found.events[-1], reasons_of(found)) == (WHOLE, "[DONE]", ["stop"])
            events = [json.loads(event) for event in found.events[:-1]]
            assert len({(one["id"], one["object"], one["created"], one["model"]) for one in events}) == 1
            assert events[0]["created"] == bad.port
            usage = events[-1]["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 10, 13)
            assert usage["prompt_tokens_details"]["cached_tokens"] == 3
            assert not any("token_ids" in key for one in events for choice in one["choices"] for key in choice)
            assert not any("prompt_token_ids" in one for one in events)
            (rest,) = [request for request in good.requests if "completions" in request.line]
            assert (rest.line.split()[1], rest.json["max_tokens"]) == (COMPLETIONS, 9)
            assert gateway.metric("penstock_streams_continued_total") == 1
            assert gateway.metric('penstock_output_tokens_total{model="m"}') == 10
            await until(lambda: all(target.in_flight == 0 for target in gateway.targets))

    run(scenario())


def test_a_stream_goes_on_as_often_as_a_request_is_retried() -> None:
    async def scenario() -> None:
        async with (
            VllmUpstream("reset", 2) as one,
            VllmUpstream("error", 5) as two,
            VllmUpstream("end", 8) as three,
            VllmUpstream() as four,
            lane(one, two, three, four) as gateway,
        ):
            await until_known(gateway)
            await first_at(gateway, one)
            for target in gateway.targets:
                if target.address.port == four.port:
                    target.foreign = 1e6
            found = await gateway.post(chat(stream=True))
            assert "".join(TEXTS[:8]) == "".join(
                json.loads(event)["choices"][0]["delta"].get("content", "") for event in found.events[:-1]
            )
            assert found.events[-1].startswith("error: ")
            assert "3 upstreams have failed with it" in found.events[-1]
            # What showed no text when the second one died was drawn again by the third.
            assert three.requests[0].json["prompt"] == PROMPT + IDS[:4]

    run(scenario())


def test_ids_that_the_client_asked_for_stay() -> None:
    async def scenario() -> None:
        async with VllmUpstream("reset") as bad, VllmUpstream() as good, lane(bad, good) as gateway:
            await until_known(gateway)
            await first_at(gateway, bad)
            found = await gateway.post(chat(stream=True, return_token_ids=True))
            events = [json.loads(event) for event in found.events[:-1]]
            assert [id for one in events for id in one["choices"][0].get("token_ids") or ()] == IDS
            assert [one["prompt_token_ids"] for one in events if one.get("prompt_token_ids")] == [PROMPT]

    run(scenario())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_undisturbed_stream_is_as_it_would_be_without_us(path: str) -> None:
    async def scenario() -> None:
        async with VllmUpstream() as upstream, lane(upstream) as gateway:
            await until_known(gateway)
            asked = BODIES[path] | {"stream": True, "max_tokens": 12}
            plain = await gateway.post({"return_token_ids": False} | asked | {"return_token_ids": False}, path)
            found = await gateway.post(asked, path)
            assert b'"return_token_ids":true' in upstream.requests[-1].body
            nulls = (b',"token_ids":null', b',"prompt_token_ids":null')
            for null in nulls:
                plain = plain._replace(body=plain.body.replace(null, b""))
            assert found.body == plain.body

    run(scenario())


def test_what_is_over_but_for_its_end_is_ended_here() -> None:
    """All tokens have come, but not the word that they have: nobody has to be asked."""

    async def scenario() -> None:
        async with VllmUpstream("end", len(TEXTS)) as bad, lane(bad) as gateway:
            await until_known(gateway)
            bad.breaks = "reset"
            bad.after = 6
            asked = chat(stream=True, max_tokens=6, stream_options={"include_usage": True})
            async with VllmUpstream() as other:
                assert other is not bad
            bad.script = _without_its_end
            found = await gateway.post(asked)
            assert (text_of(found), reasons_of(found), found.events[-1]) == ("ab", ["length"], "[DONE]")
            assert json.loads(found.events[-2])["usage"] == {
                "prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
            }  # fmt: skip

    run(scenario())


async def _without_its_end(talk: Any) -> None:
    talk.begin_stream()
    for text, ids in (("a", [1, 2, 3]), ("b", [4, 5, 6])):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": ids}
        event = {"id": "c", "created": 1, "model": "m", "choices": [choice], "prompt_token_ids": PROMPT}
        talk.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
    await talk.writer.drain()
    talk.reset()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"n": 2}, "several answers"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "shape"),
        ({"guided_regex": "a+"}, "shape"),
        ({"logprobs": True}, "log-probabilities"),
        ({"stop": ["x"]}, "stop strings"),
    ],
)
def test_what_can_not_go_on_says_why(fields: dict[str, Any], why: str) -> None:
    async def scenario() -> None:
        async with VllmUpstream("reset") as bad, VllmUpstream() as good, lane(bad, good) as gateway:
            await until_known(gateway)
            await first_at(gateway, bad)
            found = await gateway.post(chat(stream=True, **fields))
            assert b"return_token_ids" not in bad.requests[0].body
            assert found.events[-1].startswith("error: ")
            assert why in found.events[-1]
            assert not good.requests

    run(scenario())


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"delta": {"reasoning": "hm"}}, "takes its answer apart"),
        ({"delta": {"tool_calls": [{"index": 0}]}}, "takes its answer apart"),
        ({"token_ids": None}, "no token ids"),
        ({"index": "0"}, "another kind"),
    ],
)
def test_upstreams_with_whose_answers_nobody_can_go_on(extra: dict[str, Any], why: str) -> None:
    async def scenario() -> None:
        async with VllmUpstream("reset") as bad, VllmUpstream() as good, lane(bad, good) as gateway:
            await until_known(gateway)
            await first_at(gateway, bad)
            bad.extra = extra
            found = await gateway.post(chat(stream=True))
            assert why in found.events[-1]
            assert not good.requests

    run(scenario())


def test_who_is_known_to_go_on_and_who_is_told_to() -> None:
    async def scenario() -> None:
        async with VllmUpstream("reset", owner="somebody") as bad, VllmUpstream(owner="somebody") as good:
            async with lane(bad, good) as gateway:
                await first_at(gateway, bad)
                found = await gateway.post(chat(stream=True))
                assert found.events[-1].startswith("error: ")
                assert b"return_token_ids" not in bad.requests[0].body
            async with lane(bad, good, continuing="always") as gateway:
                await first_at(gateway, bad)
                assert text_of(await gateway.post(chat(stream=True))) == WHOLE
        async with VllmUpstream("reset") as bad, VllmUpstream() as good, lane(bad, good, continuing="never") as gateway:
            await first_at(gateway, bad)
            assert (await gateway.post(chat(stream=True))).events[-1].startswith("error: ")

    run(scenario())


def test_an_upstream_that_refuses_to_go_on_is_followed_by_the_next() -> None:
    async def scenario() -> None:
        async with (
            VllmUpstream("reset") as bad,
            VllmUpstream("status") as refusing,
            VllmUpstream() as good,
            lane(bad, refusing, good) as gateway,
        ):
            await until_known(gateway)
            await first_at(gateway, bad)
            for target in gateway.targets:
                if target.address.port == refusing.port:
                    target.foreign = 50.0
            assert text_of(await gateway.post(chat(stream=True))) == WHOLE
            assert refusing.requests

    run(scenario())


def test_a_client_that_leaves_while_another_goes_on() -> None:
    async def scenario() -> None:
        async with VllmUpstream("reset") as bad, VllmUpstream("silence", 5) as other, lane(bad, other) as gateway:
            await until_known(gateway)
            await first_at(gateway, bad)
            sent = await gateway.send(chat(stream=True))
            await until(lambda: other.requests)
            await sent.reader.readuntil(b"four")
            sent.leave()
            await until(lambda: gateway.context.in_flight == 0 and other.left.is_set())
            assert all(target.in_flight == 0 for target in gateway.targets)

    run(scenario())


@pytest.mark.parametrize(
    ("said", "left"),
    [({"max_tokens": 9, "min_tokens": 5}, {"max_tokens": 7, "min_tokens": 3}), ({}, {"max_tokens": 50 - 3 - 2})],
)
def test_limits_count_what_came(said: dict[str, Any], left: dict[str, Any]) -> None:
    so_far = AnswerSoFar(CHAT, json.dumps(chat("hi", stream=True, seed=1, temperature=0.5, **said)).encode())
    so_far.begin("vllm")
    choice = {"index": 0, "delta": {"content": "ab"}, "token_ids": [1, 2]}
    event = {"id": "c", "created": 1, "model": "m", "choices": [choice], "prompt_token_ids": [7, 8, 9]}
    shown = so_far.take(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert b"token_ids" not in shown
    rest = json.loads(so_far.rest(50))
    assert rest.pop("prompt") == [7, 8, 9, 1, 2]
    assert rest == {"model": "m", "stream": True, "seed": 1, "temperature": 0.5, "return_token_ids": True, **left}


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2]], []])
def test_several_prompts_are_several_answers(prompt: Any) -> None:
    so_far = AnswerSoFar(COMPLETIONS, json.dumps({"model": "m", "prompt": prompt, "stream": True}).encode())
    assert so_far.why_not == "it asks for several answers"
    assert not AnswerSoFar(COMPLETIONS, b'{"model": "m", "prompt": [ 1, 2]}').why_not
