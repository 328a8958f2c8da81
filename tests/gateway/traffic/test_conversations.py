"""A request that goes on from a response comes to whoever has it, whichever variant it would be assigned to."""

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.traffic import conversations
from gateway.traffic.conversations import Conversations, Reading, previous_response
from tests.gateway.harness import Answer, run
from tests.gateway.lane.test_endpoints import named_event
from tests.gateway.lane.upstream import Talk
from tests.gateway.traffic.harness import Gateway, configured
from tests.gateway.traffic.test_routes import failing, targets

PATH = "/v1/responses"
MODELS = "models: {chat: {variants: {stable: {target: a}, canary: {target: b}}, rollout: {steps: [50, 100]}%s}}\n"


class Keeping:
    """An upstream that goes on from its own responses only, whose ids begin with ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: set[str] = set()

    async def __call__(self, talk: Talk) -> None:
        said = talk.request.json
        previous = said.get("previous_response_id")
        if previous is not None and previous not in self.made:
            talk.reply({"error": {"message": f"no response {previous} here"}}, 400)
            return
        id = f"resp_{self.name}{len(self.made)}"
        self.made.add(id)
        response = {
            "object": "response",
            "previous_response_id": previous,
            "id": id,
            "status": "completed",
            "output": [],
        }
        if said.get("stream"):
            talk.begin_stream()
            talk.chunk(named_event("response.created", response=response))
            talk.chunk(named_event("response.completed", response=response))
            talk.writer.write(b"0\r\n\r\n")
        else:
            talk.reply(response)


async def ask(gateway: Gateway, previous: str | None = None, stream: bool = False, **headers: str) -> Answer:
    body: dict[str, Any] = {"model": "chat", "input": "hi", "stream": stream}
    if previous is not None:
        body["previous_response_id"] = previous
    return await gateway.post(body, PATH, **headers)


def id_of(answer: Answer) -> str:
    if "json" in answer.headers["content-type"]:
        return str(answer.json["id"])
    return str(json.loads(answer.events[0].partition(": ")[2])["response"]["id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("here", [None, 0, 1])
def test_conversations_stay_with_who_has_them(
    here: int | None, stream: bool, tmp_path: Path, model_folder: Path
) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, Keeping("a"), Keeping("b"), here=here) as (section, _),
            configured(tmp_path, MODELS % "" + section) as gateway,
        ):
            variants: collections.Counter[str] = collections.Counter()
            for _ in range(12):
                answer = await ask(gateway, stream=stream)
                assert answer.status == 200
                variant = answer.headers["x-penstock-variant"]
                variants[variant] += 1
                for _ in range(3):
                    answer = await ask(gateway, id_of(answer), stream)
                    assert answer.status == 200, answer.body
                    assert answer.headers["x-penstock-variant"] == variant
            assert len(variants) == 2
            assert gateway.context.rollouts is not None
            blocks = gateway.context.rollouts._entries["chat"].rollout._blocks
            blocks_of = [*blocks._open, *(one for block in blocks._closed for one in block)]
            shown = gateway.context.rollouts.shown()[0]
            assert len(blocks_of) + shown.controls + shown.canaries <= 12  # what goes on is no evidence

    run(scenario())


def test_those_with_a_canary_that_was_rolled_back_end(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, Keeping("a"), Keeping("b"), here=0) as (section, _),
            configured(tmp_path, MODELS % "" + section) as gateway,
        ):
            id = id_of(await ask(gateway, x_penstock_variant="canary"))
            assert (await ask(gateway, id)).headers["x-penstock-variant"] == "canary"
            assert gateway.context.rollouts is not None
            gateway.context.rollouts.roll_back("chat")
            refused = await ask(gateway, id)
            assert (refused.status, refused.headers["x-penstock-variant"]) == (400, "stable")
            assert refused.json["error"]["code"] == "previous_response_not_found"
            assert "send the conversation itself as input" in refused.json["error"]["message"]
            assert (await ask(gateway, id, x_penstock_variant="canary")).status == 200  # testers still can

    run(scenario())


def test_who_holds_nothing_is_no_fallback(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, failing(500), Keeping("b")) as (section, made),
            configured(tmp_path, MODELS % ", fallback: [b]" + section) as gateway,
        ):
            gateway.context.conversations.made("resp_a", "a")
            assert (await ask(gateway, "resp_a")).status >= 500  # and not a 400 of who never heard of it
            assert not made[1].requests
            gateway.context.conversations.made("resp_gone", "z")  # a target that there is no more
            assert (await ask(gateway, "resp_gone")).status == 400

    run(scenario())


def test_the_latest_are_remembered() -> None:
    found = Conversations(most=3)
    for number in range(3):
        found.made(f"resp_{number}", "a")
    assert found.target_of("resp_0") == "a"
    found.made("resp_3", "b")
    assert [found.target_of(f"resp_{number}") for number in range(4)] == ["a", None, "a", "b"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_id_is_found_however_it_comes(size: int) -> None:
    text = b'{"previous_response_id": "resp_no", "output": [{"id": "msg_1"}], "id" : "resp_yes-1_2"}'
    found = Conversations()
    reading = Reading(found, "a")
    for start in range(0, len(text), size):
        reading.add(text[start : start + size])
    assert list(found._targets) == ["resp_yes-1_2"]


def test_it_is_not_looked_for_without_end() -> None:
    found = Conversations()
    reading = Reading(found, "a")
    for _ in range(10):
        reading.add(b"x" * (conversations._BEGINNING // 4))
    reading.add(b'"id": "resp_1"')
    assert not found._targets and reading._seen is None


@pytest.mark.parametrize(
    ("endpoint", "body", "previous"),
    [
        (PATH, b'{"previous_response_id": "resp_1"}', "resp_1"),
        (PATH, b'{"previous_response_id": null}', ""),
        (PATH, b'{"previous_response_id": 7}', ""),
        (PATH, b'{"input": "previous_response_id"}', ""),
        (PATH, b'{"previous_response_id": "resp_1"', ""),
        (PATH, b"{}", ""),
        ("/v1/chat/completions", b'{"previous_response_id": "resp_1"}', ""),
    ],
)
def test_what_a_request_goes_on_from(endpoint: str, body: bytes, previous: str) -> None:
    assert previous_response(endpoint, body) == previous
