import msgspec
import pytest

from bench.engine_report import Comparison, SideRun, figure, markdown, table
from bench.machine import Machine
from bench.sides import Timing

MACHINE = Machine(cpu="A CPU", cores=2, flags=("avx2",), memory=8 * 2**30, system="Linux x86_64")


def timing(seconds: float, foreign: float = 0.0, workload: str = "a") -> Timing:
    return Timing(workload, 8192, seconds, own_cpu=0.9, foreign_cpu=foreign)


def comparison(short: bool = False) -> Comparison:
    runs = [
        SideRun("tiny", side, turn, {side: "1.2"}, [timing(seconds + turn, 0.1 * turn), timing(1.0, workload="b")])
        for turn in range(3)
        for side, seconds in (("penstock", 1.0), ("vllm", 2.0))
    ]
    return Comparison(
        date="2026-01-02T03:04+00:00",
        command="python -m bench.engine",
        revision="abc",
        python="3.11",
        machine=MACHINE,
        preloaded=["libiomp5.so"],
        short=short,
        runs=runs,
    )


def test_a_figure_is_the_median_with_its_range_and_the_worst_neighbour() -> None:
    summed = figure([timing(1.0, 0.02), timing(4.0, 0.3), timing(2.0)])
    assert (summed.low, summed.middle, summed.high) == (2048, 4096, 8192)
    assert summed.foreign == pytest.approx(0.3)
    assert str(summed) == "4,096 (2,048–8,192); 30%"  # noqa: RUF001


def test_the_table_has_a_row_for_each_side_and_a_column_for_each_workload() -> None:
    rows = table(comparison()).splitlines()
    assert rows[0] == "| model | engine | a | b |"
    assert rows[2].startswith("| `tiny` | Penstock, bf16 | 4,096 (2,731–8,192); 20% |")  # noqa: RUF001
    assert rows[3].startswith("| `tiny` | vLLM for CPU, offline, bf16 | 2,731 ")
    assert len(rows) == 4


def test_the_page_says_where_when_and_how() -> None:
    page = markdown(comparison())
    for fact in ("2026-01-02", "abc", "A CPU", "8 GiB", "penstock 1.2, vllm 1.2", "libiomp5.so", "3 rounds"):
        assert fact in page
    assert "mean nothing" not in page
    assert "mean nothing" in markdown(comparison(short=True))


def test_a_comparison_survives_its_file() -> None:
    once = comparison()
    assert msgspec.json.decode(msgspec.json.encode(once), type=Comparison) == once
