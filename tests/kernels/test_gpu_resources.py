"""Does every Triton kernel compile for a GPU, fit it, and need no more of it than it did?"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernels.conftest import CACHE, COMPILING
from tests.kernels.gpu_resources import TABLE, Answer, Row, operations, read

# What one block may have at most, in bytes.
SHARED_LIMIT = {90: 227 * 1024, 80: 163 * 1024}
ROOT = Path(__file__).parents[2]
REMEDY = "if that is as it should be: python -m tests.kernels.gpu_resources --write && python docs/generate.py"
# A minute on two cores that nobody else uses.
pytestmark = pytest.mark.timeout(1200)
ROW = Row("op", "call", "_kernel", 90, registers=40, spilled=0, shared=64, warps=4)


def greedier(rows: list[Row], table: list[Row]) -> list[str]:
    """Kernels that spill more, or take more shared memory, than the table says. Registers are for people to read."""
    known = {row.key: row for row in table}
    found = []
    for row in rows:
        old = known.get(row.key, row)
        if row.spilled > old.spilled:
            found.append(f"{row.key}: spills {row.spilled} bytes a thread, {old.spilled} before")
        if row.shared > old.shared:
            found.append(f"{row.key}: takes {row.shared} bytes of shared memory, {old.shared} before")
    return found


@pytest.fixture(scope="module")
def measured(pytestconfig: pytest.Config) -> Answer:
    """What the compiler said, which began when the tests did."""
    pytestconfig.stash[COMPILING].wait()
    folder = Path(pytestconfig.stash[CACHE].name)
    said = (folder / "out").read_text()
    errors = (folder / "err").read_text()
    assert said, errors
    print(errors)  # which calls took longest
    return read(said)


@pytest.fixture(scope="module")
def table() -> Answer:
    return read(TABLE.read_text())


@pytest.mark.slow
def test_everything_compiles(measured: Answer) -> None:
    assert measured.failures == []
    assert {row.operation for row in measured.rows} == set(operations())


@pytest.mark.slow
def test_every_block_fits(measured: Answer) -> None:
    for row in measured.rows:
        assert row.shared <= SHARED_LIMIT[row.arch], row
        assert row.registers * row.warps * 32 <= 65536, row


@pytest.mark.slow
def test_nothing_takes_more_than_it_did(measured: Answer, table: Answer) -> None:
    if measured.triton != table.triton:
        pytest.skip(f"compiled by Triton {measured.triton}, the table by {table.triton}")
    assert greedier(measured.rows, table.rows) == [], REMEDY


@pytest.mark.slow
def test_the_table_has_every_call_and_nothing_else(measured: Answer, table: Answer) -> None:
    assert {row.key for row in measured.rows} == {row.key for row in table.rows}, REMEDY


def test_the_checks_can_fail() -> None:
    assert greedier([ROW], [ROW]) == greedier([ROW], []) == []
    assert greedier([replace(ROW, registers=255)], [replace(ROW, spilled=8, shared=65)]) == []
    assert len(greedier([replace(ROW, spilled=8)], [ROW])) == 1
    assert len(greedier([replace(ROW, shared=65)], [ROW])) == 1
    assert greedier([replace(ROW, arch=80, spilled=8)], [ROW]) == []


def test_an_answer_survives_its_text() -> None:
    answer = Answer("3.6", [ROW, replace(ROW, arch=80)], ["why"])
    assert read(answer.as_text()) == Answer("3.6", [replace(ROW, arch=80), ROW], ["why"])
    assert read(Answer().as_text()) == Answer()


@pytest.mark.parametrize(
    ("code", "spills"),
    [
        ("_rms_norm[(4,)](x, x, x, x, 16384, 1e-6, ADD=True, BLOCK=16384, num_warps=16)", False),
        ("_rms_norm[(4,)](x, x, x, x, 16384, 1e-6, ADD=True, BLOCK=16384, num_warps=16, maxnreg=24)", True),
    ],
)
def test_spills_are_seen(code: str, spills: bool) -> None:
    program = f"""
import torch
from kernels.rms_norm.triton import _rms_norm
from tests.kernels.fake_gpu import pretend
x = torch.empty(4, 16384, dtype=torch.bfloat16)
with pretend(90) as driver:
    {code}
    {code}
assert len(driver.compiled) == 1 and driver.launched == driver.compiled * 2
print(driver.compiled[0].spilled)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 0) == spills
