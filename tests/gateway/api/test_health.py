"""``/health/live``, ``/health/ready`` and ``/metrics``."""

from pathlib import Path

from tests.gateway.harness import run, serving


def test_ready(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            assert (await gateway.get("/health/live")).json == {"status": "live"}
            for path in ("/health/ready", "/health"):
                assert (await gateway.get(path)).json == {"status": "ready", "away": {}}

    run(scenario())


def test_alive_but_not_ready(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, loaded=False) as gateway:
            assert (await gateway.get("/health/live")).status == 200
            found = await gateway.get("/health/ready")
            assert found.status == 503
            assert found.headers["retry-after"] == "1"
            assert found.json["error"]["message"] == "The model is still being loaded."

    run(scenario())


def test_not_ready_without_a_worker(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.worker.drop()
            await gateway.fleet_worker.lost.wait()
            assert (await gateway.get("/health/ready")).status == 503
            assert await gateway.metric('penstock_model_up{model="fake"}') == 0
            page = (await gateway.get("/metrics")).body.decode()
            assert 'penstock_worker_up{worker="w0"} 0.0' in page
            assert 'penstock_worker_kv_total_tokens{worker="w0"} 0.0' in page

    run(scenario())
