"""What goes in and out of ``/v1/embeddings``? Texts or token ids in, one vector for each out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.completions import prompts_of
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import INT64, Refusal, check_range, check_refused

MAX_INPUTS: Final = 2048


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of an embedding request. ``pooling`` is ours: how the vectors of a text's tokens become one."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["mean", "last"] | None = None

    # vLLM's extras
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None

    # refused unless neutral
    messages: list[Any] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        "messages": Refusal((None,), "conversations are not embedded; render one with /tokenize and send the ids"),
    }
    ignored: ClassVar[Mapping[str, str]] = {}

    def check(self) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400, with the first field that is out of range or unsupported.
        """
        check_refused(self, self.refused)
        check_range("dimensions", self.dimensions, 1, INT64 - 1)
        check_range("priority", self.priority, -INT64, INT64 - 1)
        if self.truncate_prompt_tokens != -1:
            check_range("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, INT64 - 1)
        if isinstance(self.input, list) and len(self.input) > MAX_INPUTS and not isinstance(self.input[0], int):
            raise errors.invalid_value("input", f"{len(self.input)} are more than the {MAX_INPUTS} allowed")

    def inputs(self, vocab_size: int) -> list[str | list[int]]:
        """The texts, or lists of token ids, to be embedded: none of them empty, unless special tokens are added.

        Raises:
            ApiError: 400; there is none, one has no tokens, kinds are mixed, or a token id is not the model's.
        """
        return prompts_of("input", self.input, vocab_size)


class Embedding(msgspec.Struct, frozen=True):
    """One vector: numbers, or little-endian float32 in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """How many tokens went in."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """The body of an answer: one vector for each input, in their order."""

    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


decoder: BodyDecoder[EmbeddingRequest] = BodyDecoder(EmbeddingRequest)
