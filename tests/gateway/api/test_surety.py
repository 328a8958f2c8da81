"""What do an answer's tokens come to, whoever made them?"""

import pytest

from engine.link import Output
from flywheel.record import Uncertainty
from gateway.api.surety import Surety


def made(*outputs: Output) -> Surety:
    surety = Surety()
    for output in outputs:
        surety.add(output)
    return surety


NATIVE = (
    Output(1, [5], [-0.5], [1.0], low_margins=1),
    Output(1, [6], [-1.5], [2.0], low_margins=0),
    Output(1, [7, 8], [-0.25, -0.25], [0.5, 0.5], "stop", low_margins=0),
)
VLLM = Output(2, [5, 6], [-1.0, -3.0], [], "stop")


def test_of_a_native_answer() -> None:
    assert made(*NATIVE).record == Uncertainty(
        mean_entropy=1.0, max_entropy=2.0, min_logprob=-1.5, mean_logprob=-0.625, low_margin=0.25
    )


def test_what_a_worker_does_not_know_is_not_made_up() -> None:
    """As vLLM's, and one of an earlier version."""
    assert made(VLLM).record == Uncertainty(min_logprob=-3.0, mean_logprob=-2.0)
    assert made().record is None and made().surprisal is None


def test_of_several_answers_those_that_know_count() -> None:
    record = Surety.of([made(*NATIVE), made(VLLM), made()]).record
    assert record is not None and record.mean_logprob == pytest.approx(-6.5 / 6)
    assert (record.mean_entropy, record.max_entropy, record.min_logprob, record.low_margin) == (1.0, 2.0, -3.0, 0.25)


def test_no_low_margin_at_all_is_known() -> None:
    record = made(NATIVE[1]).record
    assert record is not None and record.low_margin == 0.0
