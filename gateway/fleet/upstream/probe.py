"""Is an upstream there, which models does it serve, how busy is it? It is asked, again and again.

Health is ``/health`` (vLLM's and SGLang's notice a stalled engine), or ``/v1/models`` where there is no such thing.
A refused connection takes a target out at once; an answer that is late or wrong must be so twice.
"""

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, Literal

import msgspec

from gateway.fleet.upstream.client import get
from gateway.fleet.upstream.connection import Fault
from gateway.fleet.upstream.load_page import parse
from gateway.fleet.upstream.target import ANY_MODEL, Continues, Target

_FAILURES: Final = 2
_NO_SUCH_PATH: Final = frozenset({404, 405, 501})
_MODELS_EVERY: Final = 12  # probes
_NO_PAGE: Final = 60.0  # seconds until a target without a page of ours is asked for it again

log = logging.getLogger(__name__)


class _Model(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_decoder: Final = msgspec.json.Decoder(_Models)


def _continues(models: list[_Model], wanted: Literal["auto", "always", "never"]) -> Continues:
    """How a server with these models goes on with others' answers."""
    owners = {model.owned_by for model in models}
    if wanted == "never":
        return ""
    for known in ("penstock", "vllm"):
        if owners == {known}:
            return known
    return "vllm" if wanted == "always" else ""


class Prober:
    """Watches one target until cancelled.

    Args:
        on_change: called when the target came, went, or has other models.
    """

    def __init__(self, target: Target, on_change: Callable[[], Any]) -> None:
        self._target = target
        self._on_change = on_change
        self._has_health = True
        self._failures = 0
        self._count = 0
        self._ever_up = False
        self.first = asyncio.Event()
        """Set once the target was asked for the first time, whatever came of it."""

    async def run(self) -> None:
        """Ask for health and models, and for the load, at their paces."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_health())
            if self._target.options.load_every > 0:
                tasks.create_task(self._watch_load())

    async def _watch_health(self) -> None:
        options = self._target.options
        while True:
            try:
                await self._ask()
            except Fault as fault:
                self._failed(fault)
            else:
                self._succeeded()
            self.first.set()
            # One that is away is looked for more often: it may be back any moment.
            await asyncio.sleep(options.probe_every if self._target.up else min(options.probe_every, 1.0))

    async def _ask(self) -> None:
        """Ask once.

        Raises:
            Fault: it gives no answer, or says that it isn't well.
        """
        target = self._target
        timeout = target.options.probe_timeout
        ask_models = not target.up or not self._count % _MODELS_EVERY
        if self._has_health:
            reply = await get(target, "/health", timeout)
            if reply.status in _NO_SUCH_PATH:
                self._has_health = False
            elif reply.status != 200:
                raise Fault("garbage", f"/health says {reply.status}")
        if ask_models or not self._has_health:
            reply = await get(target, "/v1/models", timeout)
            if (reply.status >= 500 or reply.status == 429) and not (target.configured and self._has_health):
                raise Fault("garbage", f"/v1/models says {reply.status}")
            self._learn_models(reply.status, reply.body)
        self._count += 1

    def _learn_models(self, status: int, body: bytes) -> None:
        target = self._target
        listed: list[_Model] = []
        if status == 200:
            try:
                listed = _decoder.decode(body).data
            except msgspec.MsgspecError:
                if not target.configured:
                    log.warning("upstream=%s /v1/models isn't OpenAI's list: it gets any name", target.name)
            else:
                if not listed:
                    raise Fault("garbage", "/v1/models lists none: it is still loading")
        models = target.models if target.configured else frozenset(model.id for model in listed) or ANY_MODEL
        continues = _continues(listed, target.options.continuing)
        target.max_len = min((model.max_model_len or 0 for model in listed), default=0)
        if models != target.models or target.models is None or continues != target.continues:
            target.models, target.continues = models, continues
            self._on_change()

    def _succeeded(self) -> None:
        self._failures = 0
        target = self._target
        if target.up:
            return
        target.up = True
        if self._ever_up:
            target.breaker.returned(perf_counter())
        self._ever_up = True
        log.info("upstream=%s up, models: %s", target.name, ", ".join(sorted(target.models or ())) or "any")
        self._on_change()

    def _failed(self, fault: Fault) -> None:
        self._failures += 1
        target = self._target
        if target.up and (fault.kind == "connect" or self._failures >= _FAILURES):
            target.up = False
            log.warning("upstream=%s down: %s", target.name, fault)
            self._on_change()
        elif not self._ever_up and self._failures == 1:
            log.warning("upstream=%s can't be reached yet: %s", target.name, fault)

    async def _watch_load(self) -> None:
        target = self._target
        while True:
            pause = target.options.load_every
            if target.up:
                try:
                    reply = await get(target, "/metrics", target.options.probe_timeout)
                    load = parse(reply.body) if reply.status == 200 else None
                except Fault:
                    load = None
                else:
                    pause = pause if load is not None else max(pause, _NO_PAGE)
                target.load = load
                target.foreign = max(0.0, load.running + load.waiting - target.in_flight) if load is not None else 0.0
            await asyncio.sleep(pause)
