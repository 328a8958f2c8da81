"""What does ``/v1/models`` answer?"""

from typing import Literal

import msgspec


class Model(msgspec.Struct, frozen=True):
    """A model that is served here. ``created`` is Unix time in seconds; ``max_model_len`` in tokens, as vLLM has it.

    ``parent`` is the model that this one is an adapter of.
    """

    id: str
    created: int
    max_model_len: int | None = None
    object: Literal["model"] = "model"
    owned_by: str = "penstock"
    parent: str | None = None


class ModelList(msgspec.Struct, frozen=True):
    """All models that are served here."""

    data: list[Model]
    object: Literal["list"] = "list"
