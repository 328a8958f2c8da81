"""What goes in and out of ``/v1/chat/completions``? Its request, the full answer and the chunks of a streamed one."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from gateway.wire import errors
from gateway.wire.decode import BodyDecoder
from gateway.wire.generation import FinishReason, GenerationRequest, Refusal, Usage


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message. Only those of type ``text`` can be read by a text model."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """A message of the conversation, as it was sent."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """The body of a chat request."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    verbosity: str | None = None
    echo: bool | None = None
    chat_template: str | None = None
    documents: list[Any] | None = None

    refused: ClassVar[Mapping[str, Refusal]] = {
        **GenerationRequest.refused,
        "logprobs": Refusal((None, False), "log-probabilities are not sent"),
        "top_logprobs": Refusal((None, 0), "log-probabilities are not sent"),
        "tools": Refusal((None, []), "tools are not called; describe them in a message instead"),
        "tool_choice": Refusal((None, "none", "auto"), "tools are not called"),
        "functions": Refusal((None, []), "functions are not called; describe them in a message instead"),
        "function_call": Refusal((None, "none", "auto"), "functions are not called"),
        "modalities": Refusal((None, [], ["text"]), "answers are text"),
        "audio": Refusal((None,), "answers are text"),
        "prediction": Refusal((None,), "predicted outputs are not used"),
        "web_search_options": Refusal((None,), "the web is not searched"),
        "verbosity": Refusal((None, "medium"), "ask for a short or long answer in a message instead"),
        "echo": Refusal((None, False), "the answer alone is sent"),
        "continue_final_message": Refusal((None, False), "an answer always begins a new message"),
        "chat_template": Refusal((None,), "templates from requests are not run; the model's own is used"),
        "documents": Refusal((None, []), "put the documents into a message instead"),
    }

    def answer_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def check(self) -> None:
        super().check()
        check_messages(self.messages)

    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told besides the messages (for instance ``enable_thinking``)."""
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
        return variables


def check_messages(messages: list[ChatMessage]) -> None:
    """Refuse a conversation that a text model can't read.

    Raises:
        ApiError: 400; no messages, parts that are no text, or tool calls.
    """
    if not messages:
        raise errors.invalid_value("messages", "there must be at least one message")
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        if message.tool_calls or message.function_call is not None:
            field = "tool_calls" if message.tool_calls else "function_call"
            raise errors.unsupported_parameter(f"{path}.{field}", "tools are not called")
        if message.role in ("tool", "function"):
            raise errors.unsupported_parameter(
                f"{path}.role", f"tools are not called, so none answers as {message.role!r}"
            )
        content = message.content
        if content is None:
            if message.role != "assistant":
                raise errors.invalid_value(f"{path}.content", "only an assistant's message may have none")
        elif not isinstance(content, str):
            _check_parts(f"{path}.content", content)


def _check_parts(path: str, parts: list[ContentPart]) -> None:
    for index, part in enumerate(parts):
        if part.type != "text":
            raise errors.unsupported_content(f"{path}.{index}.type", part.type)
        if part.text is None:
            raise errors.invalid_value(f"{path}.{index}.text", "a part of type 'text' needs one")


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as a chat template reads them: dicts with a string or a list of text parts for content.

    ``developer`` becomes ``system``, of which it is OpenAI's newer name: templates know only the latter.
    """
    out: list[dict[str, Any]] = []
    for message in messages:
        content = message.content
        item: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": content
            if isinstance(content, str)
            else [{"type": part.type, "text": part.text} for part in content or ()]
            if content
            else "",
        }
        if message.name is not None:
            item["name"] = message.name
        out.append(item)
    return out


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's message."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer. ``logprobs`` is always null for now."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of an answer that isn't streamed. ``created`` is Unix time in seconds."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message: the role first, then text, at the end nothing."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """What a chunk says of one answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True):
    """A chunk of a streamed answer. ``usage`` is absent unless asked for, then null in all chunks but the last."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


decoder: BodyDecoder[ChatCompletionRequest] = BodyDecoder(ChatCompletionRequest)
