"""How does a shadow compare with a model so far? Counts that a restart doesn't lose."""

import re
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from gateway.traffic.shadow.agreement import Agreement
from gateway.traffic.shadow.compare import Comparison
from gateway.wire.shadows import ShadowStanding

Loss = Literal["dropped", "failed", "unread"]

_NAMED: Final = 200  # different fields, and different failures, are told apart
_SHOWN: Final = 20
_LONGEST: Final = 200  # characters of a path: a model may make up names
_INDEX: Final = re.compile(r"\[\d+\]")


class Standing(msgspec.Struct):
    """What is known of one shadow of one model at one endpoint. ``edits`` and ``length`` are sums over pairs."""

    agreed: int = 0
    differed: int = 0
    exact: int = 0
    normalised: int = 0
    edits: float = 0.0
    length: float = 0.0
    model_refused: int = 0
    shadow_refused: int = 0
    calls_differ: int = 0
    json_differ: int = 0
    fields: dict[str, int] = {}
    dropped: int = 0
    failed: int = 0
    unread: int = 0
    failures: dict[str, int] = {}

    def add(self, comparison: Comparison, paths: Iterable[str] | None = None) -> None:
        """One more pair. ``paths``: those of the fields that differ that may be kept; None: all of them."""
        if comparison.agrees:
            self.agreed += 1
        else:
            self.differed += 1
        self.exact += comparison.exact
        self.normalised += comparison.normalised
        self.edits += comparison.edits
        self.length += comparison.length
        self.model_refused += comparison.refusals[0]
        self.shadow_refused += comparison.refusals[1]
        self.calls_differ += comparison.calls in ("arguments", "tools")
        if comparison.fields:
            paths = comparison.fields if paths is None else paths
            self.json_differ += 1
            for path in {_INDEX.sub("[*]", path)[:_LONGEST] for path in paths}:
                _count(self.fields, path)

    def lose(self, loss: Loss, why: str = "", count: int = 1) -> None:
        """So many more copies of which no pair came."""
        setattr(self, loss, getattr(self, loss) + count)
        if why:
            _count(self.failures, why, count)

    @property
    def compared(self) -> int:
        return self.agreed + self.differed

    def shown(self, endpoint: str) -> ShadowStanding:
        """The same, for operators."""
        agreement = Agreement(self.agreed, self.differed)
        low, high = agreement.bounds()
        count = self.compared

        def mean(total: float) -> float | None:
            return total / count if count else None

        often = sorted(self.fields.items(), key=lambda field: (-field[1], field[0]))
        return ShadowStanding(
            endpoint=endpoint,
            compared=count,
            agreement=agreement.share,
            agreement_low=low,
            agreement_high=high,
            exact=mean(self.exact),
            normalised=mean(self.normalised),
            edits=mean(self.edits),
            length=mean(self.length),
            model_refused=self.model_refused,
            shadow_refused=self.shadow_refused,
            calls_differ=self.calls_differ,
            json_differ=self.json_differ,
            fields=dict(often[:_SHOWN]),
            dropped=self.dropped,
            failed=self.failed,
            unread=self.unread,
            failures=dict(self.failures),
        )


class _Kept(msgspec.Struct, frozen=True):
    """A standing as it is written down."""

    model: str
    target: str
    endpoint: str
    standing: Standing


Key = tuple[str, str, str]
"""Model, target and endpoint."""

_kept: Final = msgspec.json.Decoder(list[_Kept])


def encode(standings: dict[Key, Standing]) -> bytes:
    """The standings as JSON."""
    rows: list[Any] = [_Kept(*key, standing) for key, standing in standings.items()]
    return msgspec.json.encode(rows)


def decode(data: bytes) -> dict[Key, Standing]:
    """The standings that `encode` has written.

    Raises:
        msgspec.DecodeError: it hasn't.
    """
    return {(row.model, row.target, row.endpoint): row.standing for row in _kept.decode(data)}


def _count(counts: dict[str, int], name: str, by: int = 1) -> None:
    if name in counts or len(counts) < _NAMED:
        counts[name] = counts.get(name, 0) + by
