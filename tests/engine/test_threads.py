import os
import subprocess
import sys

import pytest
import torch

from engine.threads import SPIN_ROUNDS, bound_spinning


def spin_count(**environment: str) -> str:
    """What OpenMP says that it took, in a fresh process."""
    script = "from engine.threads import bound_spinning; bound_spinning(); import torch"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = {line.strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    return line.partition("= ")[2].strip("'")


def test_openmp_takes_the_bound() -> None:
    assert spin_count() == str(SPIN_ROUNDS)


def test_what_the_environment_says_stands() -> None:
    assert spin_count(GOMP_SPINCOUNT="17") == "17"
    assert spin_count(OMP_WAIT_POLICY="passive") == "0"


def test_too_late_is_an_error() -> None:
    assert torch.__version__
    with pytest.raises(RuntimeError, match="before torch is imported"):
        bound_spinning()
