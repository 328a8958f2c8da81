"""``/v1/models``."""

from pathlib import Path

import openai
import pytest

from tests.gateway.harness import run, serving


def test_through_the_client(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway, gateway.openai() as client:
            (model,) = (await client.models.list()).data
            assert (model.id, model.object, model.owned_by) == ("fake", "model", "penstock")
            assert await client.models.retrieve("fake") == model
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("other")

    run(scenario())


def test_the_context_length_is_shown(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            found = (await gateway.get("/v1/models/fake")).json
            assert found["max_model_len"] == 64
            assert found["created"] == gateway.model.created

    run(scenario())


def test_a_name_may_have_slashes(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.context.models["org/name"] = gateway.model
            assert (await gateway.get("/v1/models/org/name")).status == 200
            assert (await gateway.get("/v1/models/org%2Fname")).status == 200

    run(scenario())


def test_nothing_is_listed_while_loading(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, loaded=False) as gateway:
            assert (await gateway.get("/v1/models")).json["data"] == []
            assert (await gateway.get("/v1/models/fake")).status == 503

    run(scenario())
