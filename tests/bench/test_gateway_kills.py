"""Gateways that are killed while they are asked leave every answer on record, once. The bench kills a thousand."""

from pathlib import Path

import pytest

from bench.gateway_kills import run


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_every_answer_is_in_the_table_once(durability: str, tmp_path: Path) -> None:
    found = run(tmp_path, 5, durability, seed=3, longest=1.2)
    assert found.answered > 0
    assert found.missing == found.twice == 0
    assert found.recorded >= found.answered
