"""How do clients describe tools, choose among them, and say what was called? OpenAI's shapes, in requests."""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from gateway.wire import errors

MAX_TOOLS: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments, an object.

    With ``strict`` the arguments match the schema for certain, whether or not the client forces the call.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool. Functions are the only kind that is called here."""

    type: str
    function: FunctionSpec | None = None


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool by its name."""

    type: str
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the tools, of which the model may (``auto``) or must (``required``) call one."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolChoiceObject(msgspec.Struct, frozen=True, kw_only=True):
    """``{"type": "function", "function": {"name": …}}``, or ``{"type": "allowed_tools", "allowed_tools": {…}}``."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that an earlier answer made; ``arguments`` is JSON as text."""

    name: str
    arguments: str


class ToolCallMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A call in an assistant's message."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Tools(NamedTuple):
    """The tools of a request, and how they may be called.

    ``mode``: ``auto`` leaves it to the model, ``required`` wants at least one call, ``named`` exactly one, of
    the only function in ``functions``. ``shown`` are all that the model is told of, ``functions`` those it may call.
    """

    shown: list[FunctionSpec]
    functions: list[FunctionSpec]
    mode: Literal["auto", "required", "named"]
    parallel: bool


def check_tools(
    tools: Sequence[ToolSpec] | None, choice: str | ToolChoiceObject | None, parallel: bool | None
) -> Tools | None:
    """What a request says of tools; None if the model is to call none.

    Raises:
        ApiError: 400; a tool that isn't ours to call, a name that is taken or none, a choice of what isn't there.
    """
    functions = [_function(index, tool) for index, tool in enumerate(tools or ())]
    if len(functions) > MAX_TOOLS:
        raise errors.invalid_value("tools", f"{len(functions)} are more than the {MAX_TOOLS} allowed")
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise errors.invalid_value(f"tools.{index}.function.name", f"{name!r} is there twice")
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise errors.invalid_value("tool_choice", f"{choice!r} is none of 'none', 'auto' and 'required'")
    if not functions:
        if choice not in (None, "none", "auto"):
            raise errors.invalid_value("tool_choice", "there are no 'tools' to choose from")
        return None
    if choice == "none":
        return None
    several = parallel is not False
    if choice is None or isinstance(choice, str):
        return Tools(functions, functions, "required" if choice == "required" else "auto", several)
    return _chosen(functions, choice, several)


def _chosen(functions: list[FunctionSpec], choice: ToolChoiceObject, parallel: bool) -> Tools:
    known = {function.name: function for function in functions}

    def find(name: str, param: str) -> FunctionSpec:
        if name not in known:
            raise errors.invalid_value(param, f"there is no tool {name!r} among 'tools'")
        return known[name]

    if choice.type == "function" and choice.function is not None:
        return Tools(functions, [find(choice.function.name, "tool_choice.function.name")], "named", False)
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        allowed = [
            find(tool.function.name, f"tool_choice.allowed_tools.tools.{index}.function.name")
            for index, tool in enumerate(choice.allowed_tools.tools)
            if tool.function is not None
        ]
        if not allowed:
            raise errors.invalid_value("tool_choice.allowed_tools.tools", "there must be at least one")
        return Tools(functions, allowed, choice.allowed_tools.mode, parallel)
    raise errors.invalid_value("tool_choice", "an object names a function, or allowed_tools")


def _function(index: int, tool: ToolSpec) -> FunctionSpec:
    path = f"tools.{index}"
    if tool.type != "function":
        raise errors.unsupported_parameter(
            f"{path}.type", f"tools of type {tool.type!r} are not run here, only described functions"
        )
    if tool.function is None:
        raise errors.missing_field(f"{path}.function")
    if not _NAME.fullmatch(tool.function.name):
        raise errors.invalid_value(
            f"{path}.function.name", "a name has 1 to 64 letters, digits, underscores, dots and dashes"
        )
    return tool.function
