"""Does every step find the graph that wastes least, and none that it doesn't fit?"""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.graphs import Shape, decode_shapes, fit, mixed_shapes


def shapes(most: int) -> list[Shape]:
    return sorted(decode_shapes(most) + mixed_shapes(most, 512))


@given(most=st.integers(1, 600), sequences=st.integers(1, 600))
def test_every_step_of_decodes_fits_closely(most: int, sequences: int) -> None:
    found = fit(Shape(sequences, sequences), shapes(most))
    if sequences > most:
        assert found is None
    else:
        assert found is not None and found.decodes_only
        assert sequences <= found.tokens <= max(sequences + 32, 2 * sequences - 1)
        assert found.tokens <= most


@given(most=st.integers(1, 300), sequences=st.integers(1, 300), more=st.integers(1, 700))
def test_small_steps_with_prefill_fit(most: int, sequences: int, more: int) -> None:
    sequences = min(sequences, most)
    step = Shape(sequences + more, sequences)
    found = fit(step, shapes(most))
    if found is None:
        assert step.tokens > 64 or sequences >= 64
        return
    assert not found.decodes_only
    assert found.tokens >= step.tokens and found.sequences > sequences, "padding has a sequence of its own"
    assert found.sequences <= most + 1


def test_usual_sizes() -> None:
    sizes = [shape.tokens for shape in decode_shapes(256)]
    assert sizes[:6] == [1, 2, 4, 8, 16, 24] and sizes[-1] == 256
    assert all(after - before <= 8 for before, after in pairwise(sizes))
    assert fit(Shape(3, 3), decode_shapes(256)) == (4, 4)
    assert fit(Shape(70, 5), mixed_shapes(256, 4096)) == (128, 17)
    assert fit(Shape(300, 100), mixed_shapes(256, 4096)) == (512, 257)
    assert fit(Shape(513, 2), mixed_shapes(256, 4096)) is None
    assert mixed_shapes(1, 4096) == [(64, 2), (128, 2), (256, 2), (512, 2)]
    assert mixed_shapes(1, 200) == [(64, 2), (128, 2)]
