"""What does a LoRA adapter make of a model's weights?

LoRA (Hu et al. 2021) adds to the weight W of a layer: W + scaling * B @ A. An engine that serves one adapter alone adds
it up once, when it loads: then the adapter costs nothing any more, whatever becomes of the weight afterwards. The
folder is PEFT's: ``adapter_config.json`` (`engine.adapter_config`) and ``adapter_model.safetensors``.
"""

import logging
import re
from pathlib import Path
from typing import Final, NamedTuple

import torch

from engine.adapter_config import CONFIG_FILE, WAY_OUT, AdapterConfig
from engine.checkpoint import Checkpoint
from engine.config import ModelFault

TENSORS_FILE: Final = "adapter_model.safetensors"
PICKLE_FILE: Final = "adapter_model.bin"
EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"

_ENDS: Final = (f"{EMBEDDING}.weight", f"{HEAD}.weight")
_PREFIX: Final = "base_model.model."
_BASE: Final = ".base_layer.weight"
_HALVES: Final = (
    (".lora_A.weight", ".lora_B.weight"),
    # Of an embedding, whose rows are tokens: both are the other way round.
    (".lora_embedding_A", ".lora_embedding_B"),
)
_Shape = tuple[int, ...]
logger = logging.getLogger(__name__)


class _Product(NamedTuple):
    """The names of the tensors whose product is added to a weight, and what it is multiplied with."""

    a: str
    b: str
    scaling: float
    transposed: bool


class Adapter:
    """An adapter that fits a model.

    A model whose embedding is also its last layer has one weight for both; PEFT adapts them apart from each other.
    ``unties`` says that they become two weights.
    """

    def __init__(self, folder: Path, model: Checkpoint, *, tied: bool) -> None:
        """Read the adapter in ``folder``, and check it against the tensors of the model that it is for.

        Raises:
            ModelFault: it has no files or damaged ones, can't be merged, or belongs to another model.
        """
        self._config = AdapterConfig.load(folder)
        self._path = folder / TENSORS_FILE
        self._tensors = _open(folder)
        self._shapes = self._tensors.shapes
        self._tied = tied
        self._weights = model.shapes
        if tied and _ENDS[0] in self._weights:
            self._weights[_ENDS[1]] = self._weights[_ENDS[0]]
        self._products: dict[str, _Product] = {}
        self._replaced: dict[str, str] = {}
        for key in self._shapes:
            self._take(key)
        self._check_complete()
        logger.info("adapter %s: adds to %d weights, replaces %d", folder, len(self._products), len(self._replaced))

    @property
    def unties(self) -> bool:
        """Whether embedding and last layer, which are one in the model, differ with the adapter."""
        return self._tied and any(name in self._products or name in self._replaced for name in _ENDS)

    def stored_as(self, name: str) -> str:
        """What the model's files call the weight that ``name`` begins as."""
        return _ENDS[0] if self._tied and name == _ENDS[1] else name

    def applied(self, name: str, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The tensor ``name`` of the model with the adapter: ``weight`` itself if it has nothing for it.

        Otherwise it is another's, or it is computed on ``device`` in float32, for whoever takes it to round it once.
        """
        if (key := self._replaced.get(name)) is not None:
            weight = self._tensor(key)
        if (product := self._products.get(name)) is None:
            return weight
        a, b = (self._tensor(key).to(device, torch.float32) for key in (product.a, product.b))
        left, right = (a.T, b.T) if product.transposed else (b, a)
        return weight.to(device, torch.float32, copy=True).addmm_(left, right, alpha=product.scaling)

    def _tensor(self, key: str) -> torch.Tensor:
        return self._tensors.tensor(key, self._shapes[key])

    def _take(self, key: str) -> None:
        """Find out what a tensor of the adapter is for."""
        bare = key.removeprefix(_PREFIX)
        for halves in _HALVES:
            for half in halves:
                if bare.endswith(half):
                    self._take_product(key.removesuffix(half), halves)
                    return
        name = bare.removesuffix(_BASE) + ".weight" if bare.endswith(_BASE) else bare
        if name not in self._weights:
            raise self._fault(f"the tensor {key} has no place in the model, which has no {name}")
        self._expect(key, self._weights[name])
        self._replaced[name] = key
        if bare.endswith(_BASE) and self._tied and name in _ENDS:
            for other in _ENDS:
                self._replaced.setdefault(other, key)

    def _take_product(self, stem: str, halves: tuple[str, str]) -> None:
        """Note what a pair of matrices adds to."""
        module = stem.removeprefix(_PREFIX)
        name = f"{module}.weight"
        a, b = (stem + half for half in halves)
        if name not in self._weights:
            raise self._fault(f"the tensor {a} has no place in the model, which has no {name}")
        for one, other in ((a, b), (b, a)):
            if one not in self._shapes:
                raise self._fault(f"the tensor {one} is missing, which belongs to {other}")
        if not self._targets(module):
            raise self._fault(f"it has tensors for {module}, which {CONFIG_FILE} doesn't name as a target")
        transposed = halves == _HALVES[1]
        rank, shape = self._config.rank(module), self._weights[name]
        if len(shape) != 2:
            raise self._fault(f"the tensor {a} belongs to {name}, which is no matrix")
        outputs, inputs = reversed(shape) if transposed else shape
        self._expect(a, (rank, inputs))
        self._expect(b, (outputs, rank))
        self._products[name] = _Product(a, b, self._config.scaling(module), transposed)

    def _expect(self, key: str, shape: _Shape) -> None:
        if (found := self._shapes[key]) != shape:
            raise self._fault(
                f"the tensor {key} has the shape {list(found)}, but the model and {CONFIG_FILE} make it {list(shape)}"
            )

    def _check_complete(self) -> None:
        """Everything that should be replaced is; of what should be added to, PEFT lets some be missing."""
        if not self._shapes:
            raise self._fault("it has no tensors")
        for saved in self._config.modules_to_save or ():
            if not any(re.search(rf"{saved}\.", name) for name in self._replaced):
                raise self._fault(f"it has no tensor of {saved}, which {CONFIG_FILE} names in modules_to_save")
        lacking = [module for module in self._linear() if f"{module}.weight" not in self._products]
        if lacking:
            said = self._path, len(lacking), ", ".join(lacking[:5])
            logger.warning("%s: %d target modules have no tensors, and stay as they are: %s", *said)

    def _linear(self) -> list[str]:
        """The modules of the model that the adapter should add to."""
        matrices = [
            name.removesuffix(".weight")
            for name, shape in self._weights.items()
            if len(shape) == 2 and name != f"{EMBEDDING}.weight"
        ]
        return [module for module in matrices if self._targets(module)]

    def _targets(self, module: str) -> bool:
        if self._config.targets(module, output=module == HEAD):
            return True
        together = self._tied and self._config.ensure_weight_tying
        return together and module in (EMBEDDING, HEAD) and any(map(self._config.targets, (EMBEDDING, HEAD)))

    def _fault(self, what: str) -> ModelFault:
        return ModelFault(f"{self._path}: {what}. Is the adapter complete, and is it for this model? If so: {WAY_OUT}")


def _open(folder: Path) -> Checkpoint:
    path = folder / TENSORS_FILE
    if path.is_file():
        return Checkpoint(path)
    if (folder / PICKLE_FILE).is_file():
        raise ModelFault(
            f"{folder} has its tensors in {PICKLE_FILE}, which may run any code when it is read. Load the adapter with "
            f"PEFT and save it again: that makes {TENSORS_FILE}"
        )
    raise ModelFault(f"{folder} has no {TENSORS_FILE}")
