"""How do the weights of a Hugging Face folder get into our modules?

`load_model` lets the decoder draw its tensors from the folder's files one at a time, each as the LoRA adapter, if there
is one, makes it: at no time is there a second copy of more than one merged weight.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from engine.adapter import Adapter
from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.models.decoder import Decoder
from kernels.linear import Quantization

ProgressCallback = Callable[[str, int, int], None]
logger = logging.getLogger(__name__)


def load_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    adapter: Path | None = None,
    max_positions: int | None = None,
    quantization: Quantization = "none",
    progress: ProgressCallback = lambda stage, done, total: None,
) -> Decoder:
    """Build the decoder with the weights of ``config.folder``. ``progress`` gets (stage, bytes done, bytes in all).

    The LoRA adapter in the folder ``adapter`` is merged into the weights before they are rounded to ``dtype``,
    quantised or packed: it costs nothing later.

    Raises:
        ModelFault: see `Checkpoint` and `Adapter`.
    """
    checkpoint = Checkpoint(config.folder)
    changes = Adapter(adapter, checkpoint, tied=config.tied) if adapter is not None else None
    if changes is not None and changes.unties:
        config = replace(config, tied=False)
    done = 0

    def source(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        nonlocal done
        stored = changes.stored_as(name) if changes is not None else name
        tensor = checkpoint.tensor(stored, shape)
        done += checkpoint.bytes_of(stored) if stored == name else 0
        progress("weights", done, checkpoint.total_bytes)
        return changes.applied(name, tensor, device) if changes is not None else tensor

    model = Decoder(config, source, dtype, device, max_positions, quantization=quantization)
    if unread := checkpoint.unread():
        logger.warning("%s: %d tensors were not used: %s", config.folder, len(unread), ", ".join(unread[:5]))
    progress("weights", checkpoint.total_bytes, checkpoint.total_bytes)
    return model
