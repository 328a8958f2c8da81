"""An upstream that streams as vLLM does, with token ids for whoever asks, and that breaks where a test wants it.

Whatever the prompt, the answer is `TEXTS`, a token each; one after a prompt of token ids that end with the first of
them goes on from there. The fifth and sixth token are one character together, as bytes would be: the fifth shows no
text.
"""

import asyncio
import json
from typing import Any, Literal

from tests.gateway.lane.upstream import Talk, Upstream

PROMPT = [900, 901, 902]
TEXTS = ["one", " two", ", three", " \\ four", "", " “", '"token_ids":[7]', " eight", " nine", " ten"]
IDS = list(range(len(TEXTS)))
WHOLE = "".join(TEXTS)

Break = Literal["reset", "error", "end", "silence", "garbage", "status", "nonsense"]


class VllmUpstream(Upstream):
    """``breaks`` once as many tokens of an answer are sent as ``after`` says, in that way; None: never."""

    def __init__(self, breaks: Break | None = None, after: int = 3, *, owner: str = "vllm", **more: Any) -> None:
        super().__init__(self._talk, **more)
        self.breaks = breaks
        self.after = after
        self.owner = owner
        self.extra: dict[str, Any] = {}

    def model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "owned_by": self.owner, "max_model_len": 50}

    async def _talk(self, talk: Talk) -> None:
        asked = talk.request.json
        chat = "chat" in talk.request.line
        prompt = asked["prompt"] if not chat and isinstance(asked["prompt"], list) else PROMPT
        begin = len(prompt) - len(PROMPT)
        assert prompt == PROMPT + IDS[:begin]
        if self.breaks == "status":
            talk.reply({"error": {"message": "no"}}, 400)
            return
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or (50 - len(prompt) if chat else 16)
        end = min(begin + limit, len(TEXTS))
        talk.begin_stream()
        if chat:
            self._say(talk, {"role": "assistant", "content": ""}, None, prompt, None)
        for place in range(begin, end):
            if self.breaks and place == self.after:
                await talk.writer.drain()
                await self._break(talk)
                return
            last = "length" if place == begin + limit - 1 else "stop" if place == len(TEXTS) - 1 else None
            delta = {"content": TEXTS[place]} if chat else None
            self._say(talk, delta, place, prompt if place == begin else None, last)
            await talk.writer.drain()
            await asyncio.sleep(0.001)
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": len(prompt), "completion_tokens": end - begin, "total_tokens": len(prompt) + end}
            details = {"cached_tokens": len(prompt)}
            self._event(talk, {"choices": [], "usage": {**usage, "prompt_tokens_details": details}})
        talk.chunk(b"data: [DONE]\n\n")
        talk.writer.write(b"0\r\n\r\n")

    def _say(
        self, talk: Talk, delta: dict[str, Any] | None, place: int | None, prompt: list[int] | None, last: str | None
    ) -> None:
        asked, chat = talk.request.json, delta is not None
        ids = bool(asked.get("return_token_ids"))
        said: dict[str, Any] = {"delta": delta} if chat else {"text": "" if place is None else TEXTS[place]}
        choice: dict[str, Any] = {"index": 0, **said, "logprobs": None, "finish_reason": last}
        if last:
            choice["stop_reason"] = None
        if place is not None:
            choice["token_ids"] = [IDS[place]] if ids else None
        more: dict[str, Any] = {}
        if prompt is not None and chat and place is None:
            more["prompt_token_ids"] = prompt if ids else None
        elif prompt is not None and not chat:
            choice["prompt_token_ids"] = prompt if ids else None
        self._event(talk, {"choices": [choice | self.extra], **more})

    def _event(self, talk: Talk, fields: dict[str, Any]) -> None:
        chat = "chat" in talk.request.line
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": f"{'chat' if chat else ''}cmpl-{self.port}", "object": kind, "created": self.port, "model": "m"}
        talk.chunk(b"data: " + json.dumps({**head, **fields}, separators=(",", ":")).encode() + b"\n\n")

    async def _break(self, talk: Talk) -> None:
        match self.breaks:
            case "reset":
                talk.writer.write(b'40\r\ndata: {"id": "hal')
                await talk.writer.drain()
                await asyncio.sleep(0.02)
                talk.reset()
            case "error":
                talk.chunk(b'data: {"error": {"message": "the engine died", "code": 500}}\n\n')
                talk.chunk(b"data: [DONE]\n\n")
                talk.writer.write(b"0\r\n\r\n")
            case "end":
                talk.writer.write(b"0\r\n\r\n")
            case "nonsense":
                talk.chunk(b"data: <html>\n\n")
                await asyncio.sleep(60)
            case "garbage":
                talk.writer.write(b"this is no chunk\r\n")
            case _:
                await asyncio.sleep(60)
