"""What goes in and out of ``/v1/completions``? Its request (text or token ids, one prompt or several) and answers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import FinishReason, GenerationRequest, Refusal, Usage, check_token_ids

DEFAULT_MAX_TOKENS: Final = 16


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body of a completion request. Without ``max_tokens`` an answer has `DEFAULT_MAX_TOKENS`, as at OpenAI."""

    prompt: str | list[str | int | list[int]]
    add_special_tokens: bool | None = None

    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    prompt_embeds: Any = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        **GenerationRequest.refused,
        "logprobs": Refusal((None,), "log-probabilities are not sent"),
        "echo": Refusal((None, False), "the answer alone is sent"),
        "suffix": Refusal((None, ""), "text is continued, not filled in"),
        "prompt_embeds": Refusal((None,), "prompts are text or token ids"),
    }

    def prompts(self, vocab_size: int) -> list[str | list[int]]:
        """The prompts: a text or a list of token ids each. They are answered as choices 0, 1, ….

        Raises:
            ApiError: 400; there is none, one has no tokens, kinds are mixed, or a token id is not the model's.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise errors.invalid_value("prompt", "there must be at least one prompt")
        kinds = {type(item) for item in prompt}
        if len(kinds) > 1:
            raise errors.invalid_value("prompt", "texts and token ids must not be mixed")
        if int in kinds:
            ids = [item for item in prompt if isinstance(item, int)]
            check_token_ids("prompt", ids, vocab_size)
            return [ids]
        out: list[str | list[int]] = []
        for index, item in enumerate(prompt):
            if isinstance(item, list):
                if not item:
                    raise errors.invalid_value(f"prompt.{index}", "it has no tokens")
                check_token_ids(f"prompt.{index}", item, vocab_size)
                out.append(item)
            elif isinstance(item, str):
                out.append(item)
        return out


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or what a chunk adds to it: then ``finish_reason`` is null until the last."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True):
    """The body of an answer, and each chunk of a streamed one. ``created`` is Unix time in seconds.

    In a stream ``usage`` is absent unless asked for, then null in all chunks but the last.
    """

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


decoder: BodyDecoder[CompletionRequest] = BodyDecoder(CompletionRequest)
