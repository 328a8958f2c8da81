"""How does a request to ``/v1/responses`` become a chat request, and a fault found in that one a fault of ours?"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from gateway.api.response_store import ResponseStore
from gateway.wire import errors
from gateway.wire.chat import ChatCompletionRequest, ChatMessage, ContentPart
from gateway.wire.generation import JsonSchema, ResponseFormat
from gateway.wire.responses import ChosenTool, ResponsesRequest, TextFormat, Tool, ToolChoice
from gateway.wire.responses_items import (
    FunctionCall,
    FunctionCallOutput,
    InputText,
    Item,
    ItemReference,
    Message,
    OutputText,
    Reasoning,
    Refusal,
    read_input,
)
from gateway.wire.tools import (
    AllowedTools,
    FunctionSpec,
    NamedFunction,
    NamedTool,
    ToolCallMessage,
    ToolChoiceObject,
    ToolSpec,
)
from gateway.wire.tools import FunctionCall as CalledFunction

_SAME: Final = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "ignore_eos",
    "min_tokens",
    "top_k",
    "min_p",
    "allowed_token_ids",
    "bad_words",
    "structured_outputs",
    "chat_template_kwargs",
    "priority",
    "cache_salt",
)
"""Fields that mean the same in a chat request."""


class Conversation(NamedTuple):
    """A request's conversation. ``paths`` says where each message was sent, ``input`` are the items of this request."""

    messages: list[ChatMessage]
    paths: list[str]
    input: list[Item]


def read_conversation(request: ResponsesRequest, store: ResponseStore, key: str = "") -> Conversation:
    """The instructions, then what came before, then the request's own input; ``key`` is the id of the client's key.

    Raises:
        ApiError: 400 or 404; an item makes no sense, or what it refers to is not kept.
    """
    own = [(path, _resolve(path, item, store, key)) for path, item in read_input(request.input)]
    earlier: list[Item] = []
    if request.previous_response_id is not None:
        earlier = store.conversation(request.previous_response_id, key)
    messages = _Messages()
    if request.instructions is not None:
        messages.add("instructions", ChatMessage(role="system", content=request.instructions))
    for item in earlier:
        messages.read("previous_response_id", item)
    for path, item in own:
        messages.read(path, item)
    return Conversation(messages.found, messages.paths, [item for _, item in own])


def chat_request(request: ResponsesRequest, messages: list[ChatMessage]) -> ChatCompletionRequest:
    """The chat request that asks for the same; ``request`` has been checked."""
    asked = request.text.format if request.text is not None else None
    choice = request.tool_choice
    return ChatCompletionRequest(
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        logprobs=request.wants_logprobs,
        top_logprobs=request.top_logprobs,
        response_format=None if asked is None else _response_format(asked),
        tools=None if request.tools is None else [_tool(tool) for tool in request.tools],
        tool_choice=_tool_choice(choice) if isinstance(choice, ToolChoice) else choice,
        reasoning_effort=request.reasoning.effort if request.reasoning is not None else None,
        **{name: getattr(request, name) for name in _SAME},
    )


def own_fault(error: errors.ApiError, paths: Sequence[str]) -> errors.ApiError:
    """An error about a chat request in terms of the request that it was made of."""
    if error.param is None:
        return error
    param = _own_param(error.param, paths)
    message = error.message.replace(f"'{error.param}'", f"'{param}'")
    message = re.sub(r"'response_format(\.json_schema)?", "'text.format", message)
    message = message.replace("lower max_tokens", "lower max_output_tokens")
    return errors.ApiError(
        error.status, message, type=error.detail.type, code=error.code or "", param=param, headers=error.headers
    )


_RENAMED: Final = (
    (r"^messages$", "input"),
    (r"^max_(completion_)?tokens$", "max_output_tokens"),
    (r"^reasoning_effort$", "reasoning.effort"),
    (r"^response_format(\.json_schema)?", "text.format"),
    (r"^tool_choice\.allowed_tools\.", "tool_choice."),
    (r"^(tools\.\d+|tool_choice(?:\.tools\.\d+)?)\.function\b", r"\1"),
)


