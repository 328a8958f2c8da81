"""What does a Hugging Face model folder say about the model in it?

`ModelConfig.load` reads ``config.json`` and ``generation_config.json`` and refuses what the engine can't run before a
single weight is touched. What differs between architecture families (biases, QK-norm, sliding windows) is decided in
`engine.models`, one file per family; everything after this module knows only `ModelConfig`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from engine.models import FAMILIES

RopeKind = Literal["default", "linear", "llama3", "yarn"]
ROPE_KINDS: Final[Mapping[str, RopeKind]] = {kind: kind for kind in get_args(RopeKind)}
CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"
HUB_PATTERNS: Final = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.jinja",
    "tokenizer*",
    "merges.txt",
    "vocab.txt",
)
SAMPLING_DEFAULTS: Final = ("temperature", "top_p", "top_k", "min_p")


class ModelFault(Exception):
    """A model that can't be loaded: the message names the file and, where there is one, the field or tensor."""


class UnsupportedModel(ModelFault):
    """A model that is in order, but that this engine can't run."""

    def __init__(self, where: Path, what: str) -> None:
        families = ", ".join(sorted(FAMILIES))
        super().__init__(
            f"{where}: {what}. The native engine runs {families} (dense, unquantised); "
            "other models may run with --engine vllm"
        )


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding; the fields after ``theta`` matter only to the kinds that use them."""

    kind: RopeKind
    theta: float
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A dense decoder-only transformer.

    ``windows`` has one entry per layer: how many positions, its own included, a token attends to; 0 means all.
    ``defaults`` are the sampling fields that ``generation_config.json`` sets. ``dtype`` is what the weights were
    trained in, as the folder states it (``bfloat16``, ``float32``, …).
    """

    folder: Path
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    tied: bool
    dtype: str
    eos_token_ids: tuple[int, ...]
    defaults: Mapping[str, float]

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read a folder's configuration.

        Raises:
            ModelFault: a file is missing or broken, or a field is missing or has an impossible value.
            UnsupportedModel: the engine can't run this architecture or this variant of it.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise ModelFault(f"{folder} is no model folder: it has no {CONFIG_FILE}")
        raw = _read_json(path)
        generation_path = folder / GENERATION_FILE
        generation = _read_json(generation_path) if generation_path.is_file() else {}
        architecture = _supported_architecture(path, raw)
        fields = _Fields(path, raw)
        heads = fields.positive("num_attention_heads")
        kv_heads = fields.positive("num_key_value_heads", heads)
        hidden = fields.positive("hidden_size")
        traits = FAMILIES[architecture](raw)
        layers = fields.positive("num_hidden_layers")
        head_dim = fields.positive("head_dim", traits.default_head_dim or hidden // heads)
        if heads % kv_heads:
            raise ModelFault(f"{path}: {heads} attention heads can't share {kv_heads} key-value heads evenly")
        if head_dim % 2:
            raise ModelFault(f"{path}: head_dim is {head_dim}, rotary embeddings need an even one")
        if len(traits.windows) != layers:
            raise ModelFault(f"{path}: layer_types has {len(traits.windows)} entries for {layers} layers")
        max_position = fields.positive("max_position_embeddings")
        return cls(
            folder=folder,
            architecture=architecture,
            hidden_size=hidden,
            intermediate_size=fields.positive("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=fields.positive("vocab_size"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=_rope(path, raw, max_position),
            max_position_embeddings=max_position,
            qkv_bias=traits.qkv_bias,
            output_bias=traits.output_bias,
            mlp_bias=traits.mlp_bias,
            qk_norm=traits.qk_norm,
            windows=traits.windows,
            tied=bool(raw.get("tie_word_embeddings", False)),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            eos_token_ids=_eos(path, raw, generation),
            defaults=_sampling_defaults(generation_path, generation),
        )


def resolve_model(name: str | None) -> Path:
    """Find the folder of a model: a folder, a hub id (downloaded if need be), or ``None`` for the demo model.

    Raises:
        ModelFault: it is neither a folder nor a model that the hub or its local cache has.
    """
    if name is None:
        from engine.demo import MODEL_FOLDER

        return Path(MODEL_FOLDER)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelFault(f"{name} is no folder (and no hub id, which looks like organisation/model)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_PATTERNS)))
    except (OSError, ValueError, RuntimeError) as error:
        # Hub errors (offline, unknown, gated, …) derive from these; their first line is the one that helps.
        reason = str(error).strip().partition("\n")[0]
        raise ModelFault(f"{name} is no folder here, and could not be had from the hub: {reason}") from error


class _Fields:
    """Typed access to the fields of one JSON file, with errors that name the file and the field."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self._path = path
        self._raw = raw

    def positive(self, name: str, default: int | None = None) -> int:
        value = self._raw.get(name)
        if value is None:
            if default is None:
                raise ModelFault(f"{self._path}: the field {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelFault(f"{self._path}: {name} is {value!r}, expected a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._raw.get(name)
        if value is None:
            if default is None:
                raise ModelFault(f"{self._path}: the field {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFault(f"{self._path}: {name} is {value!r}, expected a number")
        return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelFault(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelFault(f"{path}: expected a JSON object")
    return raw


def _supported_architecture(path: Path, raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures")
    if not isinstance(names, list) or not names:
        raise UnsupportedModel(path, "it names no architecture")
    architecture = str(names[0])
    if architecture not in FAMILIES:
        raise UnsupportedModel(path, f"the architecture {architecture} is not supported")
    if raw.get("quantization_config"):
        raise UnsupportedModel(path, "quantised weights (quantization_config) are not supported")
    if (activation := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedModel(path, f"the activation {activation} is not supported")
    return architecture


def _rope(path: Path, raw: Mapping[str, Any], max_position: int) -> Rope:
    """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` + ``rope_scaling`` (before)."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelFault(f"{path}: the RoPE parameters are {parameters!r}, expected an object")
    name = parameters.get("rope_type") or parameters.get("type") or "default"
    kind = ROPE_KINDS.get(name)
    if kind is None:
        raise UnsupportedModel(path, f"the RoPE type {name} is not supported")
    if float(parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)) != 1.0:
        raise UnsupportedModel(path, "partial rotary embeddings are not supported")
    fields = _Fields(path, parameters)
    original = fields.positive("original_max_position_embeddings", max_position)
    attention_factor = parameters.get("attention_factor")
    return Rope(
        kind=kind,
        theta=fields.number("rope_theta", _Fields(path, raw).number("rope_theta", 10_000.0)),
        factor=1.0
        if kind == "default"
        else fields.number("factor", max_position / original if kind == "yarn" else None),
        original_max_position=original,
        low_freq_factor=fields.number("low_freq_factor", 1.0),
        high_freq_factor=fields.number("high_freq_factor", 4.0),
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        attention_factor=None if attention_factor is None else float(attention_factor),
        mscale=fields.number("mscale", 0.0),
        mscale_all_dim=fields.number("mscale_all_dim", 0.0),
        truncate=bool(parameters.get("truncate", True)),
    )


def _eos(path: Path, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """All end-of-sequence ids that either file names, in order, each once."""
    ids: dict[int, None] = {}
    for value in (raw.get("eos_token_id"), generation.get("eos_token_id")):
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if isinstance(item, bool) or not isinstance(item, int) or item < 0:
                raise ModelFault(f"{path}: eos_token_id is {value!r}, expected token ids")
            ids[item] = None
    return tuple(ids)


def _sampling_defaults(path: Path, generation: Mapping[str, Any]) -> dict[str, float]:
    fields = _Fields(path, generation)
    defaults = {name: fields.number(name) for name in SAMPLING_DEFAULTS if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return defaults
