"""How is a request asked from within the process? Through the same application that clients reach, without a socket."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from gateway.api.exchange import ClientGone, Message, Receive, Scope, Send
from gateway.wire.errors import ApiError

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Answer(NamedTuple):
    """What came back; ``retry_after`` in seconds where the answer said when to try again.

    ``fault`` is what kept this gateway from answering, None where somebody has answered, be it with an error.
    """

    status: int
    body: bytes
    request_id: str
    retry_after: float | None
    fault: ApiError | None = None


async def ask(
    app: Application, path: str, body: bytes, only: str = "", limit: int | None = None, key: str = ""
) -> Answer:
    """POST ``body``, as background work: whoever waits for an answer goes first.

    ``only``: the target that is to answer, whatever the model's route says. ``key``: the id of the API key that it is
    asked for; none: nothing limits it. An answer with more than ``limit`` bytes is left in the middle, a little behind
    that.
    """
    state: dict[str, Any] = {"background": True, "only": only, "key": key}
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        "client": None,
        "server": None,
        "state": state,
    }
    received = False
    size = 0
    start: Message = {}
    parts: list[bytes] = []

    async def receive() -> Message:
        nonlocal received
        if received:
            await asyncio.get_running_loop().create_future()  # this client never leaves
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal size
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if limit is not None and size > limit:
            raise ClientGone

    await app(scope, receive, send)
    headers = dict(start["headers"])
    retry_after = headers.get(b"retry-after", b"")
    return Answer(
        start["status"],
        b"".join(parts),
        headers.get(b"x-request-id", b"").decode(),
        float(retry_after) if retry_after.isdigit() else None,
        state.get("fault"),
    )