def _own_param(param: str, paths: Sequence[str]) -> str:
    if message := re.fullmatch(r"messages\.(\d+)(?:\..*)?", param):
        return paths[int(message[1])]
    for pattern, ours in _RENAMED:
        param = re.sub(pattern, ours, param)
    return param


def _resolve(path: str, item: Item | ItemReference, store: ResponseStore, key: str) -> Item:
    if not isinstance(item, ItemReference):
        return item
    found = store.item(item.id, key)
    if found is None:
        hint = "Items are kept with their response, while there is room: send the item itself."
        raise errors.unknown_id("Item", item.id, f"{path}.id", hint)
    return found


class _Messages:
    """Makes chat messages of items. What the model thought, said and called in one go is one message."""

    def __init__(self) -> None:
        self.found: list[ChatMessage] = []
        self.paths: list[str] = []
        self._calls: set[str] = set()

    def add(self, path: str, message: ChatMessage) -> ChatMessage:
        """Add a message that came from ``path``."""
        self.found.append(message)
        self.paths.append(path)
        return message

    def read(self, path: str, item: Item) -> None:
        """Add what ``item`` says."""
        match item:
            case Message(role="assistant"):
                self._assistant(path, item)
            case Message():
                self.add(path, ChatMessage(role=item.role, content=_content(item.content)))
            case Reasoning():
                self._reasoning(path, item)
            case FunctionCall():
                self._call(path, item)
            case FunctionCallOutput():
                self._output(path, item)

    def _last(self) -> ChatMessage | None:
        """The assistant's message that is going on."""
        return self.found[-1] if self.found and self.found[-1].role == "assistant" else None

    def _assistant(self, path: str, item: Message) -> None:
        last = self._last()
        if last is None or last.content is not None or last.tool_calls:
            last = self.add(path, ChatMessage(role="assistant"))
        last.content = _content(item.content)

    def _reasoning(self, path: str, item: Reasoning) -> None:
        text = "".join(part.text for part in item.content) or "\n".join(part.text for part in item.summary)
        if not text:
            return  # encrypted by another server: nobody here can read it
        last = self._last()
        if last is None or last.content is not None or last.tool_calls:
            last = self.add(path, ChatMessage(role="assistant"))
        last.reasoning_content = (last.reasoning_content or "") + text

    def _call(self, path: str, item: FunctionCall) -> None:
        last = self._last() or self.add(path, ChatMessage(role="assistant"))
        call = ToolCallMessage(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
        last.tool_calls = [*(last.tool_calls or ()), call]
        self._calls.add(item.call_id)

    def _output(self, path: str, item: FunctionCallOutput) -> None:
        if item.call_id not in self._calls:
            raise errors.invalid_value(f"{path}.call_id", f"no function was called under the id '{item.call_id}'")
        content = item.output if isinstance(item.output, str) else _content(item.output)
        self.add(path, ChatMessage(role="tool", tool_call_id=item.call_id, content=content))


def _content(parts: Iterable[InputText | OutputText | Refusal]) -> str | list[ContentPart]:
    found = [
        ContentPart("refusal", refusal=part.refusal) if isinstance(part, Refusal) else ContentPart("text", part.text)
        for part in parts
    ]
    if not found:
        return ""
    return found[0].text if len(found) == 1 and found[0].text is not None else found


def _response_format(asked: TextFormat) -> ResponseFormat:
    if asked.type != "json_schema":
        return ResponseFormat(type=asked.type)
    schema = JsonSchema(name=asked.name or "", schema=asked.schema, description=asked.description, strict=asked.strict)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _tool(tool: Tool) -> ToolSpec:
    function = FunctionSpec(
        name=tool.name or "", description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return ToolSpec(type="function", function=function)


def _tool_choice(choice: ToolChoice) -> ToolChoiceObject:
    if choice.type == "function":
        return ToolChoiceObject(type="function", function=_named(choice))
    tools = [NamedTool(type="function", function=_named(tool)) for tool in choice.tools or ()]
    allowed = AllowedTools(mode=choice.mode or "auto", tools=tools)
    return ToolChoiceObject(type="allowed_tools", allowed_tools=allowed)


def _named(tool: ToolChoice | ChosenTool) -> NamedFunction:
    return NamedFunction(name=tool.name or "")
