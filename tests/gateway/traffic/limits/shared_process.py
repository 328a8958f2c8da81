"""One of several processes that count limits together: what tests of that run as ``python -m``.

It does as its standard input says, a word a line, and answers in a line: ``ask`` for one request of 10 tokens,
``settle`` the one granted last, ``flood SECONDS``: as many requests as can be had in that time, each settled with 5.
"""

import sys
import time
from pathlib import Path

from gateway.traffic.limits.contract import Granted, Reservation, Verdict
from gateway.traffic.limits.limit import Account, Limits, Rate
from gateway.traffic.limits.shared import SharedStore

ACCOUNT = Account("team-a", Limits(concurrent=3, tokens=Rate(1_000_000, 1)))
FLOODED = Account("team-b", Limits(requests=Rate(500, 60), tokens=Rate(100_000, 60)))


def _refuse(verdict: Verdict) -> None:
    raise AssertionError(verdict)


def _ask(store: SharedStore, account: Account) -> Reservation | None:
    verdict = store.reserve((account,), 10, _refuse)
    return verdict.reservation if isinstance(verdict, Granted) else None


def _flood(store: SharedStore, seconds: float) -> int:
    granted, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if (reservation := _ask(store, FLOODED)) is not None:
            reservation.settle(5)
            granted += 1
        else:
            time.sleep(0.001)
    return granted


def main(folder: str) -> None:
    store = SharedStore(Path(folder))
    held: list[Reservation] = []
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["ask"]:
                reservation = _ask(store, ACCOUNT)
                held += [reservation] if reservation is not None else []
                print("refused" if reservation is None else "granted", flush=True)
            case ["settle"]:
                held.pop().settle(7)
                print("settled", flush=True)
            case ["flood", seconds]:
                print(_flood(store, float(seconds)), flush=True)
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
