"""Step preparation, for 256 sequences."""

from collections.abc import Callable, Iterator
from functools import partial

from kernels.step_inputs import reference, triton


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    made = reference.inputs([(1000, 1)] * 256, 16, 0)
    yield "256 decodes", 80, partial(triton.prepare, made.state, made.request, made.buffers)
    yield "256 updates", 80, partial(triton.update, made.state, made.request.rows, made.request.starts)
