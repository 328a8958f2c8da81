"""`flywheel.log.segment_writer`: what happens to its folder while it writes."""

import asyncio
from pathlib import Path

import pytest

from flywheel.log import Log
from flywheel.log.recovery import recover
from tests.flywheel.log.driving import append, begin, outcomes, record


def test_a_folder_that_is_moved_away_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would who wants to begin anew: the gateway goes on where it was told to write."""
    monkeypatch.setattr("flywheel.log.segment_writer._LOOK_AFTER", 0.0)
    folder, moved = tmp_path / "log", tmp_path / "log.1"

    async def run() -> None:
        log = Log(folder)
        log.start()
        begin(log, record(1))
        assert await append(log, record(2))
        folder.rename(moved)
        folder.mkdir()
        assert await append(log, record(3))
        assert await append(log, record(1))
        assert log.lost == 0
        log.close()

    asyncio.run(run())
    assert outcomes(folder) == {"req_3": "ok", "req_1": "ok"}
    recover(moved / "segments" / "0")
    assert outcomes(moved) == {"req_2": "ok", "req_1": "ok"}
