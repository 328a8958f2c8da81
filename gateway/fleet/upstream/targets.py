"""Which upstreams are there now, and which of them may get a request for a model?"""

import logging
from collections.abc import Callable, Iterable, Iterator

from gateway.fleet.upstream.address import Address
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.fleet.upstream.target import ANY_MODEL, Target

log = logging.getLogger(__name__)


class Targets:
    """The targets of one group; they come and go while the gateway runs.

    Args:
        options: how they are spoken to.
        models: the names that they serve; None: each is asked for its own.
        group: the group's name, if there are several.
    """

    def __init__(self, options: UpstreamOptions, models: frozenset[str] | None = None, group: str = "") -> None:
        self.options = options
        self.group = group
        self._models = models
        self._here: dict[Address, Target] = {}
        self._leaving: list[Target] = []
        self._ready: dict[str, list[Target]] = {}
        self.continuing = False
        """Whether any of them can go on with others' answers."""
        self.on_added: list[Callable[[Target], None]] = []
        self.on_removed: list[Callable[[Target], None]] = []
        self.on_changed: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Target]:
        return iter(self._here.values())

    def __len__(self) -> int:
        return len(self._here)

    @property
    def leaving(self) -> Iterable[Target]:
        """Those that were removed and still answer something."""
        return self._leaving

    def add(self, address: Address) -> Target:
        """Have a target, or have it still."""
        found = self._here.get(address)
        if found is None:
            found = self._here[address] = Target(address, self.options, self._models, self.group)
            log.info("upstream=%s added", found.name)
            self.changed()
            for tell in self.on_added:
                tell(found)
        return found

    def remove(self, address: Address) -> None:
        """Send no more to a target. What it is answering goes on."""
        target = self._here.pop(address, None)
        if target is None:
            return
        target.close()
        if target.in_flight:
            self._leaving.append(target)
        log.info("upstream=%s removed, %d requests to finish", target.name, target.in_flight)
        self.changed()
        for tell in self.on_removed:
            tell(target)

    def changed(self) -> None:
        """A target's models, or whether it is available, changed: what was found before is no longer so."""
        self._ready.clear()
        self.continuing = any(target.continues for target in self._here.values())
        self._leaving = [target for target in self._leaving if target.in_flight]
        for tell in self.on_changed:
            tell()

    def ready(self, model: str, now: float) -> list[Target]:
        """Those that serve ``model`` and may get a request now. Not to be changed."""
        found = self._ready.get(model)
        if found is None:
            serving = [target for target in self._here.values() if target.serves(model)]
            found = [target for target in serving if target.available(now)]
            # An open breaker ends by itself, and a half-open one by whoever asks: that can't be remembered.
            if serving and all(target.state(now) == "closed" for target in serving):
                if len(self._ready) >= 4096:
                    self._ready.clear()  # with ANY_MODEL, clients make the names up
                self._ready[model] = found
        return found

    def serving(self, model: str) -> list[Target]:
        """Those that serve ``model``, whether they may get a request or not."""
        return [target for target in self._here.values() if target.serves(model)]

    def names(self) -> list[str]:
        """The names that are served, in the order in which they were found."""
        found: dict[str, None] = {}
        for target in self._here.values():
            if target.models is not None and target.models is not ANY_MODEL:
                found.update(dict.fromkeys(sorted(target.models)))
        return list(found)

    def close_unused(self, now: float) -> None:
        for target in self._here.values():
            target.close_unused(now)

    def close(self) -> None:
        for target in [*self._here.values(), *self._leaving]:
            target.close()
