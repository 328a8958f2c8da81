"""Every request yields exactly one record, whatever its end and whichever way it took, before its answer is over."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from flywheel.log.frame import Kind
from flywheel.log.reading import read_frames
from flywheel.record import Record, decode_record
from flywheel.user_keys import UserKeys, keys_path
from gateway.record.recorder import Recorder
from gateway.record.recording import Recording
from tests.gateway.harness import run
from tests.gateway.lane.upstream import USAGE, Talk, obliging, sse
from tests.gateway.traffic.harness import chat, configured
from tests.gateway.traffic.test_routes import endless, failing, targets

MODELS = "models: {chat: {target: a, timeout: {total: 5s}}, plain: {target: a}}\nlog: {path: %s, content: %s}\n"


def records(folder: Path) -> list[Record]:
    return [decode_record(frame.body) for frame in read_frames(folder / "log") if frame.kind == Kind.RECORD]


def said(folder: Path, record: Record) -> tuple[bytes, bytes]:
    """What was asked and answered, unsealed."""
    content = record.content
    assert content is not None
    if content.sealed is None:
        return content.input or b"", content.output or b""
    assert content.input is content.output is None
    keys = UserKeys(keys_path(folder / "log"))
    try:
        found = keys.unseal(record.user, content.sealed) or {}
        return found["input"], found["output"]
    finally:
        keys.close()


async def record_of(folder: Path, count: int = 1) -> Record:
    """The last of so many records."""
    async with asyncio.timeout(5):
        while len(found := records(folder)) < count:
            await asyncio.sleep(0.01)
    assert len(found) == count
    return found[-1]


def settings(folder: Path, content: str = "full") -> str:
    return MODELS % (folder / "log", content)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("here", [None, 0])
@pytest.mark.parametrize("model", ["chat", "plain"])
def test_an_answer_is_on_record(model: str, here: int | None, stream: bool, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            asked = chat(
                "hi", model=model, stream=stream, user="u1", temperature=0, max_tokens=20, metadata={"team": "x"},
                stream_options={"include_usage": True} if stream else None,
            )  # fmt: skip
            answer = await gateway.post(asked, x_request_id="my-id")
            found = records(tmp_path)  # at once: the answer's end was not sent before
            assert answer.status == 200 and len(found) == 1
            record = found[0]
            assert (record.request_id, record.outcome, record.status) == ("my-id", "ok", 200)
            assert (record.model, record.request_model, record.endpoint) == (model, model, "/v1/chat/completions")
            assert (record.user, record.tags, record.stream) == ("u1", {"team": "x"}, stream)
            assert record.sampling is not None and record.sampling.temperature == 0 and record.sampling.max_tokens == 20
            asked_text, answered = said(tmp_path, record)
            assert json.loads(asked_text)["messages"][0]["content"] == "hi"
            assert record.target == "a" and record.worker
            assert record.provider_name == ("openai" if here is None else "penstock")
            assert record.response_model == ("m" if here is None else model) and record.response_id
            assert record.attempts == 1
            timing = record.timing
            assert timing is not None and timing.first_token is not None and timing.ended is not None
            assert timing.queued is not None and timing.placed is not None
            assert timing.queued <= timing.placed <= timing.first_token <= timing.ended
            if here is None:
                assert (record.input_tokens, record.output_tokens) == (
                    USAGE["prompt_tokens"],
                    USAGE["completion_tokens"],
                )
                assert b"three" in answered
            else:
                assert record.output_tokens == 4 and record.uncertainty is not None
                assert record.uncertainty.mean_logprob is not None and record.uncertainty.mean_entropy is not None

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
def test_other_ends(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, failing(500), here=here) as (section, made),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            if here == 0:
                made[0].refuse = ("internal", "no")
            ends: list[tuple[Any, int, str]] = [
                (b"{", 400, "invalid"),
                (chat(model="nobody"), 404, "invalid"),
                (chat(messages=5) if here == 0 else chat(model=5), 400, "invalid"),
                (chat(), 500, "failed"),
            ]
            for number, (body, status, outcome) in enumerate(ends, 1):
                assert (await gateway.post(body)).status == status
                record = await record_of(tmp_path, number)
                assert (record.status, record.outcome) == (status, outcome), number

    run(scenario())


async def broken(talk: Talk) -> None:
    talk.begin_stream()
    talk.event("x")
    await talk.writer.drain()
    talk.reset()


@pytest.mark.parametrize("here", [None, 1])
def test_a_stream_that_breaks_is_recorded_as_failed(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = settings(tmp_path).replace("timeout: {total: 5s}", "fallback: [b]")
        async with (
            targets(tmp_path, model_folder, broken, obliging, here=here) as (section, _),
            configured(tmp_path, text + section) as gateway,
        ):
            for number, model in enumerate(("plain", "chat"), 1):
                answer = await gateway.post(chat(model=model, stream=True))
                assert b"error" in answer.body
                record = await record_of(tmp_path, number)
                assert (record.outcome, record.status, record.error_type) == ("failed", 200, "bad_upstream")

    run(scenario())


async def gone(talk: Talk) -> None:
    talk.reset()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["chat", "plain"])
@pytest.mark.parametrize("behave", [obliging, gone, broken, failing(500), failing(400)])
def test_no_end_is_told_before_it_is_on_record(
    behave: Any, model: str, stream: bool, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last byte is of: an answer, an error, or a stream that breaks off."""

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, behave) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            recorder = gateway.context.recorder
            assert recorder is not None and recorder.log is not None
            append: Any = recorder.log.append

            def later(*args: Any) -> None:
                asyncio.get_running_loop().call_later(0.02, append, *args)

            monkeypatch.setattr(recorder.log, "append", later)
            await gateway.post(chat(model=model, stream=stream))
            assert len(records(tmp_path)) == 1

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
@pytest.mark.parametrize("model", ["chat", "plain"])
def test_a_client_that_leaves_is_recorded(here: int | None, model: str, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, endless, here=here, auto=here is None) as (section, made),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            sent = await gateway.send(chat(model=model, stream=True))
            if here == 0:
                await made[0].until(lambda: made[0].running)
                made[0].step()
            await sent.reader.readuntil(b"\n\n")
            sent.leave()
            record = await record_of(tmp_path)
            assert record.outcome == "disconnected" and record.content is not None

    run(scenario())


