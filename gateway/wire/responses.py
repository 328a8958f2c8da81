"""What goes into ``/v1/responses``? OpenAI's request, and what of it is refused.

As in `gateway.wire.generation`, a field is honoured, known to have no effect (``ignored``), or refused (``refused``,
where a dot leads into an object); ``null`` means the default everywhere. What a chat request has too is checked there.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import INT64, MAX_LOGPROBS, Refusal, StructuredOutputs, check_range, check_refused

LOGPROBS: Final = "message.output_text.logprobs"
INCLUDES: Final[Mapping[str, str]] = {
    LOGPROBS: "the log-probabilities of the answer's tokens, and of ``top_logprobs`` others",
    "reasoning.encrypted_content": "accepted: reasoning is sent as plain text, which can be sent back as well",
}
"""What ``include`` may name."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is sent."""

    include_obfuscation: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like: free text, any JSON object, or JSON that matches ``schema``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    description: str | None = None
    strict: bool | None = None

    def check(self) -> None:
        """Look at what a schema needs.

        Raises:
            ApiError: 400, its name or itself is missing.
        """
        if self.type == "json_schema":
            for field in ("name", "schema"):
                if getattr(self, field) is None:
                    raise errors.missing_field(f"text.format.{field}")


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer's text is to be."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the model is to think. Its chat template is told ``effort`` as ``reasoning_effort``, and may not know it.

    ``summary`` may be ``auto``, the best summary that the model has: here there is none, and reasoning is sent whole.
    """

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, rename={"async_": "async"}):
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments, an object.

    ``strict`` is what it is in a chat request: false unless given.
    """

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    # known, and without effect on the answer
    output_schema: dict[str, Any] | None = None

    # refused unless neutral
    async_: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        "async_": Refusal((None, False), "the model waits for what a function returns"),
        "defer_loading": Refusal((None, False), "there is no search for tools: each is shown to the model"),
        "allowed_callers": Refusal((None, [], ["direct"]), "no function is called from code that runs here"),
    }
    ignored: ClassVar[Mapping[str, str]] = {"output_schema": "accepted; what a function returns is read as text"}

    def check(self, path: str) -> None:
        """Look at what it is.

        Raises:
            ApiError: 400; it isn't a function, or has no name.
        """
        if self.type != "function":
            raise errors.unsupported_parameter(
                f"{path}.type", f"tools of type {self.type!r} are not run here, only functions that the client runs"
            )
        if self.name is None:
            raise errors.missing_field(f"{path}.name")
        check_refused(self, self.refused, path)


class ChosenTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function by its name."""

    type: str
    name: str | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The function that must be called, or, of type ``allowed_tools``, those that may (``auto``) or must be."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ChosenTool] | None = None

    def check(self) -> None:
        """Look at what is chosen.

        Raises:
            ApiError: 400; what is chosen is no function, or has no name.
        """
        if self.type == "function":
            _check_chosen("tool_choice", self)
        elif self.type == "allowed_tools":
            for field in ("mode", "tools"):
                if getattr(self, field) is None:
                    raise errors.missing_field(f"tool_choice.{field}")
            for index, tool in enumerate(self.tools or ()):
                _check_chosen(f"tool_choice.tools.{index}", tool)
        else:
            raise _no_function("tool_choice", self.type)


def _check_chosen(path: str, tool: ChosenTool | ToolChoice) -> None:
    if tool.type != "function":
        raise _no_function(path, tool.type)
    if tool.name is None:
        raise errors.missing_field(f"{path}.name")


def _no_function(path: str, type: str) -> errors.ApiError:
    return errors.unsupported_parameter(f"{path}.type", f"tools of type {type!r} are not run here; name a function")


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/responses``. Items of ``input`` are read by `gateway.wire.responses_items`."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None

    # vLLM's extras, under vLLM's names, and what chat requests have and OpenAI leaves out here
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    cache_salt: str | None = None

    # known, and without effect on the answer
    max_tool_calls: int | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # refused unless neutral
    background: bool | None = None
    background_options: dict[str, Any] | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    truncation: str | None = None
    context_management: list[Any] | None = None
    moderation: dict[str, Any] | None = None
    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        "background": Refusal((None, False), "an answer is made while its client waits; 'stream': true shows it grow"),
        "background_options": Refusal((None, {}), "nothing is made in the background"),
        "conversation": Refusal(
            (None,), "conversations are not kept under a name; go on from a response with 'previous_response_id'"
        ),
        "prompt": Refusal((None,), "no prompts are kept here; send its text as 'instructions' or 'input'"),
        "truncation": Refusal((None, "disabled"), "an input that is too long is refused, not cut"),
        "context_management": Refusal((None, []), "an input is not compacted; send a shorter one"),
        "moderation": Refusal((None,), "nothing is moderated here"),
        "access_programs": Refusal((None, {}), "there are none"),
        "image": Refusal((None, {}), "this model reads text only"),
        "prompt_cache_options": Refusal(
            (None, {}, {"mode": "implicit"}), "the prefix cache finds equal prefixes by itself, and has no options"
        ),
        "text.verbosity": Refusal((None, "medium"), "ask for a short or long answer in a message instead"),
        "reasoning.summary": Refusal((None, "auto"), "reasoning is sent whole, not summarised"),
        "reasoning.generate_summary": Refusal((None, "auto"), "reasoning is sent whole, not summarised"),
        "reasoning.context": Refusal((None, "auto"), "the chat template decides which earlier reasoning is read again"),
        "reasoning.mode": Refusal((None, "standard"), "there is one mode"),
        "stream_options.include_obfuscation": Refusal((None, False), "events are not padded"),
    }
    ignored: ClassVar[Mapping[str, str]] = {
        "max_tool_calls": "accepted; it counts calls of hosted tools, and there are none",
        "service_tier": "accepted; there is one tier, and the answer says `default`",
        "safety_identifier": "accepted, and sent back",
        "prompt_cache_key": "accepted, and sent back; the prefix cache finds equal prefixes by itself",
        "prompt_cache_retention": "accepted; the least recently used prefixes go first",
    }

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def check(self) -> None:
        """Look at the values that a chat request doesn't have, after the types.

        Raises:
            ApiError: 400, with the first field that is out of range or unsupported.
        """
        check_refused(self, self.refused)
        if self.stream_options is not None and not self.stream:
            raise errors.invalid_value("stream_options", "only a request with 'stream': true has any")
        check_range("max_output_tokens", self.max_output_tokens, 1, INT64 - 1)
        check_range("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        for index, name in enumerate(self.include or ()):
            if name not in INCLUDES:
                known = " and ".join(f"'{known}'" for known in INCLUDES)
                raise errors.unsupported_parameter(f"include.{index}", f"{name!r} is not sent; there are {known}")
        if self.top_logprobs and not self.wants_logprobs:
            raise errors.invalid_value("top_logprobs", f"it needs 'include': ['{LOGPROBS}']")
        if self.text is not None and self.text.format is not None:
            self.text.format.check()
        for index, tool in enumerate(self.tools or ()):
            tool.check(f"tools.{index}")
        if isinstance(self.tool_choice, ToolChoice):
            self.tool_choice.check()


decoder: BodyDecoder[ResponsesRequest] = BodyDecoder(ResponsesRequest)
