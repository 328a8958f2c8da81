"""What are a prompt's tokens, as its upstream will make them? By the model's own tokenizer here, or by asking there.

A folder with the upstreams' tokenizer and chat template makes them in this process, what earlier turns had in common
with this one not being tokenised again (`gateway.text.token_cache`). Without one, an upstream is asked, by vLLM's
``/tokenize``, or where there is no such thing by ``/v1/chat/completions/render`` and ``/v1/completions/render``: one
more round trip for each request. Whatever goes wrong, a prompt without tokens is placed by its text.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gateway.fleet.upstream.client import post
from gateway.fleet.upstream.connection import Fault
from gateway.fleet.upstream.target import Target
from gateway.text.template import RESERVED, ChatTemplate, TemplateError
from gateway.text.tokenizer import Tokenizer
from gateway.wire.chat import ChatMessage, template_messages

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
_WAYS: Final = ("/tokenize", "{endpoint}/render")
_NO_SUCH_THING: Final = frozenset({403, 404, 405, 501})
_TIMEOUT: Final = 2.0  # seconds that an upstream has to make tokens of a prompt
_BREATH: Final = 2.0  # seconds for which one that was too slow is not asked again
_PAUSE: Final = 30.0  # the same for one that can't

log = logging.getLogger(__name__)


class PromptTokens(NamedTuple):
    """A prompt's token ids, and the salt that keeps its blocks apart from others'."""

    tokens: Sequence[int]
    salt: str = ""


class _Chat(msgspec.Struct):
    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None


class _Completion(msgspec.Struct):
    prompt: str | list[int]
    add_special_tokens: bool | None = None
    cache_salt: str | None = None


class _Salted(msgspec.Struct):
    cache_salt: str | None = None


class _Told(msgspec.Struct):
    """What ``/tokenize`` answers, or ``/render``."""

    tokens: list[int] | None = None
    token_ids: list[int] | None = None


_chats: Final = msgspec.json.Decoder(_Chat)
_completions: Final = msgspec.json.Decoder(_Completion)
_salted: Final = msgspec.json.Decoder(_Salted)
_told: Final = msgspec.json.Decoder(_Told | list[_Told])


class Reader:
    """Makes token ids of requests' bodies.

    Args:
        targets: those that may be asked to render a prompt.
        folder: where tokenizer and chat template are; None: they are asked.

    Raises:
        TokenizerError: the folder has no tokenizer that can be read.
        TemplateError: nor a chat template that can be.
    """

    def __init__(self, targets: Callable[[], Sequence[Target]], folder: str | None = None) -> None:
        self._targets = targets
        self._tokenizer = Tokenizer.load(Path(folder)) if folder is not None else None
        self._template = ChatTemplate.load(Path(folder)) if folder is not None else None
        self._unable: dict[Target, float] = {}
        self._way: dict[Target, int] = {}

    async def read(self, endpoint: str, body: bytes) -> PromptTokens | None:
        """The tokens of a request's only prompt; None where they can't be had."""
        try:
            if self._tokenizer is not None:
                return await self._here(self._tokenizer, endpoint, body)
            return await self._there(endpoint, body)
        except (msgspec.MsgspecError, TemplateError, UnicodeDecodeError):
            return None  # not for us to say: the upstream will

    async def _here(self, tokenizer: Tokenizer, endpoint: str, body: bytes) -> PromptTokens | None:
        if endpoint == CHAT:
            chat = _chats.decode(body)
            special = bool(chat.add_special_tokens)
            return PromptTokens(
                await tokenizer.encode_async(self._rendered(chat), add_special_tokens=special), chat.cache_salt or ""
            )
        if endpoint != COMPLETIONS:
            return None
        asked = _completions.decode(body)
        if not isinstance(asked.prompt, str):
            return PromptTokens(asked.prompt, asked.cache_salt or "")
        special = asked.add_special_tokens is not False
        tokens = await tokenizer.encode_async(asked.prompt, add_special_tokens=special)
        return PromptTokens(tokens, asked.cache_salt or "")

    def _rendered(self, chat: _Chat) -> str:
        assert self._template is not None
        said: dict[str, Any] = {"documents": chat.documents, "continue_final_message": chat.continue_final_message}
        given = {name: value for name, value in said.items() if value is not None}
        variables = {name: value for name, value in (chat.chat_template_kwargs or {}).items() if name not in RESERVED}
        return self._template.render(
            template_messages(chat.messages),
            tools=chat.tools or None,
            add_generation_prompt=chat.add_generation_prompt is not False,
            **given,
            **variables,
        )

    async def _there(self, endpoint: str, body: bytes) -> PromptTokens | None:
        if endpoint not in (CHAT, COMPLETIONS):
            return None
        now = asyncio.get_running_loop().time()
        able = [target for target in self._targets() if self._unable.get(target, 0.0) <= now]
        if not able:
            return None
        target = min(able, key=lambda one: one.in_flight)
        salt = _salted.decode(body).cache_salt or ""
        if endpoint == COMPLETIONS and not isinstance(ids := _completions.decode(body).prompt, str):
            return PromptTokens(ids, salt)
        for number in range(self._way.get(target, 0), len(_WAYS)):
            path = _WAYS[number].format(endpoint=endpoint)
            try:
                reply = await post(target, path, body, _TIMEOUT)
            except Fault as fault:
                self._pause(target, now + _BREATH, str(fault))
                return None
            if reply.status == 200:
                self._way[target] = number
                return _only(_told.decode(reply.body), salt)
            if reply.status not in _NO_SUCH_THING:
                return None
        self._pause(target, now + _PAUSE, f"{path} says {reply.status}")
        return None

    def _pause(self, target: Target, until: float, why: str) -> None:
        log.warning("upstream=%s makes no tokens of prompts (%s): placing them by their text", target.name, why)
        self._unable[target] = until


def _only(told: _Told | list[_Told], salt: str) -> PromptTokens | None:
    """The tokens of the only prompt that there is."""
    if isinstance(told, list):
        if len(told) != 1:
            return None
        told = told[0]
    tokens = told.tokens if told.token_ids is None else told.token_ids
    return PromptTokens(tokens, salt) if tokens else None
