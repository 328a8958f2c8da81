"""What all endpoints share."""

from pathlib import Path

import pytest

from gateway.api.context import Context
from gateway.wire import errors
from tests.gateway.harness import run, serving


def reason(context: Context) -> str | None:
    """Why it is not ready, asked anew each time, which a type checker doesn't know of properties."""
    return context.not_ready


def test_without_a_model_there_is_nothing_to_ask() -> None:
    context = Context(max_queue=1, max_body=1)
    with pytest.raises(errors.ApiError, match="still being loaded") as refused:
        context.model("anything")
    assert refused.value.status == 503
    assert context.not_ready == "The model is still being loaded."


def test_models_are_found_by_name(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            assert gateway.context.model("fake").name == "fake"
            with pytest.raises(errors.ApiError, match=r"'other' does not exist.*'fake'") as refused:
                gateway.context.model("other")
            assert refused.value.status == 404

    run(scenario())


def test_ready_follows_the_worker_and_the_drain(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            reasons = [gateway.context.not_ready]
            gateway.worker.drop()
            await gateway.fleet_worker.lost.wait()
            reasons.append(gateway.context.not_ready)
            gateway.context.draining = True
            reasons.append(gateway.context.not_ready)
            assert reasons == [None, "The worker of 'fake' is restarting.", "The server is shutting down."]

    run(scenario())


def test_the_queue_is_bounded(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, max_queue=2) as gateway:
            context = gateway.context
            one, two = context.seat(gateway.model, 1, False), context.seat(gateway.model, 3, False)
            assert context.queued == 4
            with pytest.raises(errors.ApiError) as refused:
                context.seat(gateway.model, 1, False)
            assert refused.value.status == 429
            context.seat(gateway.model, 100, True).leave()
            two.leave()
            two.leave()
            assert context.queued == 1
            three = context.seat(gateway.model, 1, False)
            one.leave()
            three.leave()
            assert context.queued == 0

    run(scenario())


def test_a_model_that_is_still_to_come_is_told_from_one_that_is_not(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            context = gateway.context
            context.awaited = ["fake", "later"]
            assert reason(context) is None
            context.loading = True
            assert reason(context) == "The model 'later' is still being loaded."
            for name, status in (("later", 503), ("never", 404)):
                with pytest.raises(errors.ApiError) as refused:
                    context.model(name)
                assert refused.value.status == status
            context.models["later"] = gateway.model.named("later")
            context.loading = False
            assert reason(context) is None
            assert (context.model("later").name, context.model("fake").name) == ("later", "fake")
            assert context.names() == ["fake", "later"]

    run(scenario())
