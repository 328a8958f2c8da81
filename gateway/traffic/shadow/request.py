"""What of a request goes to a shadow? What makes the answer, and nothing that would be done a second time.

Tools that a server would run itself (searches, code, MCP servers) are taken out; functions stay, since only the client
runs them, and it never gets to see the shadow's answer. Nothing is stored, streamed or made in the background. Numbers
and texts stay as they came, byte for byte.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.traffic.answers import CHAT, COMPLETIONS, MESSAGES, RESPONSES

_DROPPED: Final[Mapping[str, frozenset[str]]] = {
    CHAT: frozenset({"stream", "stream_options", "store", "n", "web_search_options"}),
    COMPLETIONS: frozenset({"stream", "stream_options", "n"}),
    RESPONSES: frozenset({"stream", "stream_options", "store", "background", "background_options"}),
    MESSAGES: frozenset({"stream", "mcp_servers", "container"}),
}
_ADDED: Final[Mapping[str, Mapping[str, msgspec.Raw]]] = {
    RESPONSES: {"store": msgspec.Raw(b"false")},  # the only endpoint that stores unless told not to
}
_FORBIDDING: Final = "conversation"  # what is answered there becomes part of it
_TOOL_FIELDS: Final = ("tools", "tool_choice", "parallel_tool_calls")
_CLIENTS: Final = frozenset({"function", "custom"})
_FREE: Final = frozenset({"auto", "any", "none", "required"})

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw] | None)
_encode: Final = msgspec.json.Encoder().encode


class _Named(msgspec.Struct):
    name: str | None = None


class _Tool(msgspec.Struct):
    """A tool, or the choice of one; Anthropic's own need no type."""

    type: str | None = None
    name: str | None = None
    function: _Named | None = None
    custom: _Named | None = None

    @property
    def known_as(self) -> str | None:
        named = self.function or self.custom
        return named.name if named is not None else self.name


_tool: Final = msgspec.json.Decoder(_Tool)
_choice: Final = msgspec.json.Decoder(str | _Tool | None)


def shadow_body(endpoint: str, body: bytes) -> bytes | None:
    """The body that goes to a shadow; None where there can't be any: no request, or one that changes something.

    ``endpoint`` is one of `gateway.traffic.answers.ENDPOINTS`.
    """
    try:
        fields = _fields.decode(body)
        if bytes(fields.get(_FORBIDDING, b"null")) != b"null":
            return None
        kept: dict[str, Any] = {name: value for name, value in fields.items() if name not in _DROPPED[endpoint]}
        if "tools" in kept:
            _keep_clients_tools(kept)
        return _encode({**kept, **_ADDED.get(endpoint, {})})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _keep_clients_tools(fields: dict[str, Any]) -> None:
    """Take out what the server would run, and a choice that there isn't any more."""
    tools = [(tool, _tool.decode(tool)) for tool in _raws.decode(fields["tools"]) or ()]
    kept = [(tool, read) for tool, read in tools if read.type is None or read.type in _CLIENTS]
    if len(kept) == len(tools):
        return
    if not kept:
        for name in _TOOL_FIELDS:
            fields.pop(name, None)
        return
    fields["tools"] = [tool for tool, _ in kept]
    choice = _choice.decode(fields.get("tool_choice", b"null"))
    if isinstance(choice, _Tool) and choice.type not in _FREE:
        names = {read.known_as for _, read in kept}
        if choice.known_as is None or choice.known_as not in names:
            del fields["tool_choice"]
