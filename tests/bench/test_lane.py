"""The bench of the pass-through lane: its table, and the proxy that it measures against."""

import asyncio
import shutil
import sys
from typing import Any

import pytest

from bench.lane.bare import serve
from bench.lane.report import markdown
from bench.lane.rig import free_port, memory, router
from tests.gateway.harness import read_answer, request_bytes, run
from tests.gateway.lane.harness import CHAT, chat
from tests.gateway.lane.upstream import Upstream


def side(rps: float, p50: float, memory: float | None) -> dict[str, Any]:
    load = {"rps": rps, "errs": 0, "cpu_us_req": 20.0, "lat_us": [p50, 2 * p50, 3 * p50]}
    stream = load | {"ttft_us": [p50, 0.0], "transit_us": [p50, 0.0, 9.0], "cpu_us_ev": 7.5}
    parts = {"many": load, "one": load, "long": load, "streams": stream, "dense": stream}
    return {**parts, "memory": memory, "foreign": 0.05}


def test_the_table_has_what_each_side_adds() -> None:
    found = {
        "date": "2026-01-01",
        "machine": {"cpu": "some CPU", "cores": 2},
        "versions": {"python": "3.11"},
        "sides": {
            "direct": side(90_000, 20, None),
            "bare": side(50_000, 80, 25.0),
            "penstock": side(30_000, 100, 60.0),
            "some-router cache_aware": side(12_000, 200, 90.0),
        },
        "growth": {"first": 60.0, "requests": 61.2, "disconnects": 63.0, "foreign": 0.5, "date": "2026-01-02"},
    }
    table = markdown(found)
    (row,) = [line for line in table.splitlines() if line.startswith("| penstock")]
    assert "30,000" in row
    assert "| 80 / 240 |" in row
    assert "| 5% |" in row
    assert "61.2 (+2.0%)" in table
    assert "| some-router cache_aware | 12,000 |" in table
    assert "target for penstock" in table
    found["sides"]["penstock"]["many"] = found["sides"]["penstock"]["many"] | {"errs": 3}  # type: ignore[index]
    assert "(3 errors)" in markdown(found)


def test_the_bare_proxy_passes_on() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream:
            port = free_port()
            proxy = asyncio.create_task(serve(port, upstream.port))
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.01)
            for stream in (False, True, False):
                writer.write(request_bytes("POST", CHAT, chat(stream=stream)))
                assert (await read_answer(reader)).status == 200
            writer.close()
            proxy.cancel()
            await asyncio.gather(proxy, return_exceptions=True)

    run(scenario())


def test_memory_is_read() -> None:
    import os

    assert 5 < memory(os.getpid()) < 10_000


@pytest.mark.skipif(shutil.which("taskset") is None, reason="gateways are bound to a core by taskset")
def test_a_router_that_ends_is_no_side() -> None:
    with pytest.raises(RuntimeError, match="did not answer"), router([sys.executable, "-c", ""], free_port(), b"{}"):
        pass
