"""What is a conversation in Anthropic's shape, and does it make sense? Blocks, turns, calls of tools and their results.

Paths in errors are those of the request: ``messages.2.content.0.tool_use_id``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, NamedTuple

import msgspec

from gateway.wire import errors


class ContentBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A block of a message or of a tool's result; its ``type`` says which of the fields it has.

    Of type ``text``, ``tool_use``, ``tool_result``, ``thinking`` or ``redacted_thinking``; the last can't be read by
    anybody and is left out of the prompt. Other types, images and documents among them, are refused.
    """

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[ContentBlock] | None" = None
    is_error: bool | None = None
    thinking: str | None = None

    # known, and without effect on the answer
    signature: str | None = None
    data: str | None = None
    cache_control: dict[str, Any] | None = None
    citations: Any = None

    ignored: ClassVar[Mapping[str, str]] = {
        "signature": "thinking in a history is taken as it is",
        "data": "redacted thinking can't be read, and is left out of the prompt",
        "cache_control": "every prompt's prefix is cached, without being asked",
        "citations": "a text is read without the sources it cites",
    }


class MessageParam(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the conversation, as it was sent."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]

    def blocks(self, path: str) -> Iterator[tuple[str, ContentBlock]]:
        """The blocks of the content, a bare text as one block, each with its path; ``path`` is the message's own."""
        if isinstance(self.content, str):
            yield f"{path}.content", ContentBlock(type="text", text=self.content)
        else:
            for index, block in enumerate(self.content):
                yield f"{path}.content.{index}", block


class Turn(NamedTuple):
    """What one side says until the other does: successive messages of one role are one turn, as at Anthropic.

    Each block comes with its path in the request.
    """

    role: Literal["user", "assistant", "system"]
    blocks: list[tuple[str, ContentBlock]]

    def of_type(self, *types: str) -> list[ContentBlock]:
        """The blocks of these types, in their order."""
        return [block for _, block in self.blocks if block.type in types]


def turns(messages: Sequence[MessageParam]) -> list[Turn]:
    """The conversation as turns."""
    out: list[Turn] = []
    for index, message in enumerate(messages):
        if not out or out[-1].role != message.role:
            out.append(Turn(message.role, []))
        out[-1].blocks.extend(message.blocks(f"messages.{index}"))
    return out


_BLOCKS: Final[Mapping[str, frozenset[str]]] = {
    "user": frozenset({"text", "tool_result"}),
    "assistant": frozenset({"text", "tool_use", "thinking", "redacted_thinking"}),
    "system": frozenset({"text"}),
}


def check_conversation(messages: Sequence[MessageParam]) -> None:
    """Refuse a conversation that a text model can't read, or in which calls of tools and their results don't match.

    Raises:
        ApiError: 400, with the path of the first block at fault.
    """
    if not messages:
        raise errors.invalid_value("messages", "there must be at least one message")
    for index, message in enumerate(messages):
        if message.role != "assistant" and not message.content:
            raise errors.invalid_value(f"messages.{index}.content", "only an assistant's message may have none")
        for path, block in message.blocks(f"messages.{index}"):
            _check_block(path, block, message.role)
    called: dict[str, str] = {}
    for turn in turns(messages):
        _check_results(turn, called)
        called = _calls(turn)
    if called:
        raise _unanswered(called)


def _check_block(path: str, block: ContentBlock, role: str) -> None:
    if block.type not in _BLOCKS[role]:
        if any(block.type in types for types in _BLOCKS.values()):
            raise errors.invalid_value(f"{path}.type", f"the {role} sends no blocks of type {block.type!r}")
        raise errors.unsupported_content(f"{path}.type", block.type)
    match block.type:
        case "text":
            check_text(path, block)
        case "tool_use":
            _require(path, block, "id", "name", "input")
        case "thinking":
            _require(path, block, "thinking")
        case "tool_result":
            _require(path, block, "tool_use_id")
            if isinstance(block.content, list):
                for index, inner in enumerate(block.content):
                    check_text(f"{path}.content.{index}", inner)


def check_text(path: str, block: ContentBlock) -> None:
    """Refuse a block that isn't text.

    Raises:
        ApiError: 400, with its path.
    """
    if block.type != "text":
        raise errors.unsupported_content(f"{path}.type", block.type)
    _require(path, block, "text")


def _require(path: str, block: ContentBlock, *fields: str) -> None:
    for field in fields:
        if getattr(block, field) is None:
            raise errors.missing_field(f"{path}.{field}")


def _calls(turn: Turn) -> dict[str, str]:
    """The calls of a turn: the path of each by its id."""
    found: dict[str, str] = {}
    for path, block in turn.blocks:
        if block.type == "tool_use":
            id = block.id or ""
            if id in found:
                raise errors.invalid_value(f"{path}.id", f"another call has the id {id!r}")
            found[id] = path
    return found


def _check_results(turn: Turn, called: dict[str, str]) -> None:
    """Whether ``turn`` begins with a result for each of the calls before it, and has no others."""
    left = dict(called)
    text_before = False
    for path, block in turn.blocks:
        if block.type != "tool_result":
            text_before = True
        elif block.tool_use_id not in left:
            raise errors.invalid_value(
                f"{path}.tool_use_id", f"{block.tool_use_id!r} is no call of the assistant's turn before that waits"
            )
        elif text_before:
            raise errors.invalid_value(path, "the results of tools come before anything else in the user's turn")
        else:
            del left[block.tool_use_id]
    if left:
        raise _unanswered(left)


def _unanswered(calls: Mapping[str, str]) -> errors.ApiError:
    id, path = next(iter(calls.items()))
    return errors.invalid_value(
        f"{path}.id", f"no 'tool_result' for {id!r} follows in the next message, where the user's turn begins"
    )
