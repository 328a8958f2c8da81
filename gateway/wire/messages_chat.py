"""How does a request to ``/v1/messages`` become a chat request? One wire shape into another, without any loss."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.wire.chat import ChatCompletionRequest, ChatMessage, ContentPart
from gateway.wire.errors import ApiError
from gateway.wire.generation import JsonSchema, ResponseFormat
from gateway.wire.messages import CountTokensRequest, MessagesRequest, Thinking, Tool
from gateway.wire.messages_history import ContentBlock, Turn, turns
from gateway.wire.tools import FunctionCall, FunctionSpec, NamedFunction, ToolCallMessage, ToolChoiceObject, ToolSpec

_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}
_FAILED: Final = "Error: "  # what a tool's result begins with where it says is_error; templates have no mark for that
_encode = msgspec.json.Encoder().encode


def chat_request(request: CountTokensRequest) -> ChatCompletionRequest:
    """The chat request that says what ``request`` says, once its `check` has passed."""
    messages = chat_messages(request)
    chat = ChatCompletionRequest(model=request.model, messages=messages, include_reasoning=True)
    if messages[-1].role == "assistant":  # the answer goes on where it ends, as at Anthropic
        chat.add_generation_prompt, chat.continue_final_message = False, True
    _set_tools(chat, request)
    if request.thinking is not None:
        chat.chat_template_kwargs = _template_variables(request.thinking)
    if request.output_config is not None:
        chat.reasoning_effort = request.output_config.effort
    if request.answer_schema is not None:
        schema = JsonSchema(name="answer", schema=request.answer_schema, strict=True)
        chat.response_format = ResponseFormat(type="json_schema", json_schema=schema)
    if isinstance(request, MessagesRequest):
        chat.max_completion_tokens = request.max_tokens
        chat.stream = request.stream
        chat.stop = request.stop_sequences
        chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
        chat.user = None if request.metadata is None else request.metadata.user_id
    return chat


def chat_messages(request: CountTokensRequest) -> list[ChatMessage]:
    """The conversation as chat messages: the results of tools are messages of their own, with the role ``tool``."""
    out: list[ChatMessage] = []
    if request.system:
        system = request.system
        out.append(ChatMessage(role="system", content=system if isinstance(system, str) else _content(system)))
    for turn in turns(request.messages):
        out.extend(_messages(turn))
    return out


def _messages(turn: Turn) -> list[ChatMessage]:
    texts = turn.of_type("text")
    if turn.role == "assistant":
        thinking = "\n".join(block.thinking or "" for block in turn.of_type("thinking"))
        calls = [_call(block) for block in turn.of_type("tool_use")]
        content = _content(texts) if texts else None if calls else ""
        return [
            ChatMessage(role="assistant", content=content, reasoning_content=thinking or None, tool_calls=calls or None)
        ]
    out = [
        ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=_result(block))
        for block in turn.of_type("tool_result")
    ]
    if texts:
        out.append(ChatMessage(role=turn.role, content=_content(texts)))
    return out


def _content(texts: list[ContentBlock]) -> str | list[ContentPart]:
    """One text as it is, several as parts: how those are joined is the chat template's business."""
    if len(texts) == 1:
        return texts[0].text or ""
    return [ContentPart(type="text", text=block.text) for block in texts]


def _call(block: ContentBlock) -> ToolCallMessage:
    return ToolCallMessage(
        id=block.id or "", function=FunctionCall(name=block.name or "", arguments=_encode(block.input).decode())
    )


def _result(block: ContentBlock) -> str | list[ContentPart]:
    content = block.content or ""
    if block.is_error:
        text = content if isinstance(content, str) else "\n".join(inner.text or "" for inner in content)
        return _FAILED + text
    return content if isinstance(content, str) else _content(content)


def _set_tools(chat: ChatCompletionRequest, request: CountTokensRequest) -> None:
    if request.tools:
        chat.tools = [_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    if choice is None:
        return
    if choice.disable_parallel_tool_use is not None:
        chat.parallel_tool_calls = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        chat.tool_choice = ToolChoiceObject(type="function", function=NamedFunction(name=choice.name or ""))
    else:
        chat.tool_choice = _CHOICES[choice.type]


def _tool(tool: Tool) -> ToolSpec:
    function = FunctionSpec(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return ToolSpec(type="function", function=function)


def _template_variables(thinking: Thinking) -> dict[str, Any]:
    variables: dict[str, Any] = {"enable_thinking": thinking.type != "disabled"}
    if thinking.budget_tokens is not None:
        variables["thinking_budget"] = thinking.budget_tokens
    return variables


_FIELDS: Final[Mapping[str, str]] = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "user": "metadata.user_id",
    "tool_choice.function.name": "tool_choice.name",
}
_TOOL_FIELDS: Final[Mapping[str, str]] = {".function.parameters": ".input_schema", ".function": ""}


def renamed(error: ApiError) -> str:
    """The message of ``error``, in which the chat request's field goes by the name that it has here."""
    if error.param is None:
        return error.message
    return error.message.replace(f"'{error.param}'", f"'{anthropic_path(error.param)}'")


def anthropic_path(param: str) -> str:
    """Where in a request to ``/v1/messages`` stands what a chat request has at ``param``."""
    for chat, ours in _FIELDS.items():
        if param == chat or param.startswith(chat + "."):
            return ours + param[len(chat) :]
    if param.startswith("tools."):
        for chat, ours in _TOOL_FIELDS.items():
            if chat in param:
                return param.replace(chat, ours, 1)
    return param
