"""A gateway on a real socket that serves what a configuration file says, in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from uvicorn.server import ServerState

from gateway.api.context import Context
from gateway.app import App
from gateway.http_protocol import HttpProtocol
from gateway.lane.protocol import protocol
from gateway.server import http_config, listen
from gateway.serving import Serving
from gateway.settings import Settings
from tests.gateway.lane.harness import Reached, until


class Gateway(Reached):
    """The gateway under test, and its file, which may be changed before a `reload`."""

    def __init__(self, serving: Serving, context: Context, file: Path, port: int, state: ServerState) -> None:
        super().__init__(context, port, state)
        self.serving = serving
        self.file = file

    async def reload(self, text: str) -> list[str]:
        self.file.write_text(text)
        return await self.serving.reload()


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": text}], **fields}


@contextlib.asynccontextmanager
async def configured(
    folder: Path, text: str, *, ready: bool = True, max_queue: int = 100, **options: Any
) -> AsyncIterator[Gateway]:
    """A gateway that serves what ``text``, a configuration file, says; ``ready``: all of its targets are up."""
    file = folder / "penstock.yaml"
    file.write_text(text)
    context = Context(max_queue=max_queue, max_body=1 << 20)
    serving = Serving(
        Settings(config=str(file), **options), context, folder, lambda *_: ["false"], data=folder / "data"
    )
    app = App(context)
    serving.answer_with(app)
    make: Any = protocol(serving.lanes) if serving.lanes is not None else HttpProtocol
    config = http_config(app, make)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = await loop.create_server(lambda: make(config=config, server_state=state, app_state={}), sock=listener)
        running = asyncio.create_task(serving.run())
        try:
            if ready:
                await serving.ready()
                await until(lambda: context.not_ready is None)
            yield Gateway(serving, context, file, listener.getsockname()[1], state)
        finally:
            server.close()
            for connection in list(state.connections):
                connection.shutdown()
            await serving.stop(1.0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
