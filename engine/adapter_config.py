"""What does PEFT's ``adapter_config.json`` say of a LoRA adapter: where does it belong, and how strong is it there?

`AdapterConfig.load` refuses adapters whose effect isn't a sum of low-rank products (DoRA, biases, tokens that were
trained one by one, …) before a tensor is read. What a field means is PEFT's to say; the rules here are those of its
0.21, and a field that came later is refused unless it is empty.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from engine.config import ModelFault

CONFIG_FILE: Final = "adapter_config.json"
WAY_OUT: Final = "PEFT itself may merge it (merge_and_unload, then save_pretrained): serve the folder that this makes"
ALL_LINEAR: Final = "all-linear"

# Of no consequence to weights that are merged: how the adapter was trained, and what it was called.
_NEUTRAL: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
        *("lora_dropout", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "velora_config", "runtime_config", "layers_pattern"),
        # For layers that keep their weights the other way round, which no model of ours has.
        "fan_in_fan_out",
    }
)
_REASONS: Final[Mapping[str, str]] = {
    "use_dora": "DoRA scales the weight that it adds to",
    "lora_bias": "it adds to biases",
    "trainable_token_indices": "it has the embeddings of single tokens",
    "layer_replication": "it uses layers several times",
    "target_parameters": "it adapts parameters of other layers than linear ones",
    "alora_invocation_tokens": "it works from certain tokens on only",
}
# Those that leave the model's own weights as they were; the others train beside weights that are the model's no more.
_BEGINNINGS: Final = (True, False, "gaussian", "orthogonal", "eva")

_Names = list[str] | str
_Rank = Annotated[int, Meta(gt=0)]
_Number = TypeVar("_Number", int, float)


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """PEFT's fields by their names, as far as they bear on merged weights."""

    peft_type: str
    r: _Rank = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    target_modules: _Names | None = None
    exclude_modules: _Names | None = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    init_lora_weights: bool | str = True
    bias: str = "none"

    @classmethod
    def load(cls, folder: Path) -> "AdapterConfig":
        """Read an adapter's configuration.

        Raises:
            ModelFault: the file is missing or broken, or this is an adapter that can't be merged into weights.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise ModelFault(f"{folder} is no adapter in PEFT's format: it has no {CONFIG_FILE}")
        try:
            raw = json.loads(path.read_bytes())
            config = msgspec.convert(raw, cls)
        except (OSError, ValueError) as error:  # msgspec's ValidationError is a ValueError
            raise ModelFault(f"{path}: not readable as an adapter's configuration: {error}") from error
        if fault := config._fault() or _unknown(raw):
            raise ModelFault(f"{path}: {fault}. {WAY_OUT}")
        try:
            config._compile()
        except re.error as error:
            raise ModelFault(f"{path}: {error.pattern!r} is no regular expression: {error}") from error
        return config

    def targets(self, module: str, *, output: bool = False) -> bool:
        """Whether the adapter adds to the weight of ``module``. ``output`` says that it is the model's last layer."""
        if any(re.match(rf"(?:^|.*\.){name}(?:$|\.)", module) for name in self.modules_to_save or ()):
            return False
        if _named(self.exclude_modules or (), module):
            return False
        names = self.target_modules or ()
        if isinstance(names, str) and names.lower() == ALL_LINEAR:
            return not output
        if not _named(names, module):
            return False
        return isinstance(names, str) or module in names or self._in_layers(module)

    def rank(self, module: str) -> int:
        """The rank of what is added to the weight of ``module``."""
        return _by_pattern(self.rank_pattern or {}, module, self.r)

    def scaling(self, module: str) -> float:
        """What the product of the two matrices of ``module`` is multiplied with (rsLoRA: Kalajdzievski 2023)."""
        rank = self.rank(module)
        alpha = _by_pattern(self.alpha_pattern or {}, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def _in_layers(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        found = re.search(r"\.layers\.(\d+)\.", module)
        return found is not None and int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)

    def _fault(self) -> str | None:
        """Why this can't be merged."""
        if self.peft_type != "LORA":
            return f"peft_type is {self.peft_type}, and the native engine merges LORA"
        if self.bias != "none":
            return f"bias is {self.bias}: biases were trained, and the native engine merges weights"
        if self.init_lora_weights not in _BEGINNINGS:
            return f"init_lora_weights is {self.init_lora_weights}: it belongs to other weights than the model's own"
        return None

    def _compile(self) -> None:
        """Raises re.error if one of the patterns is none."""
        whole = [one for one in (self.target_modules, self.exclude_modules) if isinstance(one, str)]
        ends = [*(self.rank_pattern or ()), *(self.alpha_pattern or ()), *(self.modules_to_save or ())]
        for pattern in whole + ends:
            re.compile(pattern)


def _unknown(raw: Mapping[str, Any]) -> str | None:
    """What else the file says that bears on the weights."""
    for name, value in raw.items():
        if value and name not in _NEUTRAL and name not in AdapterConfig.__struct_fields__:
            return f"{name} is {value!r}: {_REASONS.get(name, 'the native engine does not know what that means')}"
    return None


def _named(names: Iterable[str], module: str) -> bool:
    """Whether ``module`` is among ``names``, which are the ends of modules' names, or one pattern for all of it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """The value of the first pattern that ``module`` ends with."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
