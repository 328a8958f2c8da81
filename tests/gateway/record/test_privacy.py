"""What was said and may not be kept is nowhere: not in the log, beside it, in the data folder or among log lines."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from flywheel.compaction import compact
from flywheel.erasure import erase
from flywheel.query import connect
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Talk, Upstream, obliging
from tests.gateway.traffic.harness import Gateway, chat, configured

SECRETS = ("anna.berg@example.com", "4111 1111 1111 1111", "+49 30 901820", "sk-abcdefghijklmnopqrstuvwx")
WORDS = "; ".join(SECRETS)
PIECES = ("anna.berg", "1111 1111", "901820", "abcdefghijkl")  # what a search for whole ones would not find
FILE = """
models:
  chat: {{target: a, shadow: [{{target: b, sample: 100%}}]}}
  plain: {{target: a}}
targets:
  a: {{engine: openai, urls: ["{a}"], model: m}}
  b: {{engine: openai, urls: ["{b}"], model: m}}
log: {{path: {log}, content: {mode}}}
"""
CALLS = [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]


def in_pieces(text: str) -> list[str]:
    return [text[place : place + 3] for place in range(0, len(text), 3)]


def events(path: str) -> list[Any]:
    """A stream of this endpoint's, in which the words come in pieces."""
    if path == "/v1/messages":
        delta = {"type": "content_block_delta", "index": 0}
        begin = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        said = [{**delta, "delta": {"type": "text_delta", "text": piece}} for piece in in_pieces(WORDS)]
        return [{"type": "message_start", "message": {"id": "msg_1"}}, begin, *said, {"type": "message_stop"}]
    if path == "/v1/responses":
        pieces = [{"type": "response.output_text.delta", "output_index": 0, "delta": one} for one in in_pieces(WORDS)]
        return [{"type": "response.created", "response": {"id": "r", "output": []}}, *pieces]
    if path == "/v1/completions":
        return [
            {"choices": [{"index": 0, "text": piece, "logprobs": {"tokens": [piece]}}]} for piece in in_pieces(WORDS)
        ]
    chunks: list[Any] = [{"choices": [{"index": 1, "delta": {"tool_calls": CALLS}}]}]
    for piece in in_pieces(json.dumps({"to": WORDS})):
        call = {"index": 0, "function": {"arguments": piece}}
        chunks.append({"choices": [{"index": 1, "delta": {"tool_calls": [call]}}]})
    said = [{"index": 0, "delta": {"content": one}, "logprobs": {"content": [one]}} for one in in_pieces(WORDS)]
    return [
        *chunks,
        *({"choices": [choice]} for choice in said),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]


async def telling(talk: Talk) -> None:
    """An upstream that repeats everything, in pieces if it is to stream; some it refuses, and says what."""
    path = talk.request.line.split()[1]
    asked = talk.request.json
    if asked.get("temperature") == 7:
        talk.reply({"error": {"message": f"no: {WORDS}", "code": "too_odd"}}, 422)
    elif not asked.get("stream"):
        message = {"role": "assistant", "content": json.dumps({WORDS: WORDS})}
        talk.reply({"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    else:
        talk.begin_stream()
        for event in events(path):
            talk.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            await talk.writer.drain()
        if asked.get("temperature") == 8:
            talk.reset()
            return
        talk.chunk(b"data: [DONE]\n\n")
        talk.writer.write(b"0\r\n\r\n")


async def say_everything(gateway: Gateway, user: str | None) -> None:
    """Have the words in all places where there is room for them."""
    who: dict[str, Any] = {} if user is None else {"user": user}
    more: dict[str, Any] = {**who, "metadata": {"mail": WORDS}, "stop": [WORDS], "max_tokens": 99}
    tool = {"type": "function", "function": {"name": "f", "description": WORDS}}
    for model in ("chat", "plain"):
        for extra in ({}, {"stream": True}, {"stream": True, "temperature": 8}, {"temperature": 7}, {"tools": [tool]}):
            await gateway.post(chat(WORDS, model=model, **more, **extra))
    for path, field in (("/v1/completions", "prompt"), ("/v1/responses", "input")):
        await gateway.post({"model": "plain", field: WORDS, "stream": True, **more}, path)
    asked = {"model": "plain", "max_tokens": 9, "messages": [{"role": "user", "content": WORDS}], "stream": True}
    await gateway.post({**asked, "metadata": {"user_id": user or ""}}, "/v1/messages")
    await gateway.post(chat(WORDS, model="plain", temperature=WORDS, **more))  # which is invalid
    opinion = {"request_id": "req-1", "label": WORDS, "correction": WORDS, "preferred": WORDS, "comment": WORDS}
    await gateway.post({**opinion, **who}, "/v1/feedback")


def found(folder: Path, pieces: tuple[str, ...]) -> list[tuple[str, str]]:
    """Which of the pieces are in which file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "penstock.yaml"]
    return [(path.name, piece) for path in files for piece in pieces if piece.encode() in path.read_bytes()]


async def settled(gateway: Gateway, count: int) -> None:
    """Wait until shadows are through with so many pairs."""
    shadows = gateway.context.shadows
    assert shadows is not None
    async with asyncio.timeout(10):
        while sum(known.compared + known.unread + known.failed for known in shadows._standings.values()) < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", ["redacted", "hash", "none"])
@pytest.mark.parametrize("user", ["u1", None])
def test_nothing_of_it_is_on_the_disk(
    mode: str, user: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with Upstream(telling) as a, Upstream(obliging) as b:
            text = FILE.format(a=a.url, b=b.url, log=tmp_path / "log", mode=mode)
            async with configured(tmp_path, text) as gateway:
                await say_everything(gateway, user)
                await settled(gateway, 3)
                assert found(tmp_path, PIECES) == []  # while it runs, beginnings of requests included
        assert found(tmp_path, PIECES) == []
        compact(tmp_path / "log")
        with connect(tmp_path / "log") as database:
            (count,) = database.execute("SELECT count(*) FROM records").fetchone() or (0,)
            assert count >= 14
            rows = str(database.execute("SELECT * FROM records").fetchall())
        assert not any(piece in rows for piece in PIECES)
        assert found(tmp_path, PIECES) == []

    with caplog.at_level(logging.DEBUG):
        run(scenario(), 60)
    assert not any(piece in caplog.text for piece in PIECES)


def test_what_a_user_said_is_nowhere_in_the_clear_and_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In mode full, the name is by what it is found."""

    async def scenario() -> None:
        async with Upstream(telling) as a, Upstream(obliging) as b:
            text = FILE.format(a=a.url, b=b.url, log=tmp_path / "log", mode="full")
            async with configured(tmp_path, text) as gateway:
                for stream in (False, True):
                    await gateway.post(chat(WORDS, stream=stream, user="anna.berg"))
                opinion = {"request_id": "req-1", "correction": WORDS, "comment": WORDS, "user": "anna.berg"}
                await gateway.post(opinion, "/v1/feedback")
                await settled(gateway, 2)
        assert {piece for _, piece in found(tmp_path, PIECES)} == {"anna.berg"}
        erase(tmp_path / "log", "anna.berg")
        assert found(tmp_path, PIECES) == []

    with caplog.at_level(logging.DEBUG):
        run(scenario(), 60)
    assert not any(piece in caplog.text for piece in PIECES)
