"""What does each policy look at? A few lines each: the cost of a worker for a job, of which the smallest wins.

Seconds, where a policy reckons in seconds. A worker in its slow start (weight below 1) costs as if it were that much
slower or busier.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from scheduler.placement.job import Job
from scheduler.placement.worker import Worker

Cost = Callable[[Job, Worker, int, float, float, float], float]
"""What a worker costs a job: of whose prompt ``hit`` tokens are cached there, which takes ``seconds`` to read there
after a ``wait``, at a ``price`` of capacity."""


def immediate(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """What a placement costs everybody: the wait, and the work at the price of capacity.

    For what a hit spares is spared for everybody who comes after. A worker that reads the shortest first makes those
    wait that are overtaken, so each costs the work once more; the pace of its decodes it keeps by itself. Elsewhere,
    this one decodes beside the others, and the others beside this one.
    """
    if worker.info.shortest_first:
        return wait + (price + worker.overtaken(seconds)) * seconds
    return wait + price * seconds + job.output_tokens * worker.reading(job.prompt_tokens)


def predicted_ttft(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """When the first token would come, as in Mooncake (Qin et al., FAST 2025)."""
    return wait + seconds


def prefix_load(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """Prompt tokens to compute: those that wait there, and those of this job that aren't cached."""
    return (worker.unread + job.prompt_tokens - hit) / worker.weight


def lmetric(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """Prompt tokens to compute, times requests: no weight between the two is needed (LMetric, 2025)."""
    return (worker.unread + job.prompt_tokens - hit) * (worker.requests + 1) / worker.weight


def least_load(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """Seconds of tokens, and 0.15 k / (1 - k) for a KV cache that is used to a share k (SMG's least_load)."""
    total = worker.kv_total
    used = min(worker.kv_used / total, 0.99) if total else 0.0
    return (worker.speed.token * (worker.unread + worker.context) + 0.15 * used / (1 - used)) / worker.weight


def outstanding(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """Requests under way."""
    return (worker.requests + 1) / worker.weight


def everybody(job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
    """All workers come into question."""
    return workers


def one_after_the_other(job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
    """The next one."""
    return (workers[turn % len(workers)],)


def two_of_them(job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
    """Two, drawn as if at random (Mitzenmacher 2001)."""
    count = len(workers)
    first = mixed(turn) % count
    second = (first + 1 + mixed(turn + (1 << 32)) % (count - 1)) % count if count > 1 else first
    return workers[first], workers[second]


def favourite(job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
    """A session's favourite, by rendezvous hashing (Thaler and Ravishankar 1998): who comes or goes moves few sessions.

    Whoever has no session is anybody's.
    """
    if not job.session:
        return workers
    key = hashed(job.session)
    return (max(workers, key=lambda worker: mixed(key ^ hashed(worker.info.name))),)


class Policy(NamedTuple):
    """Who comes into question, and what each of these costs. ``holds``: jobs wait in the gateway."""

    cost: Cost
    candidates: Callable[[Job, Sequence[Worker], Mapping[str, int], int], Sequence[Worker]] = everybody
    holds: bool = False


BY_NAME: Final[Mapping[str, Policy]] = {
    "held": Policy(immediate, holds=True),
    "immediate": Policy(immediate),
    "predicted-ttft": Policy(predicted_ttft),
    "prefix-load": Policy(prefix_load),
    "lmetric": Policy(lmetric),
    "least-load": Policy(least_load),
    "two-choices": Policy(outstanding, two_of_them),
    "round-robin": Policy(outstanding, one_after_the_other),
    "session": Policy(outstanding, favourite),
}


def mixed(number: int) -> int:
    """64 bits that look random: SplitMix64's last step (Steele, Lea and Flood 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ number >> 31


def hashed(text: str) -> int:
    """64 bits of a text, the same in every process."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
