"""How long do the threads that compute spin while they wait for each other?

torch and our kernels share one OpenMP pool. GNU's OpenMP spins 300,000 rounds (13 ms) before a waiting thread sleeps.
On a machine of its own that is fastest, but whenever another process has one of the cores, the spinning keeps the
thread that everybody waits for from running. `tiny`, one decode step on two cores of a Xeon with AMX, median ms at
batch 1 / 64, alone and beside a process that never sleeps (p99 in parentheses):

    300,000 rounds   1.77 / 5.9   alone    5.8 (169) / 16 (20..363)   beside
     10,000          1.89 / 6.4            10.8 (15) / 28 (60)
      3,000          2.02 / 7.3             5.2 (5.4) / 17 (26)
      1,000          4.8 / 11               3.6 (4.3) / 15 (25)

A server is never alone: its own gateway is the other process. 3,000 rounds lose a tenth to a fifth alone, and keep the
worst step within a few times the usual one.
"""

import os
import sys
from typing import Final

SPIN_ROUNDS: Final = 3000


def bound_spinning() -> None:
    """Let waiting threads sleep after `SPIN_ROUNDS`, unless the environment says otherwise (``OMP_WAIT_POLICY``).

    Raises:
        RuntimeError: torch is loaded, and OpenMP has made up its mind.
    """
    if "torch" in sys.modules:
        raise RuntimeError("bound_spinning must be called before torch is imported: OpenMP reads its settings once")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_ROUNDS))