def test_a_fallback_is_part_of_the_same_request(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        for here in (None, 1):
            folder = tmp_path / str(here)
            folder.mkdir()
            models = settings(folder).replace("timeout: {total: 5s}", "fallback: [b]")
            async with (
                targets(folder, model_folder, failing(503), obliging, here=here) as (section, _),
                configured(folder, models + section) as gateway,
            ):
                assert (await gateway.post(chat())).status == 200
                record = await record_of(folder)
                assert (record.outcome, record.variant, record.target) == ("ok", "b", "b")
                assert record.attempts == 2 and record.error_type == ""

    run(scenario())


async def several(talk: Talk) -> None:
    """Two choices, the second one ends first."""
    said = {"id": "chatcmpl-7", "model": "m-real"}
    if not talk.request.json.get("stream"):
        choices = [{"index": index, "finish_reason": reason} for index, reason in enumerate(("length", "stop"))]
        talk.reply({**said, "choices": choices, "usage": USAGE})
        return
    talk.begin_stream()
    for index, reason in ((0, None), (1, "stop"), (0, "length")):
        choice = {"index": index, "delta": {"content": "x"}, "finish_reason": reason}
        talk.chunk(sse({**said, "choices": [choice]}))
    talk.chunk(b"data: [DONE]\n\n")
    talk.writer.write(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["chat", "plain"])
def test_what_an_answer_says_of_itself(model: str, stream: bool, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, several) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            asked = chat(model=model, stream=stream, n=2, prompt_cache_key="cached")
            await gateway.post(asked, x_session_id="s1")
            record = await record_of(tmp_path)
            assert record.finish_reasons == ("length", "stop")
            assert (record.response_id, record.response_model) == ("chatcmpl-7", "m-real")
            assert (record.provider_name, record.session, record.stream) == ("openai", "s1", stream)
            assert (record.target, record.worker[:2]) == ("a", "a/")

    run(scenario())


MESSAGE: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "m-real", "usage": {"input_tokens": 9}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
    {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


@pytest.mark.parametrize("size", [3, 5000])
def test_what_other_endpoints_answers_say(size: int, tmp_path: Path, model_folder: Path) -> None:
    async def anthropic(talk: Talk) -> None:
        talk.begin_stream()
        for event in MESSAGE[:1] + MESSAGE[1:2] * size + MESSAGE[2:]:
            talk.chunk(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()))
        talk.writer.write(b"0\r\n\r\n")

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, anthropic) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            await gateway.post(chat(model="plain", stream=True, max_tokens=2), path="/v1/messages")
            record = await record_of(tmp_path)
            assert (record.finish_reasons, record.response_id) == (("length",), "msg_1")
            assert (record.input_tokens, record.output_tokens) == (9, 2)

    run(scenario())


