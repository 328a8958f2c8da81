"""Does warming up tell how far it is, and leave nothing to be compiled?"""

from collections.abc import Callable

import numba
import torch

from kernels.paged_attention.numba import attend
from kernels.sample.numba import _sample
from kernels.score.numba import _score
from kernels.warm_up import warm_up
from tests.kernels.compare import both_dtypes


@both_dtypes
def test_progress_reaches_the_end(dtype: torch.dtype) -> None:
    seen: list[tuple[str, int, int]] = []
    report: Callable[[str, int, int], None] = lambda stage, done, total: seen.append((stage, done, total))  # noqa: E731
    warm_up(torch.device("cpu"), dtype, report)
    assert seen[0][1] == 0
    assert seen[-1][1] == seen[-1][2] > 0
    assert {stage for stage, _, _ in seen} == {"kernels"}
    kind = numba.uint16 if dtype == torch.bfloat16 else numba.float32
    kernels = (attend, _sample, _score)
    assert all(any(signature[0] == kind for signature in kernel.signatures) for kernel in kernels)


def test_nothing_is_compiled_for_what_has_no_kernels() -> None:
    seen: list[str] = []
    warm_up(torch.device("cpu"), torch.float16, lambda stage, done, total: seen.append(stage))
    assert not seen


def test_numba_and_torch_share_their_threads() -> None:
    """Both must use one OpenMP runtime: two pools on two cores starve each other."""
    warm_up(torch.device("cpu"), torch.float32, lambda stage, done, total: None)
    assert numba.threading_layer() == "omp"
    assert numba.get_num_threads() == torch.get_num_threads()
