"""What does a conversation in ``/v1/responses`` consist of? Items: messages, thoughts, function calls and outputs.

Items go in both directions, and are kept: what a client sends is brought into the form in which we would have sent it.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from gateway.wire import errors
from gateway.wire.chat import TokenLogprob

Role = Literal["user", "assistant", "system", "developer"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]

T = TypeVar("T")


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """A text that the model reads."""

    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """A text that the model wrote. ``logprobs`` are those of its tokens, where asked for; there are no annotations."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class Refusal(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """A text with which a model refused to answer; only in what clients send."""

    refusal: str


class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """A summary of a thought; only in what clients send."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """A thought."""

    text: str


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A message of the conversation."""

    id: str
    role: Role
    content: list[InputText | OutputText | Refusal]
    status: ItemStatus = "completed"


class Reasoning(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought before it answered, or called a function."""

    id: str
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    encrypted_content: str | None = None
    status: ItemStatus = "completed"


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """The model calls a function; ``arguments`` is JSON as text, ``call_id`` is what the output is sent under."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"


class FunctionCallOutput(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """What the called function returned."""

    id: str
    call_id: str
    output: str | list[InputText]
    status: ItemStatus = "completed"


class ItemReference(msgspec.Struct, frozen=True):
    """Stands for an item that is kept with an earlier response."""

    id: str


Item = Message | Reasoning | FunctionCall | FunctionCallOutput
OutputItem = Message | Reasoning | FunctionCall

_TEXTS: Final = frozenset({"input_text", "output_text", "text"})
_UNREADABLE: Final = frozenset({"input_image", "input_file", "input_audio", "computer_screenshot"})


def new_id(prefix: str) -> str:
    """A fresh id for an item or a response."""
    return f"{prefix}_{secrets.token_hex(12)}"


class _Part(msgspec.Struct, frozen=True):
    """A part of a message, as it was sent."""

    type: str
    text: str | None = None
    refusal: str | None = None


class _Text(msgspec.Struct, frozen=True):
    """A part of a thought or of its summary, as it was sent."""

    text: str


class _Message(msgspec.Struct, frozen=True):
    role: Role
    content: str | list[_Part]
    id: str | None = None


class _Reasoning(msgspec.Struct, frozen=True):
    summary: list[_Text] | None = None
    content: list[_Text] | None = None
    encrypted_content: str | None = None
    id: str | None = None


class _FunctionCall(msgspec.Struct, frozen=True):
    call_id: str
    name: str
    arguments: str
    id: str | None = None


class _FunctionCallOutput(msgspec.Struct, frozen=True):
    call_id: str
    output: str | list[_Part]
    id: str | None = None


class Located(NamedTuple):
    """An item, and where it was sent: ``input.2``, for errors."""

    path: str
    item: Item | ItemReference


def read_input(sent: str | Sequence[dict[str, Any]]) -> list[Located]:
    """The items of a request's ``input``; a text alone is a message of the user's.

    Raises:
        ApiError: 400, with the path of the first thing that is no item, or none that a text model can read.
    """
    if isinstance(sent, str):
        return [Located("input", Message(id=new_id("msg"), role="user", content=[InputText(sent)]))]
    return [Located(f"input.{index}", _item(f"input.{index}", item)) for index, item in enumerate(sent)]


def _item(path: str, sent: dict[str, Any]) -> Item | ItemReference:
    kind = sent.get("type")
    if kind is None:  # both may be sent without one
        kind = "message" if "role" in sent else "item_reference"
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        known = ", ".join(f"'{name}'" for name in _READERS)
        raise errors.unsupported_parameter(f"{path}.type", f"{kind!r} is none of the items known here: {known}")
    return read(path, sent)


def _message(path: str, sent: dict[str, Any]) -> Message:
    found = _convert(path, sent, _Message)
    texts = _parts(f"{path}.content", found.content)
    as_text = OutputText if found.role == "assistant" else InputText
    content = [part if isinstance(part, Refusal) else as_text(part.text) for part in texts]
    return Message(id=found.id or new_id("msg"), role=found.role, content=content)


def _reasoning(path: str, sent: dict[str, Any]) -> Reasoning:
    found = _convert(path, sent, _Reasoning)
    return Reasoning(
        id=found.id or new_id("rs"),
        summary=[SummaryText(part.text) for part in found.summary or ()],
        content=[ReasoningText(part.text) for part in found.content or ()],
        encrypted_content=found.encrypted_content,
    )


def _function_call(path: str, sent: dict[str, Any]) -> FunctionCall:
    found = _convert(path, sent, _FunctionCall)
    return FunctionCall(id=found.id or new_id("fc"), call_id=found.call_id, name=found.name, arguments=found.arguments)


def _function_call_output(path: str, sent: dict[str, Any]) -> FunctionCallOutput:
    found = _convert(path, sent, _FunctionCallOutput)
    output: str | list[InputText] = found.output if isinstance(found.output, str) else []
    if not isinstance(found.output, str):
        texts = _parts(f"{path}.output", found.output)
        output = [InputText(part.refusal if isinstance(part, Refusal) else part.text) for part in texts]
    return FunctionCallOutput(id=found.id or new_id("fco"), call_id=found.call_id, output=output)


def _item_reference(path: str, sent: dict[str, Any]) -> ItemReference:
    return _convert(path, sent, ItemReference)


_READERS: Final[dict[str, Callable[[str, dict[str, Any]], Item | ItemReference]]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "item_reference": _item_reference,
}


def _parts(path: str, content: str | list[_Part]) -> list[InputText | Refusal]:
    if isinstance(content, str):
        return [InputText(content)]
    return [_part(f"{path}.{index}", part) for index, part in enumerate(content)]


def _part(path: str, part: _Part) -> InputText | Refusal:
    if part.type in _TEXTS:
        if part.text is None:
            raise errors.missing_field(f"{path}.text")
        return InputText(part.text)
    if part.type == "refusal":
        if part.refusal is None:
            raise errors.missing_field(f"{path}.refusal")
        return Refusal(part.refusal)
    if part.type in _UNREADABLE:
        message = f"'{path}.type' is {part.type!r}, but this model reads text only: send parts of type 'input_text'."
        raise errors.ApiError(400, message, code="unsupported_content", param=f"{path}.type")
    raise errors.invalid_value(f"{path}.type", f"{part.type!r} is no part of a message; 'input_text' is one")


def _convert(path: str, sent: dict[str, Any], type: type[T]) -> T:
    try:
        return msgspec.convert(sent, type)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        raise errors.invalid_field(msgspec.ValidationError(f"{what} - at `${path}{at or '`'}")) from None
