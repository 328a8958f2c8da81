"""What does the gateway know of one upstream: its models, its connections, whether it answers, how busy it is?"""

import ssl
from time import perf_counter
from typing import Final, Literal, NamedTuple, Protocol

from gateway.fleet.upstream.address import Address
from gateway.fleet.upstream.breaker import Breaker, State
from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.options import UpstreamOptions

Continues = Literal["", "vllm", "penstock"]
"""How an upstream goes on with another's answer: not at all, after a longer prompt, or told what the answer is."""
ANY_MODEL: Final[frozenset[str]] = frozenset()


class UpstreamLoad(NamedTuple):
    """What an upstream's own Prometheus page says.

    Requests ``running`` and ``waiting``, the share ``kv_used`` of its KV cache, and how many tokens that holds (0: it
    doesn't say).
    """

    running: float
    waiting: float
    kv_used: float
    kv_tokens: int = 0


class Counts:
    """Attempts at a target, by how they ended; ``abandoned`` were given up by us or by the client.

    Of requests whose tokens were known when they were placed there: prompt tokens that were ``believed`` to be cached,
    and those that the target said it ``found`` in its cache.
    """

    __slots__ = ("abandoned", "answered", "believed", "failed", "found", "refused")

    def __init__(self) -> None:
        self.answered = self.refused = self.failed = self.abandoned = 0
        self.believed = self.found = 0


class Follower(Protocol):
    """Knows what a target has cached: so many ``blocks``; how often what it said was lost, and nothing was believed."""

    @property
    def blocks(self) -> int: ...
    @property
    def losses(self) -> int: ...


class Target:
    """One upstream server.

    Args:
        address: where it is.
        models: the names that it serves, where they are configured; else they are asked for, and until then it serves
            none. `ANY_MODEL` means that it can't be asked: it gets whatever name a client says.
        group: what it belongs to, for its name: a server may be in several groups.
    """

    def __init__(
        self, address: Address, options: UpstreamOptions, models: frozenset[str] | None = None, group: str = ""
    ) -> None:
        self.address = address
        self.group = group
        self.name = f"{group}/{address.authority}{address.path}" if group else address.authority + address.path
        self.options = options
        self.models = models
        self.configured = models is not None
        self.tls = ssl.create_default_context() if address.secure else None
        self.breaker = Breaker(options.failures, options.pause, slow_start=options.slow_start)
        self.in_flight = 0
        self.foreign = 0.0
        """Requests that it has from others, by its own metrics."""
        self.backlog = 0
        """What it has to do for us, by placement's reckoning, in bytes of prompts."""
        self.up = False
        """Whether it answered the last probe."""
        self.continues: Continues = ""
        self.max_len = 0
        """Tokens that prompt and answer may have in all, by its own account; 0: it doesn't say."""
        self.draining = False
        self.load: UpstreamLoad | None = None
        self.counts = Counts()
        self.follower: Follower | None = None
        """Who follows its KV events."""
        self._idle: list[Connection] = []
        key = f"authorization: Bearer {options.key}\r\n" if options.key else ""
        self._headers = f"host: {address.authority}\r\n{key}".encode()
        self._heads: dict[str, bytes] = {}

    @property
    def provider(self) -> str:
        """Whose server it is: ``penstock``, ``vllm``, or whatever speaks as ``openai`` does."""
        return self.continues or "openai"

    def serves(self, model: str) -> bool:
        return self.models is not None and (self.models is ANY_MODEL or model in self.models)

    def available(self, now: float) -> bool:
        """Whether a request may be sent to it."""
        return self.up and not self.draining and self.breaker.allows(now)

    def state(self, now: float) -> State:
        return self.breaker.state(now)

    def handicap(self, now: float) -> float:
        """By how much its costs count as higher while it starts slowly: 1 or more."""
        return 1.0 / self.breaker.weight(now) if self.breaker.slow else 1.0

    def pressure(self, now: float) -> float:
        """Requests under way, counted higher while it starts slowly."""
        return (self.in_flight + self.foreign + 1) * self.handicap(now)

    def head(self, method: str, path: str) -> bytes:
        """Request line and the headers that are the same each time, for ``path`` (``/v1/...``)."""
        found = self._heads.get(path)
        if found is None:
            line = f"{method} {self.address.path}{path} HTTP/1.1\r\n".encode()
            found = self._heads[path] = line + self._headers
        return found

    def connection(self, *, fresh: bool = False) -> Connection:
        """A connection to send one request on: the one used last, or (``fresh``: always) a new one."""
        idle = self._idle
        while idle and not fresh:
            found = idle.pop()
            if found.transport is not None and not found.transport.is_closing():
                found.reused = True
                return found
        return Connection(self)

    def keep(self, connection: Connection) -> None:
        """Take ``connection`` back for a later request."""
        if self.draining or len(self._idle) >= self.options.most_idle:
            connection.close()
            return
        connection.idle_since = perf_counter()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """``connection`` is gone."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close_unused(self, now: float) -> None:
        """Close connections that nothing was sent on lately. The oldest come first in the list."""
        idle, limit = self._idle, now - self.options.keep_idle
        count = 0
        while count < len(idle) and idle[count].idle_since < limit:
            count += 1
        old, self._idle = idle[:count], idle[count:]
        for connection in old:
            connection.close()

    def close(self) -> None:
        """Close what is idle. Running exchanges go on."""
        self.draining = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
