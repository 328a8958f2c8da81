"""Small workloads, and a machine whose figures are easy to reckon with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.load.arrivals import Arrivals, parse_arrivals
from bench.load.lengths import fixed, parse_distribution
from bench.load.records import Record
from bench.load.workload import Load, Outline, Synthetic
from bench.simulate.fleet import Fleet
from bench.simulate.machines import Machine
from bench.simulate.policies import Placement, RoundRobin
from bench.simulate.series import Extras
from bench.simulate.worker import Setting

# A step of 10 ms, and 10,000 tokens/s of prefill.
MACHINE = Machine(name="test", step=0.01, token=1e-4, context=0.0, pair=0.0, request=0.0, kv_tokens=16_000)


@dataclass(frozen=True, kw_only=True)
class Listed(Load):
    """These outlines."""

    outlined: Sequence[Outline]
    arrivals: Arrivals | None = None

    @property
    def title(self) -> str:
        return "listed"

    def outlines(self) -> Iterator[Outline]:
        return iter(self.outlined)


def listed(*outlines: Outline, arrivals: str | None = None, duration: float | None = None) -> Listed:
    """A workload of these outlines."""
    return Listed(outlined=outlines, arrivals=parse_arrivals(arrivals) if arrivals else None, duration=duration)


def chats(rate: str = "poisson:8", requests: int = 60, shared: int = 0, output: int = 12) -> Synthetic:
    """Short chats, with three shared prefixes if ``shared`` says how long."""
    return Synthetic(
        requests=requests,
        arrivals=parse_arrivals(rate),
        input=parse_distribution("lognormal:200,0.8,max=1000"),
        output=fixed(output),
        shared=shared,
        groups=3,
    )


def simulate(
    load: Load, setting: Setting | None = None, workers: int = 1, placement: Placement | None = None
) -> tuple[list[Record], Extras, Fleet]:
    """The records in the order of the requests."""
    fleet = Fleet(setting or Setting(machine=MACHINE), workers, placement or RoundRobin(), interval=1.0)
    records: list[Record] = []
    extras = fleet.run(load, records.append)
    for worker in fleet.workers:
        worker.scheduler.check_integrity()
    return sorted(records, key=lambda record: record.index), extras, fleet
