"""``/v1/responses`` and ``/v1/messages`` pass through in the shapes that their clients know; names are translated."""

import json
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from gateway.lane.endpoints import is_over
from gateway.lane.scan import renamed, skim, tally, tally_whole
from tests.gateway.harness import run
from tests.gateway.lane.harness import CHAT, chat, lane
from tests.gateway.lane.upstream import Talk, Upstream

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "one two"}],
    "usage": {"input_tokens": 7, "output_tokens": 2, "cache_read_input_tokens": 4},
}  # fmt: skip
RESPONSE = {
    "id": "resp_1", "object": "response", "status": "completed", "output": [],
    "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 3, "total_tokens": 12},
}  # fmt: skip


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}], **fields}


def named_event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def test_anthropics_client_is_answered_by_an_upstream() -> None:
    async def talk(talk: Talk) -> None:
        if not talk.request.json.get("stream"):
            talk.reply(MESSAGE)
            return
        talk.begin_stream()
        talk.chunk(named_event("message_start", message={**MESSAGE, "content": []}))
        talk.chunk(named_event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
        talk.chunk(named_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "one two"}))
        talk.chunk(named_event("content_block_stop", index=0))
        usage = {"input_tokens": 7, "output_tokens": 2}
        talk.chunk(named_event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage))
        talk.chunk(named_event("message_stop"))
        talk.writer.write(b"0\r\n\r\n")

    async def scenario() -> None:
        async with Upstream(talk) as upstream, lane(upstream) as gateway:
            client = anthropic.AsyncAnthropic(base_url=gateway.url, api_key="sk-mine", max_retries=0)
            async with client:
                whole = await client.messages.create(**message())
                assert whole.content[0].type == "text" and whole.content[0].text == "one two"
                async with client.messages.stream(**message()) as stream:
                    assert [text async for text in stream.text_stream] == ["one two"]
            assert upstream.requests[0].headers["authorization"] == "bearer sk-mine"
            assert gateway.metric('penstock_prompt_tokens_total{model="m"}') == 14
            assert gateway.metric('penstock_output_tokens_total{model="m"}') == 4
            assert gateway.metric('penstock_cached_tokens_total{model="m"}') == 4

    run(scenario())


def test_anthropics_keys_are_checked_and_its_errors_look_as_there() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, keys=["sk-ours"]) as gateway:
            refused = await gateway.post(message(), MESSAGES)
            assert (refused.status, refused.json["type"]) == (401, "error")
            assert refused.json["error"]["type"] == "authentication_error"
            missing = await gateway.post(message(model="other"), MESSAGES, x_api_key="sk-ours")
            assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")
            assert missing.json["request_id"] == missing.headers["x-request-id"]
            await gateway.post(message(), MESSAGES, x_api_key="sk-ours")
            assert "x-api-key" not in upstream.requests[0].headers

    run(scenario())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (MESSAGES, lambda last: last["type"] == "error" and last["error"]["type"] == "api_error"),
        (RESPONSES, lambda last: last["type"] == "error" and last["code"] == "bad_upstream"),
        (CHAT, lambda last: last["error"]["code"] == "bad_upstream"),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error_that_its_client_knows(path: str, expected: Any) -> None:
    async def talk(talk: Talk) -> None:
        talk.begin_stream()
        talk.chunk(named_event("something"))
        await talk.writer.drain()
        talk.reset()

    async def scenario() -> None:
        async with Upstream(talk) as upstream, lane(upstream) as gateway:
            answer = await gateway.post(message(stream=True, input="x"), path)
            *_, last = answer.events
            assert last.startswith("error: ") and expected(json.loads(last.removeprefix("error: "))), last

    run(scenario())


