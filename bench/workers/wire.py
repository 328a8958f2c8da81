"""What does a simulated worker read of a request, and what does it write? OpenAI's shapes with vLLM's additions.

Everything that has to do with what is said (temperature, tools, stop strings, log-probabilities) is ignored: tokens are
made up, there are always as many as ``max_tokens`` says, and every answer ends with ``length``.
"""

import time
from typing import Annotated, Any, Final

import msgspec

from bench.workers.tokens import Message, Word

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]

DEFAULT_MAX_TOKENS: Final = 128
"""Where a request doesn't say how many it wants."""


class Part(msgspec.Struct):
    """A part of a message's content. Images and sounds are so many bytes of text here: those of their JSON."""

    type: str = "text"
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """A message as clients write it."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()

    def plain(self) -> Message:
        """Its role, and its text in one piece."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text or "" for part in content)
        return Message(self.role, (content or "") + bytes(self.tool_calls).decode())


class StreamOptions(msgspec.Struct):
    """What else a stream brings."""

    include_usage: bool = False


class _Asked(msgspec.Struct, kw_only=True):
    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    priority: int | None = None

    @property
    def wanted(self) -> int:
        """How many tokens the answer is to have."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


class ChatRequest(_Asked, kw_only=True):
    """The body of ``/v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None

    @property
    def wanted(self) -> int:
        return super().wanted if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(_Asked, kw_only=True):
    """The body of ``/v1/completions``; of several prompts only one may be given.

    ``answered``, as with Penstock: so many of the prompt's last tokens are the beginning of the answer.
    """

    prompt: str | list[TokenId]
    answered: int = 0


class Answer:
    """Writes one answer as it comes, as server-sent events.

    ``ids``: tokens' ids are in it, as vLLM's ``return_token_ids`` has it; the prompt's are, too, with the first token.
    """

    def __init__(self, request_id: str, model: str, *, chat: bool, stream: bool, prompt_ids: list[int] | None) -> None:
        self.chat = chat
        self._ids = prompt_ids
        self._begun = False
        self._common: dict[str, Any] = {
            "id": request_id,
            "object": _object(chat, stream),
            "created": int(time.time()),
            "model": model,
        }
        self._head = msgspec.json.encode(self._common)[:-1].decode()

    def event(self, word: Word, finish: str | None) -> bytes:
        """One token. Words are letters and spaces, so that nothing in them needs an escape."""
        reason = f'"{finish}"' if finish else "null"
        ids = ""
        if self._ids is not None:
            before = f',"prompt_token_ids":{self._ids}' if not self._begun else ""
            ids = f',"token_ids":[{word.id}]{before}'
        if self.chat:
            role = "" if self._begun else '"role":"assistant",'
            text = f'"delta":{{{role}"content":"{word.text}"}}'
        else:
            text = f'"text":"{word.text}"'
        self._begun = True
        choice = f'{{"index":0,{text},"logprobs":null,"finish_reason":{reason}{ids}}}'
        return f'data: {self._head},"choices":[{choice}]}}\n\n'.encode()

    def usage_event(self, counts: dict[str, Any]) -> bytes:
        """The event with what was used, and no choice."""
        return b"data: %b\n\n" % msgspec.json.encode({**self._common, "choices": [], "usage": counts})

    def whole(self, words: list[Word], counts: dict[str, Any]) -> bytes:
        """The answer in one piece."""
        text = "".join(word.text for word in words)
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice: dict[str, Any] = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
        if self._ids is not None:
            choice |= {"token_ids": [word.id for word in words], "prompt_token_ids": self._ids}
        return msgspec.json.encode({**self._common, "choices": [choice], "usage": counts})


def usage(prompt: int, cached: int, output: int) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _object(chat: bool, stream: bool) -> str:
    if not chat:
        return "text_completion"
    return "chat.completion.chunk" if stream else "chat.completion"
