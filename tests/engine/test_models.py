"""Does each family compute what transformers computes?"""

from pathlib import Path

import pytest
import torch

from scheduler.batch import Slice
from tests.engine.driving import job, run
from tests.engine.families import FAMILIES, RUNNERS, Kind, prompt, save


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_generate(name: str, kind: Kind, tmp_path: Path) -> None:
    pair = save(name, tmp_path)
    tokens = prompt(1, 19)
    ours = run(pair.runner(kind), [job(1, tokens, 24)])
    assert ours.tokens[1] == pair.greedy(tokens, 24)


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_in_fp32(name: str, kind: Kind, tmp_path: Path) -> None:
    """The last token's, of a prompt that was computed in two slices: within 1e-4 of logits as large as 10."""
    pair = save(name, tmp_path)
    tokens = prompt(2, 90)
    ours = job(1, tokens, 1)
    ours.blocks = list(range(30, 6, -1))
    runner = pair.runner(kind)
    runner.logits([Slice(ours, 0, 41, True)])
    actual = runner.logits([Slice(ours, 41, 49, True)])[0].cpu()
    torch.testing.assert_close(actual, pair.logits(tokens)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_in_bf16(name: str, tmp_path: Path) -> None:
    """Compared with transformers in fp32 on the same rounded weights.

    Ours may be as far from it as bf16's rounding carries transformers itself, plus half of that.
    """
    pair = save(name, tmp_path, dtype=torch.bfloat16)
    tokens = prompt(3, 40)
    ours = job(1, tokens, 1)
    ours.blocks = list(range(12))
    actual = pair.runner(dtype=torch.bfloat16).logits([Slice(ours, 0, 40, True)])[0].float()
    rounded = pair.logits(tokens)[-1].float()
    exact = type(pair.judge).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = exact(torch.tensor([tokens])).logits[0, -1]
    scale = expected.std()
    assert (actual - expected).abs().mean() / scale < 0.05
    assert (actual - expected).square().mean().sqrt() <= 1.5 * (rounded - expected).square().mean().sqrt()


def test_without_attention_to_the_prefix_the_test_would_fail(tmp_path: Path) -> None:
    """A wrong block table must change the logits: otherwise the tests above could not fail."""
    pair = save("llama", tmp_path)
    tokens = prompt(2, 20)
    ours = job(1, tokens, 1)
    ours.blocks = list(range(5))
    runner = pair.runner()
    runner.logits([Slice(ours, 0, 12, True)])
    ours.blocks = [7, 1, 2, 3, 4]
    actual = runner.logits([Slice(ours, 12, 8, True)])[0]
    assert (actual - pair.logits(tokens)[-1]).abs().max() > 0.1