def test_responses_pass_through_and_are_counted() -> None:
    async def talk(talk: Talk) -> None:
        if talk.request.json.get("stream"):
            talk.begin_stream()
            talk.chunk(named_event("response.created", response={**RESPONSE, "usage": None}))
            talk.chunk(named_event("response.completed", response=RESPONSE))
            talk.writer.write(b"0\r\n\r\n")
        else:
            talk.reply(RESPONSE)

    async def scenario() -> None:
        async with Upstream(talk) as upstream, lane(upstream) as gateway:
            for streamed in (True, False):
                answer = await gateway.post({"model": "m", "input": "hi", "stream": streamed}, RESPONSES)
                assert answer.status == 200 and b"resp_1" in answer.body
            assert gateway.metric('penstock_prompt_tokens_total{model="m"}') == 18
            assert gateway.metric('penstock_cached_tokens_total{model="m"}') == 10
            assert upstream.requests[0].line == f"POST {RESPONSES} HTTP/1.1"

    run(scenario())


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES, CHAT])
def test_an_upstream_without_the_endpoint_says_so_itself(path: str) -> None:
    async def talk(talk: Talk) -> None:
        talk.reply({"error": {"message": "no such path here"}}, 404)

    async def scenario() -> None:
        async with Upstream(talk) as upstream, lane(upstream) as gateway:
            answer = await gateway.post(message(), path)
            assert (answer.status, answer.json) == (404, {"error": {"message": "no such path here"}})

    run(scenario())


@pytest.mark.parametrize(
    ("path", "last"),
    [
        (MESSAGES, named_event("message_stop")),
        (RESPONSES, named_event("response.completed", response=RESPONSE)),
        (RESPONSES, named_event("response.incomplete", response={})),
        (RESPONSES, named_event("response.completed", text="x" * 5000)[-4096:]),
        (CHAT, b"data: [DONE]\n\n"),
    ],
)
def test_the_end_of_a_stream_is_known_without_framing(path: str, last: bytes) -> None:
    before = named_event("other", text="message_stop response.completed [DONE]")
    assert is_over(path, (before + last)[-4096:])
    assert is_over(path, (before + last).rstrip()) or len(last) > 4000
    assert not is_over(path, before + b'data: {"cut')
    assert not is_over(path, before + before)


def test_an_upstream_is_asked_by_its_own_name_for_the_model() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, model="Qwen/Qwen2.5-7B") as gateway:
            body = b'{ "metadata": {"model": "m"}, "messages" : [],\n "model"\t: "m" , "x": "\\u00e4" }'
            assert (await gateway.post(body)).status == 200
            assert upstream.requests[0].body == body.replace(b': "m" ,', b': "Qwen/Qwen2.5-7B" ,')
            assert (await gateway.post(chat("a" * 9000))).status == 200
            assert upstream.requests[1].json == chat("a" * 9000) | {"model": "Qwen/Qwen2.5-7B"}

    run(scenario())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["metadata", "tools", "x", "model "]), VALUES),
    st.text(),
    st.text(),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.booleans(),
)
def test_only_the_models_name_changes(
    others: dict[str, Any], old: str, new: str, indent: int | None, ascii: bool, last: bool
) -> None:
    fields = {**others, "model": old} if last else {"model": old, **others}
    body = json.dumps(fields, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    try:
        skim(body)
    except Exception:
        return  # what isn't UTF-8 is refused before
    assert json.loads(renamed(body, new)) == {**fields, "model": new}


def test_of_two_models_the_last_counts_and_is_renamed() -> None:
    body = b'{"model": "a", "model": "b"}'
    assert skim(body).model == "b"
    assert renamed(body, "c") == b'{"model": "a", "model": "c"}'


def test_usage_is_found_in_every_shape() -> None:
    assert astuple(tally_whole(json.dumps(MESSAGE).encode()))[:3] == (7, 4, 2)
    assert astuple(tally_whole(json.dumps(RESPONSE).encode()))[:3] == (9, 5, 3)
    assert astuple(tally(named_event("response.completed", response=RESPONSE)))[:3] == (9, 5, 3)
