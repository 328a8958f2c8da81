"""Are weights loaded without a second copy, and is a damaged folder named for what it is?"""

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import INDEX_FILE, Checkpoint
from engine.config import ModelConfig, ModelFault
from engine.loader import load_model
from engine.models.decoder import Decoder
from tests.engine.families import Pair, save

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("llama", tmp_path_factory.mktemp("sharded"))


@pytest.fixture
def folder(sharded: Pair, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sharded.folder, tmp_path / "model"))


def load(folder: Path) -> Decoder:
    return load_model(ModelConfig.load(folder), torch.float32, CPU)


def a_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def test_shards_and_a_single_file_hold_the_same(sharded: Pair, tmp_path: Path) -> None:
    assert len(list(sharded.folder.glob("*.safetensors"))) > 2
    save("llama", tmp_path, shard="1GB")
    single, split = Checkpoint(tmp_path), Checkpoint(sharded.folder)
    assert single.total_bytes == split.total_bytes
    name, shape = "model.layers.1.self_attn.q_proj.weight", (96, 96)
    assert torch.equal(single.tensor(name, shape), split.tensor(name, shape))
    assert torch.equal(single.tensor(name, shape), sharded.judge.state_dict()[name])


def test_progress_grows_to_the_whole(sharded: Pair) -> None:
    seen: list[tuple[str, int, int]] = []
    load_model(
        ModelConfig.load(sharded.folder),
        torch.float32,
        CPU,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    done = [entry[1] for entry in seen]
    assert done == sorted(done)
    assert seen[-1] == ("weights", seen[0][2], seen[0][2])
    assert {entry[0] for entry in seen} == {"weights"}


def test_missing_shard(folder: Path) -> None:
    shard = a_shard(folder)
    shard.unlink()
    with pytest.raises(ModelFault, match=rf"{shard.name} is missing: .* holds \d+ tensors"):
        load(folder)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated_shard(folder: Path, keep: int) -> None:
    shard = a_shard(folder)
    os.truncate(shard, keep if keep > 0 else shard.stat().st_size + keep)
    with pytest.raises(ModelFault, match=rf"{shard.name}: truncated") as fault:
        load(folder)
    if keep == -1:
        assert "the tensor model." in str(fault.value)


def test_garbage_instead_of_a_header(folder: Path) -> None:
    shard = a_shard(folder)
    for header in (b"{nonsense", b"[]", b'{"x": {"dtype": "F32"}}'):
        shard.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ModelFault, match=rf"{shard.name}: the header is not readable"):
            load(folder)


def test_missing_tensor(folder: Path) -> None:
    shard = a_shard(folder)
    tensors = load_file(shard)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, shard)
    with pytest.raises(ModelFault, match=rf"{shard.name}: the tensor {name} is missing"):
        load(folder)


def test_a_tensor_that_no_file_names(tmp_path: Path) -> None:
    save("llama", tmp_path, shard="1GB")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFault, match=r"model\.norm\.weight is missing: none of model\.safetensors has it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(95), r"shape \[95\], but config.json makes it \[96\]"),
        (torch.zeros(96, dtype=torch.int8), "dtype I8"),
    ],
)
def test_unexpected_tensors(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    save("llama", tmp_path, shard="1GB")
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "model.norm.weight": tensor}, path)
    with pytest.raises(ModelFault, match=rf"model\.safetensors: the tensor model\.norm\.weight has the {message}"):
        load(tmp_path)


def test_a_shape_that_does_not_fit_its_bytes(tmp_path: Path) -> None:
    save("llama", tmp_path, shard="1GB")
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    start = header["model.norm.weight"]["data_offsets"][0]
    header["model.norm.weight"]["data_offsets"] = [start, start + 96 * 2]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(ModelFault, match=r"the tensor model\.norm\.weight has 192 bytes, .* takes 384"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}'])
def test_unreadable_index(folder: Path, content: str) -> None:
    (folder / INDEX_FILE).write_text(content)
    with pytest.raises(ModelFault, match=rf"{INDEX_FILE}: not readable as an index"):
        load(folder)


def test_no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(ModelFault, match="has no weights"):
        load(folder)


def test_extra_tensors_are_logged_unless_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save("llama-tied", tmp_path, shard="1GB")
    path = tmp_path / "model.safetensors"
    harmless = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": torch.zeros(331, 96),
    }
    save_file({**load_file(path), **harmless}, path)
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert not caplog.messages
    save_file({**load_file(path), "model.surprise": torch.zeros(3)}, path)
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "1 tensors were not used: model.surprise" in caplog.text


MEASURE = """
import sys, threading, torch
from pathlib import Path
from engine.config import ModelConfig
from engine.loader import load_model
from kernels.linear import pack

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

config = ModelConfig.load(Path(sys.argv[1]))
pack(torch.zeros(64, 64, dtype=torch.bfloat16))
before, peak = anonymous(), 0
def look(*_):
    global peak
    peak = max(peak, anonymous())
model = load_model(config, torch.bfloat16, torch.device("cpu"), progress=look)
print(before, peak, anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_second_copy_in_memory(tmp_path: Path) -> None:
    """Of a 124 MB model: beyond its own size, at most one merged weight exists twice."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8000,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 100e6
    largest = 2 * 2048 * 512 * 2
    del model
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    before, peak, after = map(int, output.split())
    assert max(peak, after) - before < size + 2 * largest + 8e6
