import argparse
import sys
from pathlib import Path

import msgspec
import pytest

from bench import engine
from bench.engine import BenchError, build_parser, main, rotated, run_side, vllm_environment, vllm_preloads
from bench.engine_report import Comparison
from bench.models import SHAPES, Shape, make

REAL_SIDES = ("penstock", "penstock-int8", "transformers", "transformers-fp32")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model so small that loading it is all that takes time, standing in for ``tiny``."""
    monkeypatch.setitem(SHAPES, "tiny", Shape(64, 96, 2, 2, 1, 32, 128))
    monkeypatch.setattr(engine, "MODELS", tmp_path)
    make("tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


def arguments(*options: str) -> argparse.Namespace:
    return build_parser().parse_args(options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "tiny,huge"], "'huge' is none of tiny, small"),
        (["--workloads", "d"], "'d' is none of a, b, c"),
        (["--sides", "vllm"], "needs --vllm-python"),
        (["--vllm-python", "/nowhere/python"], "is no program"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options)
    assert refused.value.code == 2
    assert words in capsys.readouterr().err


def test_the_short_run_of_our_side_and_transformers(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "engine.json"
    options = ["--short", "--rounds", "1", "--models", "tiny", "--workloads", "a,c", "--out", str(out)]
    assert main(options) == 0
    comparison = msgspec.json.decode(out.read_bytes(), type=Comparison)
    assert [run.side for run in comparison.runs] == list(REAL_SIDES)
    assert all([timing.output_tokens for timing in run.timings] == [12, 12] for run in comparison.runs)
    assert "| `tiny` | Penstock, int8 |" in out.with_suffix(".md").read_text()
    assert str(tmp_path) not in out.read_text()


def test_a_side_that_fails_says_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"bench\.sides\.transformers exited with 1(.|\n)*config\.json"):
        run_side("transformers", tmp_path, arguments("--short", "--workloads", "b"), seed=0)


def test_vllm_gets_the_libraries_its_environment_has(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    assert not [path for path in vllm_preloads(python) if path.is_relative_to(tmp_path)]
    (tmp_path / "lib").mkdir()
    for name in ("libiomp5.so", "libtcmalloc_minimal.so.4"):
        (tmp_path / "lib" / name).touch()
    assert [path.name for path in vllm_preloads(python)] == ["libiomp5.so", "libtcmalloc_minimal.so.4"]
    assert str(tmp_path / "lib" / "libiomp5.so") in vllm_environment(python)["LD_PRELOAD"]


def test_a_python_is_taken_as_it_is_named() -> None:
    """A virtual environment's python is a link: resolving it would leave the environment."""
    assert arguments("--vllm-python", sys.executable).vllm_python == Path(sys.executable)


def test_no_side_always_follows_the_same_warm_machine() -> None:
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
