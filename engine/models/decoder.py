"""How does a dense decoder turn a step's tokens into logits?

One class for all families: `ModelConfig` says which biases, norms and windows there are. The code knows neither the
device nor the dtype: it calls `kernels`, which pick a provider. A step is flattened: the new tokens of all sequences
lie one after the other in one dimension T.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.config import ModelConfig
from engine.models import rope
from kernels.embedding import embedding
from kernels.kv_cache import LayerCache
from kernels.layers import LayerParts, Layers
from kernels.linear import Quantization, Weight, linear, pack
from kernels.paged_attention import AttentionMetadata, paged_attention
from kernels.rms_norm import rms_norm
from kernels.rope_kv_write import QkNorm, rope_kv_write
from kernels.silu_mul import silu_mul

TensorSource = Callable[[str, tuple[int, ...]], torch.Tensor]
"""Gives the tensor of a name in a checkpoint, after checking that it has the shape; may be a view of a file."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tokens: token_ids, positions [T] int32, slots [T] int64 (where their keys and values go)."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    attention: AttentionMetadata


class Decoder:
    """A model with its weights. Stateless otherwise: keys and values live in the caches that are passed in."""

    def __init__(
        self,
        config: ModelConfig,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        max_positions: int | None = None,
        *,
        quantization: Quantization = "none",
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.max_positions = max_positions or config.max_position_embeddings
        loader = _LayerLoader(config, source, dtype, device, quantization)
        self._embedding = loader.embedding()
        self._layers = [loader.layer(index) for index in range(config.num_layers)]
        self._norm = loader.vector("model.norm.weight", config.hidden_size)
        self._head = loader.head(self._embedding)
        self._compiled: tuple[list[LayerCache], Layers | None] | None = None
        self._rope = rope.table(config.rope, config.head_dim, self.max_positions, device)

    def hidden_states(self, step: StepInputs, caches: list[LayerCache]) -> torch.Tensor:
        """Run all layers: [T, hidden], before the final norm is applied to the rows that need it.

        Writes the keys and values of the step's tokens into ``caches`` (one per layer).
        """
        if layers := self._in_one_call(caches):
            return layers.run(step.token_ids, step.positions, step.slots, step.attention)
        config = self.config
        residual = embedding(step.token_ids, self._embedding)
        eps, scale = config.rms_norm_eps, config.head_dim**-0.5
        query_width = config.num_heads * config.head_dim
        x = rms_norm(residual, self._layers[0].input_norm, eps)
        for index, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            if index:
                x = rms_norm(x, layer.input_norm, eps, residual)
            qkv = linear(x, layer.qkv, layer.qkv_bias)
            rope_kv_write(qkv, step.positions, step.slots, self._rope, cache, layer.qk_norm)
            x = paged_attention(qkv[:, :query_width], cache, step.attention, window=layer.window, scale=scale)
            x = linear(x, layer.output, layer.output_bias)
            x = rms_norm(x, layer.mlp_norm, eps, residual)
            x = silu_mul(linear(x, layer.gate_up, layer.gate_up_bias))
            x = linear(x, layer.down, layer.down_bias)
        return residual.add_(x)

    def _in_one_call(self, caches: list[LayerCache]) -> Layers | None:
        """The layers as one compiled function, where they can be that."""
        if self.device.type != "cpu":
            return None
        if self._compiled is None or self._compiled[0] is not caches:
            possible = Layers.possible(self._layers, caches)
            parts = self._embedding, self._layers, caches, self._rope, self.config.rms_norm_eps
            self._compiled = caches, Layers(*parts) if possible else None
        return self._compiled[1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in the model's dtype, for rows of what `hidden_states` returned."""
        return linear(self.normed(hidden), self._head)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] after the final norm, for rows of what `hidden_states` returned."""
        return rms_norm(hidden, self._norm, self.config.rms_norm_eps)


class _LayerLoader:
    """Copies a checkpoint's tensors into merged, packed weights, one at a time."""

    def __init__(
        self,
        config: ModelConfig,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization,
    ) -> None:
        self._config = config
        self._quantization = quantization
        self._source = source
        self._dtype = dtype
        self._device = device

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self._merged([name], (size,), [size])

    def embedding(self) -> torch.Tensor:
        """The embedding table; on a CPU it stays in the mapped file if it needs no conversion.

        A step reads a few rows of it, and the page cache holds those; a copy would cost as much memory as the head.
        """
        shape = (self._config.vocab_size, self._config.hidden_size)
        return self._source("model.embed_tokens.weight", shape).to(self._device, self._dtype)

    def head(self, embedding: torch.Tensor) -> Weight:
        if self._config.tied:
            return pack(embedding, self._quantization)
        return self._linear(["lm_head.weight"], [self._config.vocab_size], self._config.hidden_size)

    def layer(self, index: int) -> LayerParts:
        config, prefix = self._config, f"model.layers.{index}."
        hidden, inner = config.hidden_size, config.intermediate_size
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        qkv = [f"{prefix}self_attn.{part}_proj" for part in ("q", "k", "v")]
        gate_up = [f"{prefix}mlp.{part}_proj" for part in ("gate", "up")]
        output, down = f"{prefix}self_attn.o_proj", f"{prefix}mlp.down_proj"
        return LayerParts(
            input_norm=self.vector(prefix + "input_layernorm.weight", hidden),
            qkv=self._linear([f"{name}.weight" for name in qkv], [query, kv, kv], hidden),
            qkv_bias=self._bias(qkv, [query, kv, kv], config.qkv_bias),
            qk_norm=self._qk_norm(prefix) if config.qk_norm else None,
            output=self._linear([f"{output}.weight"], [hidden], query),
            output_bias=self._bias([output], [hidden], config.output_bias),
            window=config.windows[index],
            mlp_norm=self.vector(prefix + "post_attention_layernorm.weight", hidden),
            gate_up=self._linear([f"{name}.weight" for name in gate_up], [inner, inner], hidden),
            gate_up_bias=self._bias(gate_up, [inner, inner], config.mlp_bias),
            down=self._linear([f"{down}.weight"], [hidden], inner),
            down_bias=self._bias([down], [hidden], config.mlp_bias),
        )

    def _qk_norm(self, prefix: str) -> QkNorm:
        dim = self._config.head_dim
        return QkNorm(
            query=self.vector(prefix + "self_attn.q_norm.weight", dim),
            key=self.vector(prefix + "self_attn.k_norm.weight", dim),
            eps=self._config.rms_norm_eps,
        )

    def _linear(self, names: list[str], outputs: list[int], inputs: int) -> Weight:
        return pack(self._merged(names, (sum(outputs), inputs), outputs), self._quantization)

    def _bias(self, names: list[str], outputs: list[int], present: bool) -> torch.Tensor | None:
        if not present:
            return None
        return self._merged([f"{name}.bias" for name in names], (sum(outputs),), outputs)

    def _merged(self, names: list[str], shape: tuple[int, ...], outputs: list[int]) -> torch.Tensor:
        """Stack the named tensors along their first dimension into one of ``shape``."""
        merged = torch.empty(shape, dtype=self._dtype, device=self._device)
        for name, part in zip(names, merged.split(outputs), strict=True):
            part.copy_(self._source(name, tuple(part.shape)))
        return merged
