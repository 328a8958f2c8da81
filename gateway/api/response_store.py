"""Which responses are kept, and for how long? Those used last, as many as fit: a bounded store in memory.

A response that goes on from another one needs it: using a response counts as use of all those before it, so that the
end of a conversation is forgotten before its beginning, and no kept response waits for one that is gone.

Each belongs to the API key with which it was asked for, by its id; to others it is not there.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.wire import errors
from gateway.wire.responses_answer import Response
from gateway.wire.responses_items import Item, OutputItem

MOST_RESPONSES: Final = 10_000
MOST_BYTES: Final = 64 << 20

_ENTRY_BYTES: Final = 512  # what a kept response takes beside its JSON, and an item's id beside its characters
_ITEM_BYTES: Final = 256


class _Output(msgspec.Struct, frozen=True):
    output: list[OutputItem]


_encode: Final = msgspec.json.Encoder().encode
_decode_input: Final = msgspec.json.Decoder(list[Item]).decode
_decode_output: Final = msgspec.json.Decoder(_Output).decode


class Kept(NamedTuple):
    """A kept response: the response as it was sent, and the items of its own request, both as JSON."""

    body: bytes
    request: bytes
    previous: str | None
    item_ids: Sequence[str]
    key: str = ""

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return len(self.body) + len(self.request) + _ENTRY_BYTES + _ITEM_BYTES * len(self.item_ids)

    @property
    def input(self) -> list[Item]:
        """The items of its request, without those of earlier responses."""
        return _decode_input(self.request)

    @property
    def items(self) -> list[Item]:
        """What it adds to its conversation: its input, then its output."""
        return [*self.input, *_decode_output(self.body).output]


class ResponseStore:
    """Keeps at most ``most`` responses, of at most ``most_bytes`` together. A single one that is larger is not kept."""

    def __init__(self, *, most: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # the one to be forgotten next comes first
        self._homes: dict[str, str] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, response: Response, input: Sequence[Item], key: str = "") -> None:
        """Keep ``response``, whose request had ``input``; forget others where there is no room."""
        ids = [item.id for item in (*input, *response.output)]
        kept = Kept(response.body, _encode(input), response.previous_response_id, ids, key)
        if kept.size > self._most_bytes or self._most < 1:
            return
        self.delete(response.id)
        self._kept[response.id] = kept
        self.bytes += kept.size
        for item_id in ids:
            self._homes.setdefault(item_id, response.id)  # nobody takes an id over by sending it
        self._use(response.id)
        while self.bytes > self._most_bytes or len(self._kept) > self._most:
            self.delete(next(iter(self._kept)))

    def get(self, id: str, key: str = "") -> Kept | None:
        """The response with that id, if it is still kept."""
        kept = self._kept.get(id)
        if kept is None or kept.key != key:
            return None
        self._use(id)
        return kept

    def delete(self, id: str) -> bool:
        """Forget a response and its items, if there is one; what goes on from it can't be gone on from any more."""
        kept = self._kept.pop(id, None)
        if kept is None:
            return False
        self.bytes -= kept.size
        for item_id in kept.item_ids:
            if self._homes.get(item_id) == id:
                del self._homes[item_id]
        return True

    def conversation(self, id: str, key: str = "") -> list[Item]:
        """All items up to the end of a response, from the first one's input on.

        Raises:
            ApiError: 400; it, or one that it goes on from, is not kept.
        """
        items: list[Item] = []
        for kept in reversed(self._chain(id, key)):
            items += kept.items
        self._use(id)
        return items

    def item(self, id: str, key: str = "") -> Item | None:
        """The item with that id, if the response that it belongs to is still kept."""
        home = self._homes.get(id)
        if home is None or self._kept[home].key != key:
            return None
        self._use(home)
        return next(item for item in self._kept[home].items if item.id == id)

    def _chain(self, id: str, key: str) -> list[Kept]:
        """A response and those that it goes on from, the last one first."""
        chain: list[Kept] = []
        at: str | None = id
        while at is not None:
            kept = self._kept.get(at)
            if kept is None or kept.key != key:
                raise errors.previous_response_not_found(at)
            chain.append(kept)
            at = kept.previous
        return chain

    def _use(self, id: str) -> None:
        at: str | None = id
        while at is not None and at in self._kept:
            self._kept.move_to_end(at)
            at = self._kept[at].previous
