"""Does the compiled function that goes through all layers compute what the kernels compute one after the other?"""

from pathlib import Path

import pytest
import torch

from engine.config import ModelConfig
from engine.host_runner import HostRunner
from engine.loader import load_model
from engine.models.decoder import Decoder
from kernels.layers import Layers
from kernels.linear import Form, Quantization
from scheduler.batch import Slice
from tests.engine.driving import job, run
from tests.engine.families import FAMILIES, prompt, save


def panels(folder: Path, quantization: Quantization) -> Decoder:
    """The model with its weights in the form that the compiled function wants."""
    return load_model(ModelConfig.load(folder), torch.bfloat16, torch.device("cpu"), quantization=quantization)


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_one_call_or_in_many(
    name: str, quantization: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = panels(save(name, tmp_path, dtype=torch.bfloat16).folder, quantization)
    calls = 0
    through = Layers.run

    def counted(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return through(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Layers, "run", counted)

    def logits() -> torch.Tensor:
        """Of the last tokens of two prompts, one of which was begun in an earlier step."""
        runner = HostRunner(model, 40, 4)
        first, second = job(1, prompt(3, 61), 1), job(2, prompt(4, 9), 1)
        first.blocks, second.blocks = list(range(20, 4, -1)), [30, 2, 31]
        runner.logits([Slice(first, 0, 41, True)])
        return runner.logits([Slice(first, 41, 20, True), Slice(second, 0, 9, True)])

    whole = logits()
    assert calls == 2
    monkeypatch.setattr(Layers, "possible", lambda layers, caches: False)
    assert torch.equal(whole, logits())
    assert calls == 2


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_8_bits_are_near(name: str, tmp_path: Path) -> None:
    pair = save(name, tmp_path, dtype=torch.bfloat16)
    tokens = prompt(3, 40)
    expected = type(pair.judge).from_pretrained(tmp_path, dtype=torch.float32)(torch.tensor([tokens])).logits[0, -1]
    distances = []
    kinds: tuple[Quantization, ...] = ("none", "int8", "fp8")
    for quantization in kinds:
        ours = job(1, tokens, 1)
        ours.blocks = list(range(12))
        actual = HostRunner(panels(tmp_path, quantization), 40, 4).logits([Slice(ours, 0, 40, True)])[0].float()
        distances.append(((actual - expected).square().mean().sqrt() / expected.std()).item())
    assert 0.0 < distances[0] < distances[1] < 0.15
    assert distances[1] < distances[2] < 0.4  # 3 bits of mantissa: of few and random weights, that's what it costs


def test_the_working_memory_grows_with_the_step(tmp_path: Path) -> None:
    pair = save("llama", tmp_path, dtype=torch.bfloat16)
    model = panels(pair.folder, "none")
    together = run(
        HostRunner(model, 200, 4), [job(uid, prompt(uid, length), 12) for uid, length in enumerate([3, 70, 20])]
    )
    for uid, length in enumerate([3, 70, 20]):
        alone = run(HostRunner(model, 200, 4), [job(uid, prompt(uid, length), 12)])
        assert together.tokens[uid] == alone.tokens[uid]


def test_more_tokens_than_go_through_the_mlp_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = panels(save("llama", tmp_path, dtype=torch.bfloat16).folder, "none")

    def logits() -> torch.Tensor:
        ours = [job(uid, prompt(uid, 250), 1) for uid in range(3)]
        for uid, one in enumerate(ours):
            one.blocks = list(range(uid * 63, uid * 63 + 63))
        return HostRunner(model, 200, 4).logits([Slice(one, 0, 250, True) for one in ours])

    whole = logits()
    monkeypatch.setattr(Layers, "possible", lambda layers, caches: False)
    assert torch.equal(whole, logits())


def test_float32_goes_through_the_kernels(tmp_path: Path) -> None:
    model = load_model(ModelConfig.load(save("llama", tmp_path).folder), torch.float32, torch.device("cpu"))
    assert model._layers[0].qkv.form is Form.PLAIN
    assert not Layers.possible(model._layers, [])
