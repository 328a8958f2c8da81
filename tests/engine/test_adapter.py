"""Does the engine compute with a merged adapter what PEFT computes with it beside the weights?"""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapter import PICKLE_FILE, TENSORS_FILE, Adapter
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig, ModelFault
from engine.loader import load_model
from engine.runner import Runner
from kernels.linear import Quantization
from scheduler.batch import Slice
from tests.engine.adapters import Adapted, adapt
from tests.engine.driving import job, run
from tests.engine.families import RUNNERS, Kind, Pair, make_runner, prompt, save

CPU = torch.device("cpu")
PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8},
    "alpha_pattern": {r".*\.2\..*": 9, "k_proj": 3},  # the first that fits; PEFT sorts them when it saves them
    "use_rslora": True,
}


def last_logits(runner: Runner, tokens: list[int]) -> torch.Tensor:
    ours = job(1, tokens, 1)
    ours.blocks = list(range(len(tokens) // 4 + 1))
    return runner.logits([Slice(ours, 0, len(tokens), True)])[0].float().cpu()


def check(pair: Pair, adapted: Adapted, kind: Kind = "host") -> None:
    """Logits within 1e-4 of PEFT's, which are as large as 10, and far from those of the model alone."""
    tokens = prompt(2, 41)
    actual = last_logits(make_runner(pair.folder, kind, adapter=adapted.folder), tokens)
    torch.testing.assert_close(actual, adapted.logits(tokens)[-1], rtol=1e-4, atol=1e-4)
    with adapted.judge.disable_adapter():
        assert (actual - adapted.logits(tokens)[-1]).abs().max() > 0.5


@pytest.mark.parametrize("kind", [RUNNERS[0], RUNNERS[2]])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama3-rope-biases", "mistral-window", "qwen2", "qwen3"])
def test_every_family_with_ranks_and_alphas_of_all_kinds(name: str, kind: Kind, tmp_path: Path) -> None:
    pair = save(name, tmp_path / "model")
    adapted = adapt(pair, tmp_path / "adapter", **(PATTERNS if name != "llama" else {}))
    check(pair, adapted, kind)
    tokens = prompt(1, 19)
    ours = run(make_runner(pair.folder, kind, adapter=adapted.folder), [job(1, tokens, 24)]).tokens[1]
    assert ours == adapted.likeliest(tokens, ours)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.[02]\.self_attn\.(q|v)_proj"},
        {"target_modules": ["up_proj", "down_proj"], "layers_to_transform": [1, 2]},
        {
            "target_modules": ["q_proj", "gate_proj"],
            "exclude_modules": ["layers.0.self_attn.q_proj"],
            "lora_dropout": 0.5,
        },
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "k_proj"]},
    ],
)
def test_whatever_parts_it_is_for(fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rules by which PEFT chooses modules are ours: nothing that it made is refused, and nothing seems to lack."""
    pair = save("qwen3", tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        check(pair, adapt(pair, tmp_path / "adapter", **fields))
    assert "no tensors" not in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "r": 7},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_embeddings_and_heads_where_they_are_one(fields: dict[str, Any], tmp_path: Path) -> None:
    pair = save("llama-tied", tmp_path / "model")
    check(pair, adapt(pair, tmp_path / "adapter", **fields))


@pytest.mark.parametrize(
    "fields", [{"target_modules": ["embed_tokens", "lm_head"]}, {"modules_to_save": ["embed_tokens", "lm_head"]}]
)
def test_embeddings_and_heads_where_they_are_two(fields: dict[str, Any], tmp_path: Path) -> None:
    pair = save("llama", tmp_path / "model")
    check(pair, adapt(pair, tmp_path / "adapter", **fields))


def test_an_embedding_that_came_with_it_is_the_heads_too_where_they_are_one(tmp_path: Path) -> None:
    pair = save("llama-tied", tmp_path / "model")
    with torch.no_grad():
        pair.judge.get_input_embeddings().weight *= 1.5  # other than in the model's folder
    check(pair, adapt(pair, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"]))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_once_as_in_a_merge_by_peft(stored: torch.dtype, tmp_path: Path) -> None:
    pair = save("qwen2", tmp_path / "model", dtype=stored)
    adapted = adapt(pair, tmp_path / "adapter", **PATTERNS)
    model = Checkpoint(pair.folder)
    adapter = Adapter(adapted.folder, model, tied=False)
    expected = adapted.merged().state_dict()
    for name, shape in model.shapes.items():
        ours = adapter.applied(name, model.tensor(name, shape), CPU)
        assert ours.dtype == (torch.float32 if "_proj.weight" in name else stored)
        different = ours.to(stored) != expected[name]
        torch.testing.assert_close(ours.to(stored), expected[name])
        assert different.float().mean() < (0.001 if stored == torch.bfloat16 else 0.7)  # the sums have other orders


@pytest.mark.parametrize(("quantization", "lost"), [("none", 0.1), ("int8", 0.25)])
def test_packed_and_quantised_weights_are_those_of_the_merged_model(
    quantization: Quantization, lost: float, tmp_path: Path
) -> None:
    """Far nearer to each other than to what isn't rounded: the rounding is the same."""
    pair = save("qwen2", tmp_path / "model")
    adapted = adapt(pair, tmp_path / "adapter")
    tokens = prompt(4, 40)
    exact = adapted.logits(tokens)[-1]
    rounded: dict[str, Any] = {"dtype": torch.bfloat16, "quantization": quantization}
    ours = last_logits(make_runner(pair.folder, adapter=adapted.folder, **rounded), tokens)
    adapted.merged().save_pretrained(tmp_path / "merged")
    theirs = last_logits(make_runner(tmp_path / "merged", **rounded), tokens)
    assert (ours - theirs).abs().mean() < 0.02 * exact.std()
    assert (ours - exact).abs().mean() < lost * exact.std()


def load(pair: Pair, folder: Path) -> None:
    load_model(ModelConfig.load(pair.folder), torch.float32, CPU, adapter=folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `pair`: for the queries of two layers, and a head of its own."""
    where = tmp_path_factory.mktemp("sound")
    target = r"model\.layers\.[01]\.self_attn\.q_proj"
    return adapt(
        save("llama", where / "model"), where / "adapter", target_modules=target, modules_to_save=["lm_head"]
    ).folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        (KEY, None, r"lora_A\.weight is missing, which belongs to base_model\..*\.lora_B\.weight"),
        (KEY, torch.zeros(3, 96), r"lora_A\.weight has the shape \[3, 96\], but .* make it \[4, 96\]"),
        (KEY, torch.zeros(4, 95), r"lora_A\.weight has the shape \[4, 95\], but .* make it \[4, 96\]"),
        (KEY.replace("_A", "_B"), torch.zeros(95, 4), r"has the shape \[95, 4\], but .* make it \[96, 4\]"),
        (KEY.replace("layers.0", "layers.7"), torch.zeros(4, 96), r"has no model\.layers\.7\.self_attn\.q_proj"),
        ("base_model.model.model.layers.0.mlp.fc1.lora_B.weight", torch.zeros(4), "no place in the model"),
        (KEY.replace("lora_A.weight", "lora_magnitude_vector"), torch.zeros(96), "has no .*magnitude_vector"),
        (KEY.replace("lora_A.weight", "lora_B.bias"), torch.zeros(96), r"no place in the model"),
        ("base_model.model.score.weight", torch.zeros(2, 96), r"has no score\.weight"),
        ("base_model.model.model.norm.weight", torch.zeros(95), r"has the shape \[95\], but .* make it \[96\]"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(key: str, tensor: torch.Tensor | None, said: str, pair: Pair, folder: Path) -> None:
    path = folder / TENSORS_FILE
    tensors = {name: values for name, values in load_file(path).items() if name != key}
    save_file(tensors | ({key: tensor} if tensor is not None else {}), path)
    with pytest.raises(ModelFault, match=rf"{TENSORS_FILE}: .*{said}.*Is the adapter complete.*merge_and_unload"):
        load(pair, folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), rf"has no {TENSORS_FILE}"),
        (lambda path: path.rename(path.with_name(PICKLE_FILE)), rf"in {PICKLE_FILE}, .*Load the adapter with PEFT"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), f"{TENSORS_FILE}: truncated"),
        (lambda path: save_file({}, path), "it has no tensors"),
    ],
)
def test_files_that_are_no_good(change: Any, said: str, pair: Pair, folder: Path) -> None:
    change(folder / TENSORS_FILE)
    with pytest.raises(ModelFault, match=said):
        load(pair, folder)


def test_tensors_of_modules_that_the_configuration_does_not_name(pair: Pair, folder: Path) -> None:
    path = folder / TENSORS_FILE
    tensors = load_file(path)
    both = {f"{KEY.replace('q_proj', 'v_proj').replace('_A', half)}": half for half in ("_A", "_B")}
    save_file(tensors | {key: torch.zeros((4, 96) if half == "_A" else (32, 4)) for key, half in both.items()}, path)
    with pytest.raises(ModelFault, match=r"layers\.0\.self_attn\.v_proj, which adapter_config\.json doesn't name"):
        load(pair, folder)


def test_saved_modules_that_are_missing(pair: Pair, folder: Path) -> None:
    path = folder / TENSORS_FILE
    tensors = load_file(path)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelFault, match=r"no tensor of lm_head, which adapter_config\.json names in modules_to_save"):
        load(pair, path.parent)


def test_modules_without_tensors_stay_as_they_are(pair: Pair, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in PEFT."""
    path = folder / TENSORS_FILE
    save_file({key: values for key, values in load_file(path).items() if "layers.1" not in key}, path)
    with caplog.at_level(logging.WARNING):
        load(pair, folder)
    assert "1 target modules have no tensors, and stay as they are: model.layers.1.self_attn.q_proj" in caplog.text


def test_an_adapter_of_another_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match=r"has the shape .* is it for this model\?"):
        load(save("mistral-window", tmp_path / "model"), folder)
