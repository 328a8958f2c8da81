"""`bench.gpu.report`: the table says what was reached, and a record survives its file."""

import math
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from bench.gpu import report
from bench.gpu.report import Check, Figure, Record, number, table

FAST = Figure("attention", "GB/s", [3000.0, 3060.0, 3030.0], limit=4000.0, target=3400.0, jitter=0.01)
SHORT = Figure("sampling", "µs", [12.0, 12.6], limit=6.15, target=13.0, lower=True)
PLAIN = Figure("chats", "tokens/s", [12_345.0])


def test_a_figure_is_the_median_with_its_spread() -> None:
    assert (FAST.value, FAST.spread) == (3030.0, 60 / 3030)
    assert (FAST.share, FAST.reached) == (3030 / 4000, False)
    assert (SHORT.share, SHORT.reached) == (0.5, True)
    assert (PLAIN.share, PLAIN.reached, PLAIN.spread) == (None, None, 0.0)
    nothing = Figure("nothing", "%", [0.0], limit=1.0)
    assert (nothing.share, nothing.spread) == (None, 0.0)


def test_the_table_has_a_row_for_each_figure() -> None:
    assert table([FAST, SHORT, PLAIN]).splitlines()[2:] == [
        "| attention | 3,030 GB/s | 2.0% | 76% | ≥ 3,400: no |",
        "| sampling | 12.3 µs | 4.9% | 50% | ≤ 13: yes |",
        "| chats | 12,345 tokens/s | 0.0% |  |  |",
    ]


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.0123"), (999.6, "1e+03"), (1234.5, "1,234"), (12.0, "12")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = Record(machine={"gpu": "H200"})
    for result in (FAST, SHORT, Check("a", 0.1, 0.2), Check("b", math.inf, 0.2), PLAIN, Figure("chats", "x", [1.0])):
        record.add(result)
    record.cases |= {"one": report.DONE, "two": "failed: for a reason"}
    folder = tmp_path / "new" / "folder"
    record.write(folder)
    assert {path.name for path in folder.iterdir()} == {"gpu.json", "gpu.md"}
    found = Record.load(folder)
    assert found == record
    assert [check.ok for check in found.checks.values()] == [True, False]
    assert found.figures["chats"].unit == "x"  # the later of two


def test_the_page_says_what_is_missing() -> None:
    record = Record(machine={"gpu": "NVIDIA H200"}, cases={"one": report.DONE, "two": "skipped: too large"})
    record.add(PLAIN)
    record.add(Check("good", 0.1, 0.2))
    assert "1 of 1 comparisons" in record.page()
    record.add(Check("bad", 0.3, 0.2))
    page = record.page()
    for line in (
        "| chats | 12,345 tokens/s | 0.0% |  |  |",
        "1 of 2 comparisons with references hold.",
        "- bad: off by 0.3, allowed 0.2",
        "- two: skipped: too large",
    ):
        assert line in page.splitlines()
    assert "NVIDIA H200" in page and "mean nothing" not in page
    assert "- one" not in page
    assert "Without a result" not in Record(cases={"one": report.DONE}).page()


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(report, "version", missing)
    assert Record().document()["versions"]["penstock"] == "not installed"


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        name, total_memory, multi_processor_count, major, minor = "H200", 1, 132, 9, 0

    assert report.machine("cpu") == {"gpu": None}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Found())
    assert report.machine("cuda")["capability"] == "9.0"
