"""How are calls of tools in a conversation, and what came of them, put before a chat template?"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_ID_LENGTH: Final = 9


class ToolMessageError(ValueError):
    """A call in the conversation that can't be shown to the model; the message has its path."""


def with_calls(messages: Sequence[Mapping[str, Any]], short_ids: bool) -> list[dict[str, Any]]:
    """The messages with the arguments of calls as objects, as templates read them, where clients send JSON as text.

    An answer of a tool gets the name of the tool, which some templates write and most clients leave out. With
    ``short_ids``, ids are nine letters and digits, as Mistral's templates demand: others become such by their hash.

    Raises:
        ToolMessageError: arguments are no JSON object.
    """
    names: dict[str, str] = {}
    out = []
    for index, message in enumerate(messages):
        item = dict(message)
        if item.get("tool_calls"):
            calls = item["tool_calls"] = [
                _with_object(call, f"messages.{index}.tool_calls.{at}") for at, call in enumerate(item["tool_calls"])
            ]
            names.update((call["id"], call["function"]["name"]) for call in calls if "id" in call)
            if short_ids:
                for call in calls:
                    call["id"] = _short(call.get("id", ""))
        answered = item.get("tool_call_id")
        if answered is not None:
            if answered in names:
                item.setdefault("name", names[answered])
            if short_ids:
                item["tool_call_id"] = _short(answered)
        out.append(item)
    return out


def _with_object(call: Mapping[str, Any], path: str) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ToolMessageError(f"{path}.function.arguments is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ToolMessageError(f"{path}.function.arguments must be a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def _short(id: str) -> str:
    if len(id) == _ID_LENGTH and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode(errors="replace")).hexdigest()[:_ID_LENGTH]


def as_plain_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The messages for a template that knows nothing of tools: described in the system's message, in Hermes' form.

    Calls become text of the assistant's messages, and what tools answered becomes the user's; `with_calls` comes first.
    """
    out: list[dict[str, Any]] = []
    for message in messages:
        item = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
        if message.get("tool_calls"):
            calls = [_tagged(call["function"]) for call in message["tool_calls"]]
            _append(item, "\n".join(calls))
        if message["role"] == "tool":
            item = {"role": "user", "content": ""}
            _append(item, f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>")
            if out and out[-1].get("answers"):
                _append(out[-1], item["content"])
                continue
            item["answers"] = True
        out.append(item)
    for item in out:
        item.pop("answers", None)
    if tools:
        if not out or out[0]["role"] != "system":
            out.insert(0, {"role": "system", "content": ""})
        _append(out[0], _description(tools), "\n\n")
    return out


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.get("text") or "" for part in content)


def _append(item: dict[str, Any], text: str, separator: str = "\n") -> None:
    before = _text(item.get("content"))
    item["content"] = f"{before}{separator}{text}" if before else text


def _tagged(function: Mapping[str, Any]) -> str:
    call = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _description(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions, each described by a JSON schema:\n<tools>\n{listed}\n</tools>\n\n"
        "To call one, write its name and arguments as JSON within these tags, and wait for the answer:\n"
        '<tool_call>\n{"name": <function name>, "arguments": <object of arguments>}\n</tool_call>'
    )
