"""Which targets should there be? URLs as given, all addresses behind a DNS name, and the lines of a watched file."""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

from gateway.fleet.upstream.address import Address, parse_url
from gateway.fleet.upstream.targets import Targets

_DNS: Final = "dns:"
_ENDPOINTS: Final = ("tcp://", "ipc://", "inproc://")
_FILE_EVERY: Final = 1.0
_KEPT: Final = 10.0  # seconds for which targets stay that should go, while none of those in their place answers

log = logging.getLogger(__name__)


class Name(NamedTuple):
    """A DNS name all of whose addresses are targets."""

    host: str
    port: int
    kv_events: str = ""
    kv_replay: str = ""


def parse_source(text: str) -> Address | Name:
    """``http://HOST:PORT`` or ``dns:NAME:PORT``, perhaps followed by ``kv=ENDPOINT`` and ``replay=ENDPOINT``.

    In the endpoints, ``*`` stands for the host, which is needed where a name has several.

    Raises:
        ValueError: it is neither; the message says what would be right.
    """
    where, *more = text.split() if text.strip() else [""]
    events, replay = _endpoints(more)
    if not where.startswith(_DNS):
        address = parse_url(where)
        return address._replace(kv_events=_at(events, address.host), kv_replay=_at(replay, address.host))
    host, _, port = where.removeprefix(_DNS).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{where!r}: write dns:NAME:PORT for all addresses of a name")
    return Name(host, int(port), events, replay)


def _endpoints(words: Sequence[str]) -> tuple[str, str]:
    """What follows a source: where its KV events are, and where those that were missed."""
    found = {"kv": "", "replay": ""}
    for word in words:
        name, _, endpoint = word.partition("=")
        if name not in found or not endpoint.startswith(_ENDPOINTS):
            raise ValueError(f"{word!r}: after an upstream come kv=tcp://HOST:PORT and replay=tcp://HOST:PORT, or none")
        found[name] = endpoint
    if found["replay"] and not found["kv"]:
        raise ValueError("replay= needs kv=: there is nothing to repeat without it")
    return found["kv"], found["replay"]


def _at(endpoint: str, host: str) -> str:
    return endpoint.replace("://*:", f"://[{host}]:" if ":" in host else f"://{host}:")


def parse_file(text: str) -> list[Address | Name]:
    """A JSON list of strings, or one a line, where blank lines and those that begin with ``#`` mean nothing.

    Raises:
        ValueError: it is neither, or a line can't be understood; the message says which.
    """
    lines = text.splitlines()
    if text.lstrip().startswith("["):
        found = json.loads(text)
        if not all(isinstance(one, str) for one in found):
            raise ValueError("a JSON file of upstreams is a list of strings")
        lines = found
    stripped = (line.strip() for line in lines)
    return [parse_source(line) for line in stripped if line and not line.startswith("#")]


class Sources:
    """Keeps `Targets` as they should be.

    Where all change at once, the old ones stay for the moment that it takes the new ones to be found there.

    Args:
        given: what is there for good.
        file: a file with more, looked at each second; one that can't be read or understood changes nothing.
        lookup: asks for a name's addresses.
    """

    def __init__(
        self,
        targets: Targets,
        given: Sequence[Address | Name],
        file: Path | None = None,
        lookup: Callable[[Name], Awaitable[list[str]]] | None = None,
    ) -> None:
        self._targets = targets
        self._given = list(given)
        self._file = file
        self._listed: list[Address | Name] = []
        self._resolved: dict[Name, list[Address]] = {}
        self._lookup = lookup or look_up
        self._seen: tuple[int, int, int] | None = None
        self._changed = False
        self._unwanted: dict[Address, float] = {}  # since when those should go that stay until others take their place

    async def run(self) -> None:
        """Look again and again, until cancelled. `look` should have been called before."""
        every = self._targets.options.resolve_every
        since = 0.0
        while True:
            pause = min(_FILE_EVERY, every)
            await asyncio.sleep(pause)
            since += pause
            await self.look(resolve=since >= every)
            if since >= every:
                since = 0.0

    def change(self, given: Sequence[Address | Name], file: Path | None = None) -> None:
        """Have other sources from the next look on, which is at most a second away."""
        if file != self._file:
            self._file, self._listed, self._seen = file, [], None
        self._given = list(given)
        self._changed = True

    async def look(self, *, resolve: bool = True) -> None:
        """Look once, and add and remove targets accordingly."""
        changed = self._read_file() or self._changed
        self._changed = False
        names = [one for one in [*self._given, *self._listed] if isinstance(one, Name)]
        for name in names:
            if resolve or name not in self._resolved:
                await self._resolve(name)
                changed = True
        if changed or resolve or self._unwanted:
            self._apply()

    def _apply(self) -> None:
        wanted: dict[Address, None] = {}
        for one in [*self._given, *self._listed]:
            wanted.update(dict.fromkeys([one] if isinstance(one, Address) else self._resolved.get(one, ())))
        places = {address.url for address in wanted}
        replaced = any(target.up for target in self._targets if target.address in wanted)
        now = perf_counter()
        unwanted: dict[Address, float] = {}
        for target in [target for target in self._targets if target.address not in wanted]:
            since = self._unwanted.get(target.address, now)
            if replaced or not wanted or not target.up or target.address.url in places or now - since > _KEPT:
                self._targets.remove(target.address)
            else:
                unwanted[target.address] = since
        self._unwanted = unwanted
        for address in wanted:
            self._targets.add(address)

    def _read_file(self) -> bool:
        """Read the file if it has changed. Whether it lists something else now."""
        if self._file is None:
            return False
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._seen:
                return False
            self._seen = stamp
            listed = parse_file(self._file.read_text())
        except (OSError, ValueError) as error:
            log.error("upstream-file=%s stays as it was: %s", self._file, error)
            return False
        changed = listed != self._listed
        self._listed = listed
        return changed

    async def _resolve(self, name: Name) -> None:
        """Look a name up. One that can't be resolved just now keeps its addresses."""
        try:
            hosts = await self._lookup(name)
        except OSError as error:
            log.warning("dns:%s:%d can't be resolved: %s", name.host, name.port, error)
            return
        self._resolved[name] = [
            Address(False, host, name.port, "", _at(name.kv_events, host), _at(name.kv_replay, host)) for host in hosts
        ]


async def look_up(name: Name) -> list[str]:
    """All addresses that the resolver has for a name.

    Raises:
        OSError: it has none, or can't be asked.
    """
    found = await asyncio.get_running_loop().getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