@pytest.mark.parametrize("here", [None, 1])
def test_an_error_is_no_answer(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    """Whether all of a route's targets are upstreams or one is a worker of ours, which it could fall back to."""

    async def scenario() -> None:
        text = settings(tmp_path).replace("timeout: {total: 5s}", "fallback: [b]")
        async with (
            targets(tmp_path, model_folder, failing(422, code="too_odd"), obliging, here=here) as (section, _),
            configured(tmp_path, text + section) as gateway,
        ):
            for number, model in enumerate(("plain", "chat"), 1):
                await gateway.post(chat(model=model, stream=True))
                record = await record_of(tmp_path, number)
                assert (record.error_type, record.error_message, record.stream) == ("too_odd", "no", False)
                assert record.content is not None and record.content.output is None
                assert record.timing is not None and record.timing.first_token is None

    run(scenario())


def test_every_worker_that_had_it_is_an_attempt() -> None:
    recording = Recording(Recorder(None), "r1", "/v1/chat/completions")
    for workers in (1, 2, 2):  # it is told again and again how many there were
        recording.reached(0.0, workers)
        assert recording.record.attempts == workers
    recording.placed("b", "")
    recording.reached(0.0, 1)
    assert recording.record.attempts == 3
    recording.placed("c", "")
    recording.sent_on("c/1", "openai", 2)
    assert recording.record.attempts == 5


@pytest.mark.parametrize("here", [None, 0])
def test_who_is_refused_is_counted_for_the_model(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging, here=here) as (section, _),
            configured(tmp_path, settings(tmp_path) + section, max_queue=0) as gateway,
        ):
            for number, model in enumerate(("plain", "chat", "nobody"), 1):
                await gateway.post(chat(model=model))
                record = await record_of(tmp_path, number)
                assert record.outcome != "ok" and record.model == (model if model != "nobody" else "")

    run(scenario())


