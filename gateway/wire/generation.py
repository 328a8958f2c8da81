"""What may every request for generated text ask for, and what is refused? The fields that chat and completions share.

Checks come in two steps. Types are msgspec's business while the body is decoded; `GenerationRequest.check` then looks
at the values, and refuses what this server does not do: a field is honoured, known to have no effect (``ignored``, as
at OpenAI), or refused (``refused``). ``null`` means the default everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar

import msgspec

from engine.link import Sampling
from gateway.wire import errors

FinishReason = Literal["stop", "length", "tool_calls"]

INT64: Final = 1 << 63
MAX_CHOICES: Final = 128
MAX_LOGPROBS: Final = 20
MAX_STOPS: Final = 64
MAX_STOP_LENGTH: Final = 4096
"""Bounds on ``stop``: every token of an answer is compared with all of it."""
MAX_BAD_WORDS: Final = 256
MAX_LOGIT_BIAS: Final = 4096

_T = TypeVar("_T")


class Refusal(NamedTuple):
    """A field that may be sent with one of the ``neutral`` values only, and why."""

    neutral: tuple[Any, ...]
    reason: str


def check_refused(struct: msgspec.Struct, refused: Mapping[str, Refusal], path: str = "") -> None:
    """Refuse the fields of ``struct``, which is at ``path``, that don't have one of their neutral values.

    A dot in a field's name leads into an object; an underscore at its end is not part of the name on the wire.

    Raises:
        ApiError: 400, with the path of the first one.
    """
    for field, refusal in refused.items():
        value: Any = struct
        for name in field.split("."):
            value = getattr(value, name, None)  # of an object that wasn't sent, nothing was
        if value not in refusal.neutral:
            name = field.rstrip("_")
            raise errors.unsupported_parameter(f"{path}.{name}" if path else name, refusal.reason)


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``include_usage`` asks for one more chunk, which carries the usage and no choices.

    With ``continuous_usage_stats``, vLLM's, every chunk carries the usage so far.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON schema by name, as in OpenAI's ``response_format``. It is enforced whether ``strict`` or not."""

    name: str
    schema: dict[str, Any] | bool | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like: free text, any JSON object, or JSON that matches a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's way of saying it: one of these at most. ``grammar`` is Lark or GBNF."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Shape(NamedTuple):
    """What an answer must look like, wherever it was said: ``param`` is the field, for errors."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    value: Any
    param: str


class GenerationRequest(msgspec.Struct, kw_only=True):
    """The fields that ``/v1/chat/completions`` and ``/v1/completions`` share. Durations and sizes in tokens."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None

    # vLLM's extras, under vLLM's names
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None

    # known, and without effect on the answer
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # refused unless neutral
    best_of: int | None = None
    length_penalty: float | None = None
    use_beam_search: bool | None = None
    spaces_between_special_tokens: bool | None = None
    logits_processors: list[Any] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        "best_of": Refusal((None, 1), "every answer that is drawn is sent; ask for several with 'n'"),
        "length_penalty": Refusal((None, 1), "there is no beam search"),
        "use_beam_search": Refusal((None, False), "there is no beam search"),
        "spaces_between_special_tokens": Refusal((None, True), "text is decoded as the tokenizer does"),
        "logits_processors": Refusal((None, []), "code from requests is not run"),
    }
    ignored: ClassVar[Mapping[str, str]] = {
        "metadata": "accepted; answers are not stored",
        "store": "accepted; answers are not stored",
        "service_tier": "accepted; there is one tier, and the answer says `default`",
        "safety_identifier": "accepted",
        "prompt_cache_key": "accepted; the prefix cache finds equal prefixes by itself",
        "prompt_cache_retention": "accepted; the least recently used prefixes go first",
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

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many alternatives are wanted beside each token of the answer; None: not even its own log-probability."""
        return None

    @property
    def prompt_logprobs_wanted(self) -> int | None:
        """The same for the prompt's tokens."""
        return self.prompt_logprobs

    def answer_limit(self) -> tuple[str, int | None]:
        """Which field bounds the answer, for error messages, and its value."""
        return "max_tokens", self.max_tokens

    def shape(self) -> Shape | None:
        """What the answer must look like, if that was said; once `check` has passed, it was said only once."""
        return next(iter(self._shapes()), None)

    def _shapes(self) -> list[Shape]:
        found: list[Shape] = []
        given = self.response_format
        if given is not None and given.type == "json_object":
            found.append(Shape("json_object", True, "response_format"))
        elif given is not None and given.type == "json_schema" and given.json_schema is not None:
            schema = given.json_schema.schema
            found.append(Shape("json_schema", {} if schema is None else schema, "response_format.json_schema.schema"))
        wanted = self.structured_outputs or StructuredOutputs()
        if wanted.json_object:
            found.append(Shape("json_object", True, "structured_outputs.json_object"))
        kinds: dict[Literal["json_schema", "regex", "choice", "grammar"], str] = {
            "json_schema": "json",
            "regex": "regex",
            "choice": "choice",
            "grammar": "grammar",
        }
        for kind, name in kinds.items():
            for value, param in (
                (getattr(wanted, name), f"structured_outputs.{name}"),
                (getattr(self, f"guided_{name}"), f"guided_{name}"),
            ):
                if value is not None:
                    found.append(Shape(kind, value, param))
        return found

    def check(self) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400, with the first field that is out of range or unsupported.
        """
        check_refused(self, self.refused)
        if self.stream_options is not None and not self.stream:
            raise errors.invalid_value("stream_options", "only a request with 'stream': true has any")
        limit_field, limit = self.answer_limit()
        check_range(limit_field, limit, self._least_tokens(), INT64 - 1)
        check_range("n", self.n, 1, MAX_CHOICES)
        check_real("temperature", self.temperature, 0.0, 2.0)
        check_real("top_p", self.top_p, 0.0, 1.0, above=True)
        check_real("min_p", self.min_p, 0.0, 1.0)
        check_range("top_k", self.top_k, -1, INT64 - 1)
        check_range("seed", self.seed, -INT64, INT64 - 1)
        check_range("priority", self.priority, -INT64, INT64 - 1)
        check_range("min_tokens", self.min_tokens, 0, limit if limit is not None else INT64 - 1)
        self._check_penalties()
        self._check_shapes()
        self._check_stops()
        check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None and self.stream:
            raise errors.invalid_value("prompt_logprobs", "they come with whole answers only, not with 'stream': true")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            check_range("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, INT64 - 1)

    def _least_tokens(self) -> int:
        """The least that ``max_tokens`` may be."""
        return 1

    def _check_penalties(self) -> None:
        check_real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_real("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        for token, bias in (self.logit_bias or {}).items():
            check_real(f"logit_bias.{token}", bias, -100.0, 100.0)
        for field, most in (("logit_bias", MAX_LOGIT_BIAS), ("bad_words", MAX_BAD_WORDS)):
            count = len(getattr(self, field) or ())
            if count > most:
                raise errors.invalid_value(field, f"{count} are more than the {most} allowed")
        for index, word in enumerate(self.bad_words or ()):
            if not word.strip() or len(word) > MAX_STOP_LENGTH:
                raise errors.invalid_value(f"bad_words.{index}", f"a word has 1 to {MAX_STOP_LENGTH} characters")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise errors.invalid_value("allowed_token_ids", "with none allowed there is no answer")

    def _check_shapes(self) -> None:
        given = self.response_format
        if given is not None and given.type == "json_schema" and given.json_schema is None:
            raise errors.missing_field("response_format.json_schema")
        shapes = self._shapes()
        if len(shapes) > 1:
            said = " and ".join(f"'{shape.param}'" for shape in shapes)
            raise errors.invalid_value(shapes[1].param, f"the answer's shape can be said once, but there are {said}")
        if shapes and shapes[0].kind == "choice" and not (shapes[0].value and all(shapes[0].value)):
            raise errors.invalid_value(shapes[0].param, "there must be at least one choice, and none that is empty")

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
        bad_words: Sequence[Sequence[int]] = (),
        grammar: str = "",
    ) -> Sampling:
        """What the worker is told, for a prompt of ``prompt_tokens`` tokens.

        ``defaults`` are the model's own (``Hello.defaults``) for what the request leaves open. Without a limit of its
        own, the answer may be ``default_max_tokens`` long, or fill the context. ``bad_words`` are the request's as
        token ids, ``grammar`` is what its shape comes to. Call `check` first.

        Raises:
            ApiError: 400 context_length_exceeded when prompt and answer don't fit; 400 invalid_value for a token id
                that the model doesn't have.
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
        limit = max(limit, 1)
        stop_token_ids = tuple(self.stop_token_ids or ())
        allowed_token_ids = tuple(self.allowed_token_ids or ())
        logit_bias = self.logit_bias or {}
        check_token_ids("stop_token_ids", stop_token_ids, vocab_size)
        check_token_ids("allowed_token_ids", allowed_token_ids, vocab_size)
        for token in logit_bias:
            check_token_ids("logit_bias", (token,), vocab_size)
        scores = self.prompt_logprobs_wanted
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
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=_first(self.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
            logit_bias=logit_bias,
            allowed_token_ids=allowed_token_ids,
            bad_words=tuple(map(tuple, bad_words)),
            grammar=grammar,
            top_logprobs=self.top_logprobs_wanted or 0,
            prompt_logprobs=-1 if scores is None else scores,
        )


def check_token_ids(param: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse token ids that the model doesn't have.

    Raises:
        ApiError: 400, with the path of the first one.
    """
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        index = next(i for i, token in enumerate(ids) if not 0 <= token < vocab_size)
        path = f"{param}.{ids[index]}" if param == "logit_bias" else f"{param}.{index}"
        raise errors.invalid_value(path, f"{ids[index]} is no token of this model, which has 0 to {vocab_size - 1}")


def _first(*values: _T | None) -> _T:
    """The first value that is set; the last one always is."""
    return next(value for value in values if value is not None)


def check_range(param: str, value: int | None, low: int, high: int) -> None:
    """Refuse a whole number outside of ``low`` to ``high``; None means that none was sent.

    Raises:
        ApiError: 400.
    """
    if value is None or low <= value <= high:
        return
    if high >= INT64 - 1:
        wanted = f"at least {low}" if value < low else "a 64-bit integer"
    else:
        wanted = f"from {low} to {high}"
    raise errors.invalid_value(param, f"{value} is not {wanted}")


def check_real(param: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    """Refuse a number outside of ``low`` to ``high`` (``above``: ``low`` itself too); None means that none was sent.

    Raises:
        ApiError: 400.
    """
    if value is None:
        return
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return
    wanted = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    raise errors.invalid_value(param, f"{value} is not a number {wanted}")


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """``cached_tokens``: how many prompt tokens were found in the prefix cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """``reasoning_tokens``: how many tokens of the answer went into thinking, markers included."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many tokens went in and came out. The details of the completion are there where a model may think."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, *, prompt: int, completion: int, cached: int, reasoning: int | None = None) -> "Usage":
        """The usage of an answer; the total is computed."""
        details = None if reasoning is None else CompletionTokensDetails(reasoning)
        return cls(prompt, completion, prompt + completion, PromptTokensDetails(cached), details)
