"""What goes in and out of ``/v1/chat/completions``? Its request, the full answer and the chunks of a streamed one."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import (
    MAX_LOGPROBS,
    FinishReason,
    GenerationRequest,
    Refusal,
    Usage,
    check_range,
)
from gateway.wire.tools import ToolCallMessage, ToolChoiceObject, Tools, ToolSpec, check_tools


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message. Only those of type ``text`` (and ``refusal``) can be read by a text model."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """A message of the conversation, as it was sent."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallMessage] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: Any = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """The body of a chat request."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None

    # vLLM's extras
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    include_reasoning: bool | None = None

    # refused unless neutral
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    verbosity: str | None = None
    echo: bool | None = None
    chat_template: str | None = None
    moderation: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        **GenerationRequest.refused,
        "functions": Refusal((None, []), "it is the old form of 'tools': use that"),
        "function_call": Refusal((None, "none", "auto"), "it is the old form of 'tool_choice': use that"),
        "modalities": Refusal((None, [], ["text"]), "answers are text"),
        "audio": Refusal((None,), "answers are text"),
        "prediction": Refusal((None,), "predicted outputs are not used"),
        "web_search_options": Refusal((None,), "the web is not searched"),
        "verbosity": Refusal((None, "medium"), "ask for a short or long answer in a message instead"),
        "echo": Refusal((None, False), "the answer alone is sent"),
        "chat_template": Refusal((None,), "templates from requests are not run; the model's own is used"),
        "moderation": Refusal((None,), "nothing is moderated here"),
        "prompt_cache_options": Refusal(
            (None, {}, {"mode": "implicit"}), "the prefix cache finds equal prefixes by itself, and has no options"
        ),
    }

    @property
    def top_logprobs_wanted(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    def answer_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def check(self) -> None:
        super().check()
        check_messages(self.messages)
        check_range("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise errors.invalid_value("top_logprobs", "it needs 'logprobs': true")
        tools = self.called_tools()
        if tools is not None and tools.mode != "auto" and (shape := self.shape()):
            raise errors.invalid_value(
                shape.param, "an answer that must call a tool can't have another shape: leave out one of the two"
            )
        if self.continue_final_message:
            if self.add_generation_prompt is not False:
                raise errors.invalid_value(
                    "continue_final_message", "it needs 'add_generation_prompt': false: no new message begins"
                )
            if self.messages[-1].role != "assistant":
                raise errors.invalid_value("continue_final_message", "the last message must be the assistant's")

    def called_tools(self) -> Tools | None:
        """The tools that the model may or must call; None if there are none.

        Raises:
            ApiError: 400, where they make no sense.
        """
        return check_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told besides the messages (for instance ``enable_thinking``)."""
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
        return variables


def check_messages(messages: list[ChatMessage]) -> None:
    """Refuse a conversation that a text model can't read.

    Raises:
        ApiError: 400; no messages, or parts that are no text.
    """
    if not messages:
        raise errors.invalid_value("messages", "there must be at least one message")
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        if message.function_call is not None or message.role == "function":
            field = "role" if message.role == "function" else "function_call"
            raise errors.unsupported_parameter(f"{path}.{field}", "functions are the old form of tools: use those")
        if message.tool_calls and message.role != "assistant":
            raise errors.invalid_value(f"{path}.tool_calls", "only an assistant's message may have any")
        if message.role == "tool" and message.tool_call_id is None:
            raise errors.missing_field(f"{path}.tool_call_id")
        content = message.content
        if content is None:
            if message.role != "assistant":
                raise errors.invalid_value(f"{path}.content", "only an assistant's message may have none")
        elif not isinstance(content, str):
            _check_parts(f"{path}.content", content)


def _check_parts(path: str, parts: list[ContentPart]) -> None:
    for index, part in enumerate(parts):
        if part.type not in ("text", "refusal"):
            raise errors.unsupported_content(f"{path}.{index}.type", part.type)
        if getattr(part, part.type) is None:
            raise errors.invalid_value(f"{path}.{index}.{part.type}", f"a part of type '{part.type}' needs one")


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as a chat template reads them: dicts with a string or a list of text parts for content.

    ``developer`` becomes ``system``, of which it is OpenAI's newer name: templates know only the latter.
    """
    return [_template_message(message) for message in messages]


def _template_message(message: ChatMessage) -> dict[str, Any]:
    content = message.content
    item: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content
        if isinstance(content, str)
        else [{"type": "text", "text": part.refusal if part.text is None else part.text} for part in content or ()]
        if content
        else "",
    }
    for field in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, field)
        if value is not None:
            item[field] = value
    if message.tool_calls:
        item["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    return item


class CalledFunction(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model calls, or what a chunk adds to that; ``arguments`` is JSON as text."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET


class AnswerToolCall(msgspec.Struct, frozen=True):
    """A call in an answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the ``index``-th call of an answer: id, type and name come with the first one."""

    index: int
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET
    function: CalledFunction | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """A token, its log-probability in nats, and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, and the likeliest ones in its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """The log-probabilities of an answer's tokens, or of those that a chunk adds."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's message."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer. ``stop_reason`` (the stop string that was found) and ``token_ids`` are vLLM's."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class PromptLogprob(msgspec.Struct, frozen=True):
    """What the model thought of a token at a place of the prompt, as vLLM says it; ``rank`` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""For each token of a prompt the token itself and the likeliest ones in its place; null for the first."""


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of an answer that isn't streamed. ``created`` is Unix time in seconds."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message: the role first, then text or tool calls, at the end nothing."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """What a chunk says of one answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True):
    """A chunk of a streamed answer. ``usage`` is absent unless asked for, then null in all chunks but the last."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


decoder: BodyDecoder[ChatCompletionRequest] = BodyDecoder(ChatCompletionRequest)
