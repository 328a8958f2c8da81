"""Which worker gets a request, and when? The fleet's half of the scheduler.

A `Placer` is told what happens: jobs arrive, progress and end; workers come, report, store blocks and go. Asked to
`decide`, it says which jobs go where. It knows no clock and no socket, so the same code serves a gateway and the
simulator.
"""

from scheduler.placement.config import PlacementConfig
from scheduler.placement.job import Decision, Job, Placed, Refused
from scheduler.placement.placer import Placer
from scheduler.placement.worker import Report, Worker, WorkerInfo
from scheduler.policies import POLICIES

__all__ = [
    "POLICIES",
    "Decision",
    "Job",
    "Placed",
    "PlacementConfig",
    "Placer",
    "Refused",
    "Report",
    "Worker",
    "WorkerInfo",
]
