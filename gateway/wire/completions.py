"""What goes in and out of ``/v1/completions``? Its request (text or token ids, one prompt or several) and answers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.chat import PromptLogprobs
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import (
    INT64,
    MAX_LOGPROBS,
    FinishReason,
    GenerationRequest,
    Refusal,
    Usage,
    check_range,
    check_token_ids,
)

DEFAULT_MAX_TOKENS: Final = 16
MAX_ANSWERS: Final = 2048


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body of a completion request. Without ``max_tokens`` an answer has `DEFAULT_MAX_TOKENS`, as at OpenAI."""

    prompt: str | list[str | int | list[int]]
    add_special_tokens: bool | None = None

    logprobs: int | None = None
    echo: bool | None = None
    answered: int | None = None
    """So many of the prompt's last token ids are the beginning of the answer, which goes on: limits, seeds, penalties,
    stop strings and usage count from where it began, and only what is new comes back. Penstock's own."""
    suffix: str | None = None
    prompt_embeds: Any = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        **GenerationRequest.refused,
        "suffix": Refusal((None, ""), "text is continued, not filled in"),
        "prompt_embeds": Refusal((None,), "prompts are text or token ids"),
    }

    @property
    def top_logprobs_wanted(self) -> int | None:
        return self.logprobs

    @property
    def prompt_logprobs_wanted(self) -> int | None:
        return self.logprobs if self.echo and self.logprobs is not None else self.prompt_logprobs

    def check(self) -> None:
        super().check()
        check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.answered is not None:
            self._check_answered(self.answered)

    def _check_answered(self, answered: int) -> None:
        check_range("answered", answered, 0, INT64 - 1)
        prompt = self.prompt
        if isinstance(prompt, str) or not all(isinstance(item, int) for item in prompt):
            raise errors.invalid_value("answered", "an answer goes on after one prompt of token ids")
        if self.echo or (self.n or 1) > 1 or self.truncate_prompt_tokens is not None:
            raise errors.invalid_value(
                "answered", "an answer that goes on has no 'echo', no 'truncate_prompt_tokens', and 'n' is 1"
            )
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        if answered and not answered < min(len(prompt), limit):
            raise errors.invalid_value(
                "answered", f"{answered} tokens leave no prompt, or nothing of the answer's {limit} to go on with"
            )

    def _least_tokens(self) -> int:
        """With ``echo`` an answer may be empty: that is how the prompt alone is scored."""
        return 0 if self.echo else 1

    def prompts(self, vocab_size: int) -> list[str | list[int]]:
        """The prompts: a text or a list of token ids each. They are answered as choices 0, 1, ….

        Raises:
            ApiError: 400; there is none, one has no tokens, kinds are mixed, or a token id is not the model's.
        """
        return prompts_of("prompt", self.prompt, vocab_size)


def prompts_of(param: str, prompt: str | list[str | int | list[int]], vocab_size: int) -> list[str | list[int]]:
    """What is sent as one text, several, one list of token ids or several, as a list.

    Raises:
        ApiError: 400; there is none, one has no tokens, kinds are mixed, or a token id is not the model's.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise errors.invalid_value(param, f"there must be at least one {param}")
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise errors.invalid_value(param, "texts and token ids must not be mixed")
    if int in kinds:
        ids = [item for item in prompt if isinstance(item, int)]
        check_token_ids(param, ids, vocab_size)
        return [ids]
    out: list[str | list[int]] = []
    for index, item in enumerate(prompt):
        if isinstance(item, list):
            if not item:
                raise errors.invalid_value(f"{param}.{index}", "it has no tokens")
            check_token_ids(f"{param}.{index}", item, vocab_size)
            out.append(item)
        elif isinstance(item, str):
            out.append(item)
    return out


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a text with their log-probabilities in nats, in the old form of four lists.

    ``text_offset`` is where a token's text begins, in characters. What has no prediction (a prompt's first token) is
    null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or what a chunk adds to it: then ``finish_reason`` is null until the last."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


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
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


decoder: BodyDecoder[CompletionRequest] = BodyDecoder(CompletionRequest)
