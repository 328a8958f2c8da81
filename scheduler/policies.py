"""By which policies can a worker be chosen? Their names alone, for settings and command lines to have cheaply.

`scheduler.placement.policies` says what each does.
"""

from typing import Final, Literal, get_args

Policy = Literal[
    "held",
    "immediate",
    "predicted-ttft",
    "prefix-load",
    "lmetric",
    "least-load",
    "two-choices",
    "round-robin",
    "session",
]
POLICIES: Final[tuple[str, ...]] = get_args(Policy)
