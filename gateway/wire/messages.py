"""What goes into ``/v1/messages`` and ``/v1/messages/count_tokens``? Anthropic's request, and what of it is refused.

As in `gateway.wire.generation`, a field is honoured, known to have no effect, or refused; and as at Anthropic, a field
at the top of the body that nobody knows is an error. Paths in errors are those of this request, ``system.0.text`` say.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import Refusal, check_refused
from gateway.wire.messages_history import ContentBlock, MessageParam, check_conversation, check_text

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NEVER: Final = (None,)  # the neutral values of a field that must not be sent


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model may call; ``input_schema`` is the JSON schema of what it takes."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    # known, and without effect on the answer
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None

    # refused unless neutral
    type: str | None = None
    input_examples: list[dict[str, Any]] | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None

    ignored: ClassVar[Mapping[str, str]] = {
        "cache_control": "every prompt's prefix is cached, without being asked",
        "eager_input_streaming": "a streamed input always comes as the model writes it",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "type": Refusal((None, "custom"), "only custom tools, with an input_schema of their own, are offered here"),
        "input_examples": Refusal((None, []), "put the examples into the description"),
        "defer_loading": Refusal((None, False), "there is no search for tools: each is shown to the model"),
        "allowed_callers": Refusal((None, [], ["direct"]), "no tool is called from code that runs here"),
    }

    def check(self, path: str) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400, with the path of the first field at fault.
        """
        check_refused(self, self.refused, path)
        if not _NAME.fullmatch(self.name):
            raise errors.invalid_value(f"{path}.name", "a name has 1 to 64 letters, digits, underscores and dashes")
        if self.input_schema is None:
            raise errors.missing_field(f"{path}.input_schema")
        if self.input_schema.get("type") != "object":
            raise errors.invalid_value(f"{path}.input_schema.type", "the input of a tool is an 'object'")


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """``auto`` leaves it to the model, ``any`` wants a call, ``tool`` one of the tool ``name``, ``none`` none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model thinks before it answers, and whether that is shown (``summarized``) or ``omitted``.

    The chat template is told ``enable_thinking``, and ``thinking_budget`` where there is a budget; models that know
    neither think as they always do. ``adaptive`` enables thinking: how long is the model's choice.
    """

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None

    def check(self, max_tokens: int | None) -> None:
        """Look at the budget.

        Raises:
            ApiError: 400; it is nothing, or doesn't leave the answer any of its ``max_tokens``.
        """
        budget = self.budget_tokens
        if budget is not None and budget < 1:
            raise errors.invalid_value("thinking.budget_tokens", f"{budget} is not at least 1")
        if budget is not None and max_tokens is not None and budget >= max_tokens:
            raise errors.invalid_value(
                "thinking.budget_tokens", f"{budget} is not less than max_tokens, which is {max_tokens}"
            )


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON schema that the answer's text follows."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer is to be made; ``effort`` is what the chat template is told as ``reasoning_effort``."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None

    # refused unless neutral
    task_budget: dict[str, Any] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        "task_budget": Refusal(_NEVER, "no budget runs through several requests; bound each by max_tokens"),
    }


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """``user_id`` is the tenant that the scheduler is fair to."""

    user_id: str | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request to count tokens: the part of a request for a message that makes the prompt."""

    model: str
    messages: list[MessageParam]
    system: str | list[ContentBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    # known, and without effect on the answer
    cache_control: dict[str, Any] | None = None

    # refused unless neutral
    mcp_servers: list[Any] | None = None
    context_management: dict[str, Any] | None = None
    compaction: dict[str, Any] | None = None
    thread: dict[str, Any] | None = None
    speed: str | None = None

    ignored: ClassVar[Mapping[str, str]] = {
        "cache_control": "every prompt's prefix is cached, without being asked",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "mcp_servers": Refusal((None, []), "no server is called from here; offer its tools in 'tools'"),
        "context_management": Refusal((None, {}), "a conversation is read as it was sent, whole"),
        "compaction": Refusal(_NEVER, "a conversation is read as it was sent, whole"),
        "thread": Refusal(_NEVER, "conversations are not kept here; send the whole of it"),
        "speed": Refusal((None, "standard"), "there is one speed"),
    }

    def check(self) -> None:
        """Look at the values, after the types.

        Raises:
            ApiError: 400, with the first field that makes no sense or is unsupported.
        """
        check_refused(self, self.refused)
        check_conversation(self.messages)
        if isinstance(self.system, list):
            for index, block in enumerate(self.system):
                check_text(f"system.{index}", block)
        self._check_tools()
        if self.thinking is not None:
            self.thinking.check(getattr(self, "max_tokens", None))
        if self.output_config is not None:
            check_refused(self.output_config, self.output_config.refused, "output_config")
            if self.output_config.format is not None and self.output_format is not None:
                raise errors.invalid_value("output_format", "it is given in 'output_config.format' too")

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must follow, by its newer or its older name."""
        config = self.output_config
        wanted = config.format if config is not None and config.format is not None else self.output_format
        return None if wanted is None else wanted.schema

    def _check_tools(self) -> None:
        names: set[str] = set()
        for index, tool in enumerate(self.tools or ()):
            tool.check(f"tools.{index}")
            if tool.name in names:
                raise errors.invalid_value(f"tools.{index}.name", f"there is another tool named {tool.name!r}")
            names.add(tool.name)
        choice = self.tool_choice
        if choice is None or choice.type == "none":
            return
        if not names:
            raise errors.invalid_value("tool_choice", "there are no tools to choose from")
        if choice.type == "tool":
            if choice.name is None:
                raise errors.missing_field("tool_choice.name")
            if choice.name not in names:
                raise errors.invalid_value("tool_choice.name", f"there is no tool named {choice.name!r}")


class MessagesRequest(CountTokensRequest, kw_only=True):
    """The body of a request for a message."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None

    # known, and without effect on the answer
    service_tier: Literal["auto", "standard_only"] | None = None

    # refused unless neutral
    container: Any = None
    diagnostics: dict[str, Any] | None = None
    inference_geo: str | None = None
    fallbacks: list[Any] | None = None
    fallback_credit_token: str | None = None
    billing_policy: dict[str, Any] | None = None

    ignored: ClassVar[Mapping[str, str]] = {
        **CountTokensRequest.ignored,
        "service_tier": "there is one tier, 'standard'",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        **CountTokensRequest.refused,
        "container": Refusal(_NEVER, "no code is run here"),
        "diagnostics": Refusal(_NEVER, "prompts are not compared with earlier ones"),
        "inference_geo": Refusal((None, "global"), "a request is answered where this server runs"),
        "fallbacks": Refusal((None, []), "the model that is named answers, or none"),
        "fallback_credit_token": Refusal(_NEVER, "nothing is billed here"),
        "billing_policy": Refusal(_NEVER, "nothing is billed here"),
    }

    def check(self) -> None:
        if self.max_tokens == 0:
            raise errors.unsupported_parameter(
                "max_tokens", "0 asks to fill the prompt cache without an answer; ask for 1 token, which fills it too"
            )
        super().check()
        if self.temperature is not None and not 0 <= self.temperature <= 1:
            raise errors.invalid_value("temperature", f"{self.temperature} is not a number from 0 to 1")


decoder: BodyDecoder[MessagesRequest] = BodyDecoder(MessagesRequest)
count_decoder: BodyDecoder[CountTokensRequest] = BodyDecoder(CountTokensRequest)
