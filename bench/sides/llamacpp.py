"""How fast is llama.cpp, through its own batches? Run by the Python of an environment that has llama-cpp-python.

The model is written as GGUF here, with its weights in the variant's type; its vocabulary isn't needed. A step decodes
one token of every request in one batch, after the prompts, as llama.cpp's own ``batched-bench`` does. It has no prefix
cache for prompts of one batch: of shared tokens the first sequence's are computed, and given to the others.
"""

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from bench.sides import main

_BATCH = 2048


class LlamaCpp:
    """The variant is ``bf16`` or ``q8_0``; norms stay in float32."""

    def __init__(self, folder: Path, variant: str) -> None:
        self.versions = {"llama-cpp-python": version("llama-cpp-python")}
        path = folder / f"{variant}.gguf"
        if not path.exists():
            write_gguf(folder, variant, path)
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        self._vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        self._context: Any = None

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = len(prompts) * (-(-(len(prompts[0]) + output) // 256) * 256)
        params.n_seq_max = len(prompts)
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        params.kv_unified = True
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError("llama.cpp made no context")
        try:
            return self._generate(context, prompts, output)
        finally:
            llama_cpp.llama_free(context)

    def _generate(self, context: Any, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        columns = enumerate(zip(*prompts, strict=True))
        length = next((place for place, column in columns if len(set(column)) > 1), 0)
        shared = prompts[0][:length]
        memory = llama_cpp.llama_get_memory(context)
        if shared:
            self._decode(context, [(token, place, 0, False) for place, token in enumerate(shared)])
            for sequence in range(1, len(prompts)):
                llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        work = [
            (token, place, sequence, place == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
            if place >= len(shared)
        ]
        next_tokens: dict[int, int] = {}
        for start in range(0, len(work), _BATCH):
            next_tokens |= self._decode(context, work[start : start + _BATCH])
        answers = [[next_tokens[sequence]] for sequence in range(len(prompts))]
        for step in range(output - 1):
            drawn = self._decode(
                context,
                [
                    (answer[-1], len(prompts[sequence]) + step, sequence, True)
                    for sequence, answer in enumerate(answers)
                ],
            )
            for sequence, answer in enumerate(answers):
                answer.append(drawn[sequence])
        return [len(answer) for answer in answers]

    def _decode(self, context: Any, entries: Sequence[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Compute (token, position, sequence, whether its logits are wanted); the likeliest next token by sequence."""
        batch = llama_cpp.llama_batch_init(len(entries), 0, 1)
        try:
            batch.n_tokens = len(entries)
            for i, (token, place, sequence, wanted) in enumerate(entries):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, wanted
            status = llama_cpp.llama_decode(context, batch)
            if status:
                raise ValueError(f"llama_decode returned {status}")
            found = {}
            for i, (_, _, sequence, wanted) in enumerate(entries):
                if wanted:
                    logits = llama_cpp.llama_get_logits_ith(context, i)
                    found[sequence] = int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())
            return found
        finally:
            llama_cpp.llama_batch_free(batch)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


def write_gguf(folder: Path, variant: str, path: Path) -> None:
    """Write a Llama model's folder as GGUF, every matrix in the variant's type."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    kind = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[variant]
    writer = gguf.GGUFWriter(str(path) + ".part", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, values in _tensors(folder / "model.safetensors"):
        if "q_proj" in name or "k_proj" in name:  # rotated pairs lie side by side there
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            split = values.reshape(heads, 2, -1, values.shape[1])
            values = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)
        target = name.replace("model.layers.", "blk.")
        for old, new in names.items():
            target = target.replace(old, new)
        if values.ndim == 1:
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    Path(str(path) + ".part").rename(path)


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """The bfloat16 tensors of a safetensors file, as float32."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        wide = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
        yield name, wide.view(np.float32).reshape(entry["shape"])


if __name__ == "__main__":
    main(LlamaCpp)
