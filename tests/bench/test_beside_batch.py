"""The figures that the benchmark prints, from measurements that are known."""

import json
from random import Random

import pytest

from bench import beside_batch
from bench.beside_batch import Phase, Report
from bench.machine import describe


def test_the_table_compares_the_tails() -> None:
    alone = [number / 1000 for number in range(1, 102)]
    phases = [
        Phase(False, alone, 0, 10.0, 0.01),
        Phase(True, [2 * seconds for seconds in alone], 50, 10.0, 0.02),
        Phase(False, alone, 0, 10.0, 0.0),
        Phase(True, [2 * seconds for seconds in alone], 30, 10.0, 0.0),
    ]
    page = beside_batch.markdown(Report("2026-01-01T00:00", describe(), 8.0, phases))
    assert "| alone | 202 | 51.0 | 100.0 | 0.0 | 1% |" in page
    assert "| beside a batch | 202 | 102.0 | 200.0 | 4.0 | 2% |" in page
    assert "p99 moves by +100.0% (medians of 2 phases)" in page


def test_percentiles() -> None:
    assert beside_batch.percentile([float(number) for number in range(101)], 99) == pytest.approx(99)


def test_questions_find_nothing_in_the_cache() -> None:
    prompts = {json.dumps(beside_batch.question(Random(seed))["messages"])[:80] for seed in range(50)}
    assert len(prompts) == 50
