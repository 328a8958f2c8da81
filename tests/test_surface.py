"""What the official clients can ask of a real server: the demo model behind ``penstock serve``, nothing faked."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.schemas import random_schemas
from tests.serving import Serving

MODEL = "penstock-demo"
SCHEMAS = 250
SHEET = "Hotel Alder\nbreakfast time: 7:30\nRoom 12: price 80 euros\nRoom 27: price 65 euros"
CHAT: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": SHEET},
    {"role": "user", "content": "Give Room 27 as JSON."},
]
ROOM = {
    "type": "object",
    "properties": {"room": {"type": "string"}, "price": {"type": "string"}},
    "required": ["room", "price"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with Serving() as serving:
        yield serving


@pytest.fixture(scope="module")
def client(demo: Serving) -> OpenAI:
    return demo.client()


def test_an_answer_has_the_shape_of_its_schema(client: OpenAI) -> None:
    found = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        response_format={"type": "json_schema", "json_schema": {"name": "room", "strict": True, "schema": ROOM}},
    )
    assert json.loads(found.choices[0].message.content or "") == {"room": "Room 27", "price": "65 euros"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_schemas_hold_whatever_is_drawn(demo: Serving) -> None:
    """Some of those that `tests.gateway.text.test_constraint` takes all of; what is longer than a limit is cut."""

    async def ask(client: AsyncOpenAI, gate: asyncio.Semaphore, number: int, schema: dict[str, Any]) -> str:
        async with gate:
            found = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Write {number} as JSON."}],
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
                temperature=1.0,
                seed=number,
                max_tokens=1500,
            )
        (choice,) = found.choices
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content or ""), schema)
        return choice.finish_reason

    async def scenario() -> list[str]:
        gate = asyncio.Semaphore(48)
        async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=800) as client:
            asked = (ask(client, gate, number, schema) for number, schema in enumerate(random_schemas(SCHEMAS)))
            return await asyncio.gather(*asked)

    reasons = asyncio.run(scenario())
    assert len(reasons) == SCHEMAS and set(reasons) <= {"stop", "length"}
    assert reasons.count("stop") >= 0.9 * SCHEMAS


def test_regexes_choices_and_grammars(client: OpenAI) -> None:
    for extra, wanted in (
        ({"guided_regex": "[1-9][0-9] euros"}, "65 euros"),
        ({"guided_choice": ["80 euros", "65 euros", "50 euros"]}, "65 euros"),
        ({"structured_outputs": {"grammar": 'start: NUMBER " euros"\nNUMBER: /[0-9]+/'}}, "65 euros"),
    ):
        question: list[ChatCompletionMessageParam] = [
            CHAT[0],
            {"role": "user", "content": "What is the price of Room 27?"},
        ]
        found = client.chat.completions.create(model=MODEL, messages=question, extra_body=extra)
        assert found.choices[0].message.content == wanted


def test_constrained_and_free_answers_in_one_batch(client: OpenAI, demo: Serving) -> None:
    async def scenario() -> tuple[list[str | None], list[str | None]]:
        async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as many:

            async def ask(**fields: Any) -> str | None:
                found = await many.chat.completions.create(model=MODEL, messages=CHAT, **fields)
                content: str | None = found.choices[0].message.content
                return content

            free = [ask() for _ in range(8)]
            held = [ask(extra_body={"guided_regex": "[a-z]{5}"}) for _ in range(8)]
            answers = await asyncio.gather(*free, *held)
            return answers[:8], answers[8:]

    alone = client.chat.completions.create(model=MODEL, messages=CHAT).choices[0].message.content
    free, held = asyncio.run(scenario())
    assert free == [alone] * 8
    assert all(answer and len(answer) == 5 and answer.islower() for answer in held)


def test_choices_share_the_blocks_of_their_prompt(client: OpenAI, demo: Serving) -> None:
    text = " ".join(str(number) for number in range(400))
    prompt = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"{text} x"}])
    assert prompt.usage is not None
    length, most = prompt.usage.prompt_tokens, 0.0
    stream = client.completions.create(
        model=MODEL, prompt=text, n=8, temperature=1, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    due = 0.0
    for _ in stream:
        if time.monotonic() > due:
            most = max(most, demo.metric("penstock_worker_kv_used_tokens"))
            due = time.monotonic() + 0.1
    assert length > 400
    assert length <= most + 100  # the reports come every 50 ms, and some came in the middle
    assert most <= length + 8 * (200 + 32)


def test_penalties_and_biases_change_what_is_drawn(client: OpenAI) -> None:
    def ask(**fields: Any) -> str:
        found = client.completions.create(model=MODEL, prompt="a a a a", max_tokens=12, temperature=0, **fields)
        return str(found.choices[0].text)

    plain = ask(extra_body={"ignore_eos": True})
    repeated = ask(frequency_penalty=2.0, presence_penalty=2.0, extra_body={"ignore_eos": True})
    assert plain != repeated
    assert ask(logit_bias={"70": 100}, extra_body={"ignore_eos": True}) == "a" * 12
    banned = client.completions.create(
        model=MODEL, prompt="a a a a", max_tokens=12, logit_bias={"70": -100}, extra_body={"return_token_ids": True}
    )
    assert 70 not in (banned.choices[0].model_extra or {})["token_ids"]
    allowed = ask(extra_body={"allowed_token_ids": [70, 71], "ignore_eos": True})
    assert set(allowed) <= {"a", "b"} and len(allowed) == 12


def test_the_same_seed_gives_the_same_choices(client: OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        found = client.chat.completions.create(model=MODEL, messages=CHAT, n=4, temperature=1.5, seed=seed)
        return [choice.message.content for choice in found.choices]

    first = ask(7)
    assert first == ask(7)
    assert len({*first, *ask(8)}) > 1


def test_log_probabilities_add_up(client: OpenAI) -> None:
    found = client.chat.completions.create(model=MODEL, messages=CHAT, logprobs=True, top_logprobs=5)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(token.token for token in logprobs.content[:-1]) == found.choices[0].message.content
    for token in logprobs.content:
        assert token.top_logprobs[0].token == token.token  # greedy
        assert sum(np.exp(top.logprob) for top in token.top_logprobs) <= 1.001


def test_scoring_a_prompt_alone(client: OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="one two three", max_tokens=0, echo=True, logprobs=1)
    first = whole.choices[0].logprobs
    assert first is not None and first.token_logprobs is not None and first.tokens is not None
    assert whole.choices[0].text == "one two three" and "".join(first.tokens[1:]).endswith("two three")
    again = client.completions.create(model=MODEL, prompt="one two three", max_tokens=4, echo=True, logprobs=1)
    second = again.choices[0].logprobs
    assert second is not None and second.token_logprobs is not None
    assert second.token_logprobs[1 : len(first.tokens)] == pytest.approx(first.token_logprobs[1:], abs=1e-3)


def test_embeddings(client: OpenAI) -> None:
    texts = ["The price is 80 euros.", "The price is 65 euros.", "zebra zebra zebra"]
    together = client.embeddings.create(model=MODEL, input=texts)
    vectors = np.array([item.embedding for item in together.data])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    alone = client.embeddings.create(model=MODEL, input=texts[1], encoding_format="float")
    assert alone.data[0].embedding == pytest.approx(vectors[1].tolist(), abs=2e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_responses_go_on_from_each_other(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, instructions=SHEET, input="What is the price of Room 27?")
    assert first.output_text == "65 euros"
    second = client.responses.create(
        model=MODEL, instructions=SHEET, input="What is the price of Room 12?", previous_response_id=first.id
    )
    assert second.output_text == "80 euros"
    with client.responses.stream(model=MODEL, input="What is 7 + 5?") as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == "12"


def test_messages_through_anthropics_client(demo: Serving) -> None:
    client = Anthropic(base_url=demo.url, api_key="none", max_retries=0)
    asked: Any = {
        "model": MODEL,
        "max_tokens": 50,
        "system": SHEET,
        "messages": [{"role": "user", "content": "What is the price of Room 27?"}],
    }
    found = client.messages.create(**asked)
    assert [block.text for block in found.content if block.type == "text"] == ["65 euros"]
    assert found.stop_reason == "end_turn"
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "65 euros"


@pytest.mark.parametrize("schema", [{"type": "string", "minLength": 5, "maxLength": 2}, {"type": "wibble"}])
def test_an_impossible_schema_is_refused(client: OpenAI, schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=CHAT,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert caught.value.param == "response_format.json_schema.schema"