@pytest.mark.parametrize("here", [None, 0, 1])
def test_the_number_that_chose_a_variant(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    variants = "variants: {stable: {target: a, weight: 50}, canary: {target: b, weight: 50}}, sticky: user"

    async def scenario() -> None:
        text = settings(tmp_path).replace("target: a, timeout: {total: 5s}", variants)
        async with (
            targets(tmp_path, model_folder, obliging, obliging, here=here) as (section, _),
            configured(tmp_path, text + section) as gateway,
        ):
            for number in range(1, 9):
                await gateway.post(chat(user=f"u{number % 4}"))
                record = await record_of(tmp_path, number)
                assert record.sticky_hash is not None
                assert record.variant == ("canary" if record.sticky_hash < 0.5 else "stable")
                assert record.target == {"stable": "a", "canary": "b"}[record.variant]
                own = here is not None and record.target == "ab"[here]
                assert record.provider_name == ("penstock" if own else "openai") and record.worker
            found = records(tmp_path)
            assert [one.sticky_hash for one in found[:4]] == [one.sticky_hash for one in found[4:]]

    run(scenario())


def test_how_much_is_kept(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = settings(tmp_path, "hash").replace("plain: {target: a}", "plain: {target: a, content: none}")
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, text + section) as gateway,
        ):
            for number, model in enumerate(("chat", "chat", "plain"), 1):
                await gateway.post(chat(model=model))
                record = await record_of(tmp_path, number)
                content = record.content
                assert content is not None and content.input is content.output is None
                assert content.mode == ("hash" if model == "chat" else "none")
            first, second, third = (record.content for record in records(tmp_path))
            assert first is not None and second is not None and third is not None
            assert first.input_hash == second.input_hash is not None and third.input_hash is None
            assert not any(b"one two three" in frame.body for frame in read_frames(tmp_path / "log"))

    run(scenario())


@pytest.mark.parametrize("content", ["hash", "none"])
def test_what_an_upstreams_error_quotes_is_not_kept(content: str, tmp_path: Path, model_folder: Path) -> None:
    async def quoting(talk: Talk) -> None:
        talk.reply({"error": {"message": f"can't read {talk.request.json['messages'][0]['content']}"}}, 500)

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, quoting) as (section, _),
            configured(tmp_path, settings(tmp_path, content) + section) as gateway,
        ):
            for model in ("plain", "chat"):
                assert b"my words" in (await gateway.post(chat("my words", model=model))).body
            await record_of(tmp_path, 2)
            assert not any(b"my words" in frame.body for frame in read_frames(tmp_path / "log"))

    run(scenario())


def test_what_is_redacted_never_touches_the_disk(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, settings(tmp_path, "redacted") + section) as gateway,
        ):
            await gateway.post(chat("I am ada@example.org, my card is 4111 1111 1111 1111", user="ada"))
            await gateway.post(chat("I am ada@example.org"))
            first, second = records(tmp_path)
            assert b"I am" in said(tmp_path, first)[0] and b"ada@" not in said(tmp_path, first)[0]
            assert b"4111" not in said(tmp_path, first)[0]
            assert second.content is not None and second.content.sealed is None  # nobody to forget
            assert not any(b"ada@" in frame.body for frame in read_frames(tmp_path / "log"))

    run(scenario())


def test_the_same_id_twice_is_two_records(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            for _ in range(2):
                await gateway.post(chat(), x_request_id="same")
            first, second = records(tmp_path)
            assert first.request_id == "same" and second.request_id.startswith("same-")

    run(scenario())


def test_serving_goes_on_where_the_log_cannot_be_written(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        (tmp_path / "log").write_text("a file where the folder should be")
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            for _ in range(5):
                assert (await gateway.post(chat(model="plain"))).status == 200
            assert gateway.context.recorder is not None and gateway.context.recorder.log is not None
            assert gateway.context.recorder.log.trouble
            assert caplog.text.count("what was said can't be recorded") == 1

            monkeypatch.setattr("gateway.record.recorder._LOOK_AFTER", 0.0)
            gateway.context.recorder._look_at = 0.0
            (tmp_path / "log").unlink()
            await gateway.post(chat(model="plain", user="ann"))
            record = await record_of(tmp_path, 6)
            assert b"hi" in said(tmp_path, record)[0]

    run(scenario())


def test_what_is_recorded_can_be_changed_by_a_reload_but_not_where(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, obliging) as (section, _),
            configured(tmp_path, settings(tmp_path) + section) as gateway,
        ):
            assert await gateway.reload(settings(tmp_path, "none") + section) == ["log changed"]
            await gateway.post(chat())
            record = await record_of(tmp_path)
            assert record.content is not None and record.content.mode == "none"
            with pytest.raises(Exception, match="only by a restart"):
                await gateway.reload(settings(tmp_path / "b") + section)

    run(scenario())
