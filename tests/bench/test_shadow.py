"""The bench of what shadowing costs: its table, its configurations, and its targets."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.lane.rig import free_port
from bench.shadow.__main__ import configuration, target
from bench.shadow.report import markdown
from bench.shadow.targets import handle
from gateway.config.reading import read_config
from tests.gateway.harness import request_bytes, run


def side(p99: list[float], **copies: float) -> dict[str, Any]:
    turns = [{"errs": 0, "lat_us": [100.0, 200.0, one], "ttft_us": [100.0, one], "cpu_us_req": 90.0} for one in p99]
    return {"one": turns, "many": turns, "streams": turns[:1], "memory": 60.0, "copies": copies}


def test_the_table_has_what_each_side_changes() -> None:
    sides = {"none": side([1000.0, 2000.0]), "dead": side([1000.0, 2020.0], failed=5.0, dropped=995.0)}
    worse = {"none": side([1000.0, 2000.0]), "dead": side([1500.0, 2020.0], failed=5.0, dropped=995.0)}
    found: dict[str, Any] = {
        "date": "2026-01-01",
        "machine": {"cpu": "some CPU", "cores": 2},
        "versions": {"python": "3.11"},
        "note": "On a quiet day.",
        "rounds": [{"sides": one, "foreign": 0.1} for one in (sides, worse)],
    }
    table = markdown(found)
    (none,) = [line for line in table.splitlines() if line.startswith("| none")]
    (dead,) = [line for line in table.splitlines() if line.startswith("| dead")]
    assert "100 / 1,000 |" in none and "%" not in none
    assert "100 / 1,375, +37.5% |" in dead  # of 1,000, 1,500, 2,020 and 2,020 the lower quartile
    assert "100 / 1,125, +12.5% |" in dead  # of streams there is one turn in a round
    assert "| 90 | 60 | 1,990 dropped, 10 failed |" in dead
    assert "On a quiet day." in table and "2 rounds" in table and "used 10%" in table
    sides["dead"]["one"][0]["errs"] = 2  # the other loads are the same
    assert "(6 errors)" in markdown(found)
    assert "100 / 1,000, +0.0% |" in markdown(found | {"rounds": found["rounds"][:1]})


def test_configurations_are_valid(tmp_path: Path) -> None:
    for side, shadow in (("none", None), ("routed", None), ("dead", 9001)):
        file = tmp_path / "penstock.yaml"
        file.write_text(configuration(side, 9000, shadow))
        config, _ = read_config(str(file))
        model = config.models["mock"]
        assert [(one.target, float(one.sample)) for one in model.shadow] == ([] if shadow is None else [("next", 1.0)])
        assert (model.timeout.total is not None) == (side == "routed")


def test_sides_without_a_target_of_their_own() -> None:
    with target("none", 9000) as none, target("answering", 9000) as answering, target("dead", 9000) as dead:
        assert none is None and answering == 9000 and dead not in (None, 9000)


@pytest.mark.parametrize("kind", ["slow", "flooding"])
def test_targets_answer_probes_and_nothing_else_well(kind: str) -> None:
    async def scenario() -> None:
        port = free_port()
        server = await asyncio.start_server(lambda *connection: handle(kind, *connection), "127.0.0.1", port)
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_bytes("GET", "/v1/models", b""))
            assert (await reader.readuntil(b"}")).endswith(b'{"data":[]}')
            writer.write(request_bytes("POST", "/v1/chat/completions", b"{}"))
            if kind == "flooding":
                assert len(await reader.readexactly(5_000_000)) == 5_000_000
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
            writer.close()

    run(scenario())
