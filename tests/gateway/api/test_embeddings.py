"""``/v1/embeddings`` through the official client."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gateway.fake_worker import prompt_ids
from tests.gateway.harness import request_bytes, run, serving


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "input": "abc", **fields}


def unit(*numbers: float) -> list[float]:
    vector = np.array(numbers, np.float32)
    return list(vector / np.linalg.norm(vector))


def test_texts_and_token_ids_in_their_order(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            ids = gateway.model.tokenizer.encode("abc", add_special_tokens=False)
            for given in (["abc", "b"], [ids, ids[1:2]]):
                found = await client.embeddings.create(model="fake", input=given)  # base64, unless told otherwise
                assert [item.index for item in found.data] == [0, 1]
                for item in found.data:
                    assert item.embedding == pytest.approx(unit(ids[1], 1, 2, 2), abs=1e-6)
                assert found.usage.prompt_tokens == found.usage.total_tokens == 4
            one = await client.embeddings.create(model="fake", input=ids, encoding_format="float")
            assert one.data[0].embedding == pytest.approx(unit(ids[1], 1, 2, 2), abs=1e-6)
            assert [prompt_ids(submit) for submit in gateway.worker.submitted] == [ids, ids[1:2]] * 2 + [ids]
            assert {submit.priority for submit in gateway.worker.submitted} == {-1}

    run(scenario())


def test_what_can_be_asked_for(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            last = gateway.model.tokenizer.encode("c", add_special_tokens=False)[0]
            asked = body(pooling="last", dimensions=2, encoding_format="base64", normalize=False, priority=3, user="u")
            found = await gateway.post("/v1/embeddings", asked)
            vector = np.frombuffer(base64.b64decode(found.json["data"][0]["embedding"]), "<f4")
            assert vector.tolist() == [last, 1]
            (submit,) = gateway.worker.submitted
            assert (submit.embed, submit.priority, submit.tenant) == ("last", -4, "u")
            cut = await gateway.post("/v1/embeddings", body(input="x" * 100, truncate_prompt_tokens=-1))
            assert cut.json["usage"]["prompt_tokens"] == 64
            cut = await gateway.post("/v1/embeddings", body(truncate_prompt_tokens=1, normalize=False))
            assert cut.json["data"][0]["embedding"] == [last, 1, 2, 2]

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": []}, "invalid_value", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input.1"),
        ({"input": ["a", 1]}, "invalid_value", "input"),
        ({"input": [[1], []]}, "invalid_value", "input.1"),
        ({"input": [[257]]}, "invalid_value", "input.0.0"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": "x" * 65}, "context_length_exceeded", "input"),
        ({"dimensions": 5}, "invalid_value", "dimensions"),
        ({"dimensions": 0}, "invalid_value", "dimensions"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"messages": []}, "unsupported_parameter", "messages"),
        ({"model": "none"}, "model_not_found", "model"),
    ],
)
def test_bad_requests(model_folder: Path, fields: dict[str, Any], code: str, param: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = await gateway.post("/v1/embeddings", body(**fields))
            assert (found.json["error"]["code"], found.json["error"]["param"]) == (code, param)
            assert gateway.worker.submitted == [] and gateway.context.queued == 0

    run(scenario())


def test_a_worker_that_makes_none(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, embedding_size=0) as gateway:
            found = await gateway.post("/v1/embeddings", body())
            assert found.json["error"]["code"] == "unsupported_parameter"

    run(scenario())


def test_a_client_that_leaves(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, auto=False) as gateway:
            _, writer = await gateway.connect()
            writer.write(request_bytes("POST", "/v1/embeddings", body(input=["a", "b"])))
            await gateway.worker.until(lambda: len(gateway.worker.running) == 2)
            writer.close()
            await gateway.worker.until(lambda: len(gateway.worker.aborted) == 2)

    run(scenario())
