"""How is what one target says of its cache brought to placement, and for how long?"""

from gateway.fleet.kv_events import KvEvents
from gateway.fleet.upstream.target import Target
from gateway.lane.precise import Precise


class Following:
    """Follows one target's KV events until cancelled. ``losses``: how often nothing could be believed any more."""

    def __init__(self, target: Target, placing: Precise) -> None:
        address = target.address
        self._cached = placing.follow(target)
        self._events = KvEvents(target.name, address.kv_events, self._cached, address.kv_replay or None)

    async def run(self) -> None:
        """Follow."""
        await self._events.run()

    @property
    def blocks(self) -> int:
        """Blocks that the target has cached."""
        return len(self._cached)

    @property
    def losses(self) -> int:
        return self._events.losses
