import pytest

from bench.engine import MODELS
from bench.models import MAX_POSITION, SHAPES
from bench.workloads import DESCRIPTIONS, WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_prompts_have_the_stated_shape(name: str) -> None:
    workload = WORKLOADS[name]
    prompts = workload.prompts(1000, seed=3)
    assert len(prompts) == workload.requests
    assert {len(prompt) for prompt in prompts} == {workload.shared + workload.own}
    assert len({tuple(prompt[: workload.shared]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == workload.requests
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others() -> None:
    workload = WORKLOADS["c"]
    assert workload.prompts(100, 1) == workload.prompts(100, 1)
    assert workload.prompts(100, 1)[0][:512] != workload.prompts(100, 2)[0][:512]


def test_every_workload_is_described_and_fits_every_model() -> None:
    assert set(DESCRIPTIONS) == set(WORKLOADS)
    assert max(workload.longest for workload in WORKLOADS.values()) <= MAX_POSITION
    assert all(shape.heads % shape.kv_heads == 0 for shape in SHAPES.values())
    assert MODELS.parent.name == ".cache"
