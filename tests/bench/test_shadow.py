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


def side(p99: float, **copies: float) -> dict[str, Any]:
    load = {"errs": 0, "lat_us": [100.0, 200.0, p99], "ttft_us": [100.0, p99]}
    return {"one": load, "many": load, "streams": load, "memory": 60.0, "copies": copies, "foreign": 0.1}


def test_the_table_has_what_each_side_changes() -> None:
    found: dict[str, Any] = {
        "date": "2026-01-01",
        "machine": {"cpu": "some CPU", "cores": 2},
        "versions": {"python": "3.11"},
        "note": "On a quiet day.",
        "rounds": [
            {"none": side(1000.0), "dead": side(1000.0 * change, failed=5.0, dropped=995.0)}
            for change in (1.0, 1.01, 1.5)
        ],
    }
    table = markdown(found)
    (none,) = [line for line in table.splitlines() if line.startswith("| none")]
    (dead,) = [line for line in table.splitlines() if line.startswith("| dead")]
    assert "100 / 1,000 |" in none and "%" not in none
    assert "100 / 1,010, +1.0% ± 12.5%" in dead  # quartiles: 0.5 % and 25.5 %
    assert "| 60 | 2,985 dropped, 15 failed |" in dead
    assert "On a quiet day." in table and "3 rounds" in table
    found["rounds"][0]["dead"]["one"]["errs"] = 2  # the others are the same
    assert "(6 errors)" in markdown(found)
    found["rounds"] = found["rounds"][:1]
    assert "± 0.0%" in markdown(found)


def test_configurations_are_valid(tmp_path: Path) -> None:
    for shadow in (None, 9001):
        file = tmp_path / "penstock.yaml"
        file.write_text(configuration(9000, shadow))
        config, _ = read_config(str(file))
        copied = config.models["mock"].shadow
        assert [(one.target, float(one.sample)) for one in copied] == ([] if shadow is None else [("next", 1.0)])


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
