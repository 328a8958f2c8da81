"""Requests from within: answered as a client would be, and left where an answer has no end."""

import json
from pathlib import Path

from gateway.api import inside
from gateway.api.exchange import ClientGone, Receive, Scope, Send
from gateway.app import App
from tests.gateway.harness import chat, run, serving


def test_an_answer_comes_back(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            body = json.dumps(chat("one")).encode()
            answer = await inside.ask(App(gateway.context), "/v1/chat/completions", body, limit=100_000)
            assert answer.status == 200 and answer.request_id.startswith("req-")
            assert "one" in json.loads(answer.body)["choices"][0]["message"]["content"]

    run(scenario())


def test_an_answer_without_an_end_is_left() -> None:
    sent = 0

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
                sent += 1
        except ClientGone:
            return

    answer = run(inside.ask(endless, "/v1/chat/completions", b"{}", limit=1000))
    assert (answer.status, len(answer.body), sent) == (200, 1100, 10)
