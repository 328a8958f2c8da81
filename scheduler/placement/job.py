"""What is to be placed, and what can be decided about it?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from scheduler.prefix_index import Chain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A request, as far as placing it needs to know. Times in seconds, by the caller's clock.

    Attributes:
        uid: unique among those that have not ended.
        prompt_tokens: the prompt's length; an estimate will do.
        chains: the prompt's block hashes, packed, under the name of each way of hashing that workers use (see
            `WorkerInfo.chain`). Missing ones are never found in a cache.
        output_tokens: how long its answer is expected to become.
        priority: a higher class goes before all lower ones, where requests are held.
        tenant: who takes turns with whom, where requests are held.
        session: requests with the same one go to the same worker, under the policy `session`.
        arrival: when it came.
        deadline: when its first token is due; None if it may wait for ever. What can't be done in time is refused.
        excluded: workers that it must not go to, such as one that failed it.
    """

    uid: int | str
    prompt_tokens: int
    chains: Mapping[str, Chain] = field(default_factory=dict)
    output_tokens: int = 256
    priority: int = 0
    tenant: str = ""
    session: str = ""
    arrival: float = 0.0
    deadline: float | None = None
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placed:
    """``job`` goes to ``worker``, which is believed to have its first ``hit`` tokens cached.

    ``expected`` is in how many seconds from the decision its first token should come.
    """

    job: Job
    worker: str
    hit: int
    expected: float


@dataclass(frozen=True, slots=True)
class Refused:
    """``job`` gets no answer: its deadline can't be met anywhere. ``retry_after`` (seconds) is when it might be."""

    job: Job
    retry_after: float
    reason: Literal["deadline"] = "deadline"


Decision = Placed | Refused
