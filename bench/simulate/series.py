"""How did a simulated fleet do over time?"""

from collections.abc import Sequence

import msgspec

from bench.simulate.worker import SimWorker


class Series(msgspec.Struct):
    """Figures of the whole fleet, one each ``interval`` seconds, from ``interval`` on.

    Sums: ``running`` and ``waiting`` requests at that moment; over the interval before it, ``prompt_tokens`` admitted,
    ``cached_tokens`` of them found in caches, ``output_tokens`` and ``preemptions``. ``kv_use`` and ``kv_most`` are the
    mean worker's and the fullest one's, as shares.
    """

    interval: float
    running: list[int] = msgspec.field(default_factory=list)
    waiting: list[int] = msgspec.field(default_factory=list)
    prompt_tokens: list[int] = msgspec.field(default_factory=list)
    cached_tokens: list[int] = msgspec.field(default_factory=list)
    output_tokens: list[int] = msgspec.field(default_factory=list)
    preemptions: list[int] = msgspec.field(default_factory=list)
    kv_use: list[float] = msgspec.field(default_factory=list)
    kv_most: list[float] = msgspec.field(default_factory=list)

    def look(self, workers: Sequence[SimWorker]) -> None:
        """Note how the fleet does now, at the end of an interval."""
        loads = [worker.load for worker in workers]
        self.running.append(sum(load.running for load in loads))
        self.waiting.append(sum(load.waiting for load in loads))
        for name in ("prompt_tokens", "cached_tokens", "output_tokens", "preemptions"):
            values: list[int] = getattr(self, name)
            values.append(sum(getattr(load, f"{name}_total") for load in loads) - sum(values))
        uses = [load.kv_used / load.kv_total for load in loads]
        self.kv_use.append(round(sum(uses) / len(uses), 6))
        self.kv_most.append(round(max(uses), 6))


class Extras(msgspec.Struct, frozen=True):
    """What a simulation knows beside its records.

    ``hit_rate``: of all prompt tokens admitted, those found in a cache. ``service_gap``: see `bench.simulate.gaps`, the
    worst worker's; None where there was one tenant. ``busiest``: the busiest worker's computed tokens over the mean
    worker's. ``kv_use`` is the mean over time, ``kv_most`` the highest of any worker at the end of an interval.
    """

    workers: int
    seconds: float
    steps: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    hit_rate: float
    preemptions: int
    kv_use: float
    kv_most: float
    busiest: float
    service_gap: float | None = None


def extras_of(workers: Sequence[SimWorker], series: Series, seconds: float) -> Extras:
    """Sum up a simulation that took ``seconds`` (of simulated time)."""
    loads = [worker.load for worker in workers]
    prompt_tokens = sum(load.prompt_tokens_total for load in loads)
    cached_tokens = sum(load.cached_tokens_total for load in loads)
    computed = [load.prompt_tokens_total - load.cached_tokens_total + load.output_tokens_total for load in loads]
    gaps = [worker.gaps.largest for worker in workers if worker.gaps is not None]
    return Extras(
        workers=len(workers),
        seconds=round(seconds, 6),
        steps=sum(load.steps_total for load in loads),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        output_tokens=sum(load.output_tokens_total for load in loads),
        hit_rate=cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        preemptions=sum(load.preemptions_total for load in loads),
        kv_use=sum(series.kv_use) / len(series.kv_use) if series.kv_use else 0.0,
        kv_most=max(series.kv_most, default=0.0),
        busiest=max(computed) * len(computed) / sum(computed) if sum(computed) else 1.0,
        service_gap=max(gaps) if gaps else None,
    )
