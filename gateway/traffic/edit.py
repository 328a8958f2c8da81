"""What does a variant add to a request that doesn't say? A system prompt, and how the answer is sampled.

Only what the request leaves open is filled in, and everything else in its body keeps its bytes.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_encode: Final = msgspec.json.Encoder().encode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_RESPONSES, _MESSAGES = "/v1/responses", "/v1/messages"
_OPENAI: Final = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty",
     "repetition_penalty"}
)  # fmt: skip
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    _CHAT: _OPENAI | {"reasoning_effort", "chat_template_kwargs"},
    _TEXT: _OPENAI,
    _RESPONSES: frozenset({"temperature", "top_p", "max_tokens"}),
    _MESSAGES: frozenset({"temperature", "top_p", "top_k", "max_tokens", "stop"}),
}
"""What of a variant's sampling each endpoint has, by the names of ``/v1/chat/completions``."""
_CALLED: Final[Mapping[tuple[str, str], str]] = {
    (_RESPONSES, "max_tokens"): "max_output_tokens",
    (_MESSAGES, "stop"): "stop_sequences",
}
_OTHER_NAMES: Final[Mapping[str, str]] = {"max_tokens": "max_completion_tokens"}
_SYSTEM_FIELD: Final[Mapping[str, str]] = {_RESPONSES: "instructions", _MESSAGES: "system"}
_NULL: Final = b"null"


class _Role(msgspec.Struct):
    role: Any = None


_role: Final = msgspec.json.Decoder(_Role)


class Edit(msgspec.Struct, frozen=True):
    """What requests get that don't say: a ``system`` prompt, and the fields of ``sampling``."""

    system: str | None = None
    sampling: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return self.system is not None or bool(self.sampling)

    def apply(self, endpoint: str, body: bytes) -> bytes:
        """``body``, a JSON object, with what it left open. A body that can't be read is left to who answers."""
        try:
            fields = _fields.decode(body)
            if self.system is not None:
                _add_system(endpoint, fields, self.system)
        except msgspec.MsgspecError:
            return body
        for name, value in self.sampling.items():
            if name not in _KNOWN.get(endpoint, ()):
                continue
            called = _CALLED.get((endpoint, name), name)
            if not _says(fields, called) and not _says(fields, _OTHER_NAMES.get(name, called)):
                fields[called] = msgspec.Raw(_encode(value))
        return _encode(fields)


def _says(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]) != _NULL


def _add_system(endpoint: str, fields: dict[str, msgspec.Raw], system: str) -> None:
    """Put a system prompt in, unless there is one."""
    if (field := _SYSTEM_FIELD.get(endpoint)) is not None:
        if not _says(fields, field):
            fields[field] = msgspec.Raw(_encode(system))
    elif endpoint == _CHAT and "messages" in fields:
        messages = _list.decode(fields["messages"])
        if not any(_role.decode(message).role in ("system", "developer") for message in messages[:1]):
            messages.insert(0, msgspec.Raw(_encode({"role": "system", "content": system})))
            fields["messages"] = msgspec.Raw(_encode(messages))
