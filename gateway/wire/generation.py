"""What may every request for generated text ask for, and what is refused? The fields that chat and completions share.

Checks come in two steps. Types are msgspec's business while the body is decoded; `GenerationRequest.check` then looks
at the values, and refuses what this server does not do: a field is honoured, known to have no effect (``user``,
``metadata``, ``store``, ``service_tier``, …, as at OpenAI), or refused. ``null`` means the default everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar

import msgspec

from engine.link import Sampling
from gateway.wire import errors

FinishReason = Literal["stop", "length"]

INT64: Final = 1 << 63
MAX_STOPS: Final = 64
MAX_STOP_LENGTH: Final = 4096
"""Bounds on ``stop``: every token of an answer is compared with all of it."""

_T = TypeVar("_T")


class Refusal(NamedTuple):
    """A field that may be sent with one of the ``neutral`` values only, and why."""

    neutral: tuple[Any, ...]
    reason: str


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``include_usage`` asks for one more chunk, which carries the usage and no choices."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """The fields that ``/v1/chat/completions`` and ``/v1/completions`` share. Durations and sizes in tokens."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int | None = None
    user: str | None = None

    # vLLM's extras, under vLLM's names
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None

    # known, and without effect on the answer
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # refused unless neutral
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    best_of: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    use_beam_search: bool | None = None
    spaces_between_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    logits_processors: list[Any] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        "n": Refusal((None, 1), "one answer a request; send the request again for another"),
        "presence_penalty": Refusal((None, 0), "penalties are not applied here"),
        "frequency_penalty": Refusal((None, 0), "penalties are not applied here"),
        "repetition_penalty": Refusal((None, 1), "penalties are not applied here"),
        "length_penalty": Refusal((None, 1), "there is no beam search"),
        "logit_bias": Refusal((None, {}), "logits are not biased here"),
        "best_of": Refusal((None, 1), "one answer is drawn and sent"),
        "prompt_logprobs": Refusal((None,), "log-probabilities are not sent"),
        "truncate_prompt_tokens": Refusal((None,), "a prompt that is too long is refused, not cut"),
        "allowed_token_ids": Refusal((None,), "sampling is not restricted to a list of tokens"),
        "bad_words": Refusal((None, []), "words are not banned from the answer"),
        "use_beam_search": Refusal((None, False), "there is no beam search"),
        "spaces_between_special_tokens": Refusal((None, True), "text is decoded as the tokenizer does"),
        "response_format": Refusal((None, {"type": "text"}), "answers are free text, of type 'text'"),
        "structured_outputs": Refusal((None,), "answers are free text"),
        "guided_json": Refusal((None,), "answers are free text"),
        "guided_regex": Refusal((None,), "answers are free text"),
        "guided_choice": Refusal((None,), "answers are free text"),
        "guided_grammar": Refusal((None,), "answers are free text"),
        "logits_processors": Refusal((None, []), "code from requests is not run"),
        "return_token_ids": Refusal((None, False), "token ids are not sent; see /tokenize"),
        "return_tokens_as_token_ids": Refusal((None, False), "token ids are not sent; see /tokenize"),
    }

    @property
    def stops(self) -> list[str]:
        """The stop strings, none of them empty once `check` has passed."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def answer_limit(self) -> tuple[str, int | None]:
        """Which field bounds the answer, for error messages, and its value."""
        return "max_tokens", self.max_tokens

    def check(self) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400, with the first field that is out of range or unsupported.
        """
        for field, refusal in self.refused.items():
            if getattr(self, field) not in refusal.neutral:
                raise errors.unsupported_parameter(field, refusal.reason)
        if self.stream_options is not None:
            if not self.stream:
                raise errors.invalid_value("stream_options", "only a request with 'stream': true has any")
            if self.stream_options.continuous_usage_stats:
                raise errors.unsupported_parameter(
                    "stream_options.continuous_usage_stats", "usage comes once, at the end"
                )
        limit_field, limit = self.answer_limit()
        _check_range(limit_field, limit, 1, INT64 - 1)
        _check_real("temperature", self.temperature, 0.0, 2.0)
        _check_real("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        _check_range("top_k", self.top_k, -1, INT64 - 1)
        _check_range("seed", self.seed, -INT64, INT64 - 1)
        _check_range("priority", self.priority, -INT64, INT64 - 1)
        _check_range("min_tokens", self.min_tokens, 0, limit if limit is not None else INT64 - 1)
        self._check_stops()

    def _check_stops(self) -> None:
        if len(self.stops) > MAX_STOPS:
            raise errors.invalid_value("stop", f"{len(self.stops)} strings are more than the {MAX_STOPS} allowed")
        for index, stop in enumerate(self.stops):
            param = "stop" if isinstance(self.stop, str) else f"stop.{index}"
            if not stop:
                raise errors.invalid_value(param, "an empty string would stop every answer before it begins")
            if len(stop) > MAX_STOP_LENGTH:
                raise errors.invalid_value(
                    param, f"it has {len(stop)} characters, more than the {MAX_STOP_LENGTH} allowed"
                )

    def sampling(
        self,
        *,
        prompt_tokens: int,
        max_model_len: int,
        vocab_size: int,
        defaults: Mapping[str, float],
        prompt_param: str,
        default_max_tokens: int | None = None,
    ) -> Sampling:
        """What the worker is told, for a prompt of ``prompt_tokens`` tokens.

        ``defaults`` are the model's own (``Hello.defaults``) for what the request leaves open. Without a limit of its
        own, the answer may be ``default_max_tokens`` long, or fill the context. Call `check` first.

        Raises:
            ApiError: 400 context_length_exceeded when prompt and answer don't fit; 400 invalid_value for a stop
                token that the model doesn't have.
        """
        field, limit = self.answer_limit()
        room = max_model_len - prompt_tokens
        if room <= 0 or (limit is not None and limit > room):
            raise errors.context_length_exceeded(
                max_model_len=max_model_len,
                prompt_tokens=prompt_tokens,
                max_tokens=limit,
                param=prompt_param if room <= 0 else field,
            )
        if limit is None:
            limit = room if default_max_tokens is None else min(default_max_tokens, room)
        stop_token_ids = tuple(self.stop_token_ids or ())
        check_token_ids("stop_token_ids", stop_token_ids, vocab_size)
        return Sampling(
            max_tokens=limit,
            temperature=_first(self.temperature, defaults.get("temperature"), 1.0),
            top_p=_first(self.top_p, defaults.get("top_p"), 1.0),
            top_k=max(0, int(_first(self.top_k, defaults.get("top_k"), 0))),
            min_p=_first(self.min_p, defaults.get("min_p"), 0.0),
            seed=self.seed,
            min_tokens=min(self.min_tokens or 0, limit),
            stop_token_ids=stop_token_ids,
            ignore_eos=bool(self.ignore_eos),
        )


def check_token_ids(param: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse token ids that the model doesn't have.

    Raises:
        ApiError: 400, with the path of the first one.
    """
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        index = next(i for i, token in enumerate(ids) if not 0 <= token < vocab_size)
        raise errors.invalid_value(
            f"{param}.{index}", f"{ids[index]} is no token of this model, which has 0 to {vocab_size - 1}"
        )


def _first(*values: _T | None) -> _T:
    """The first value that is set; the last one always is."""
    return next(value for value in values if value is not None)


def _check_range(param: str, value: int | None, low: int, high: int) -> None:
    if value is None or low <= value <= high:
        return
    if high >= INT64 - 1:
        wanted = f"at least {low}" if value < low else "a 64-bit integer"
    else:
        wanted = f"from {low} to {high}"
    raise errors.invalid_value(param, f"{value} is not {wanted}")


def _check_real(param: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    if value is None:
        return
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return
    wanted = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    raise errors.invalid_value(param, f"{value} is not a number {wanted}")


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """``cached_tokens``: how many prompt tokens were found in the prefix cache."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """How many tokens went in and came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, *, prompt: int, completion: int, cached: int) -> "Usage":
        """The usage of an answer; the total is computed."""
        return cls(prompt, completion, prompt + completion, PromptTokensDetails(cached))
