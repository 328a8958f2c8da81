"""How long does the scheduler think about a step? ``python -m bench.scheduler`` prints microseconds for each part.

A step is `schedule` and `commit` together, as the worker's loop and the simulator pay for them; nothing is computed.
Requests never finish in the decode rows, so a row shows the cost of a steady state, perhaps beside a batch of
background requests; then whole queues are worked off, where every step admits and finishes requests. Times are CPU
time: other processes matter little.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from scheduler.batch import Plan, Request, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.steptime import Coefficients, StepTime

# An H200 with Llama-3.1-8B in bf16: 3.7 ms to read the weights, 29.1 us a prefill token, 33 ns a token of context.
H200 = Coefficients(step=4.2e-3, token=2.91e-5, context=3.3e-8, pair=1.6e-9, request=1e-6)
NOBODY_STOPS = frozenset({-1})


def arrive(
    scheduler: Scheduler[Request], uids: range, tenants: int, now: float, *, length: int, background: bool = False
) -> None:
    """Add requests with prompts of ``length`` tokens that draw 2,048 tokens each."""
    for uid in uids:
        request = Request(
            uid=uid,
            tokens=[(uid * 7919 + i) % 32000 for i in range(length)],
            max_tokens=2048,
            max_len=4096,
            ttft=1.0,
            tpot=0.05,
            arrival=now,
            tenant=f"tenant {uid % tenants}",
            stop_ids=NOBODY_STOPS,
            background=background,
        )
        scheduler.add(request, now)


def build(
    running: int, waiting: int, tenants: int, batch: int = 0, *, length: int = 1024
) -> tuple[Scheduler[Request], float]:
    """A scheduler in which ``running`` requests decode and ``waiting`` ones find no room to run.

    A batch of so many background requests came before them: some hold KV, the others wait.
    """
    config = SchedulerConfig(max_running=max(running, 1))
    scheduler: Scheduler[Request] = Scheduler(config, BlockPool((running + 1 + batch) * 256, 16), StepTime(H200))
    now = 0.0
    arrive(scheduler, range(10**6, 10**6 + batch), tenants, now, length=length, background=True)
    for _ in range(200 if batch else 0):
        now = step(scheduler, now)[0]
    arrive(scheduler, range(running), tenants, now, length=length)
    while scheduler.load(now).waiting_tokens:
        now = step(scheduler, now)[0]
    arrive(scheduler, range(running, running + waiting), tenants, now, length=length)
    return scheduler, now


def step(scheduler: Scheduler[Request], now: float) -> tuple[float, float, float, Plan[Request]]:
    """Plan and commit one step in simulated time: the time after it, seconds in `schedule`, in `commit`, the plan."""
    begin = time.process_time()
    plan = scheduler.schedule(now)
    planned = time.process_time()
    sampled = [7] * sum(piece.samples for piece in plan.slices)
    now += plan.predicted
    prepared = time.process_time()
    scheduler.commit(plan, sampled, now, plan.predicted)
    return now, planned - begin, time.process_time() - prepared, plan


def decode_row(running: int, waiting: int, tenants: int, batch: int = 0, *, steps: int) -> tuple[float, float]:
    """Median microseconds of `schedule` and `commit`."""
    scheduler, now = build(running, waiting, tenants, batch)
    schedules, commits = [], []
    for _ in range(steps):
        now, schedule, commit, _ = step(scheduler, now)
        schedules.append(schedule * 1e6)
        commits.append(commit * 1e6)
    return statistics.median(schedules), statistics.median(commits)


def drain_row(requests: int, tenants: int) -> tuple[float, float, int]:
    """Mean microseconds of a step while a queue is worked off, the longest, and how many steps it took."""
    config = SchedulerConfig(max_running=256)
    scheduler: Scheduler[Request] = Scheduler(config, BlockPool(4096, 16), StepTime(H200))
    for uid in range(requests):
        shared = [uid % 10] * 256
        tokens = shared + [(uid * 7919 + i) % 32000 for i in range(64 + uid % 512)]
        scheduler.add(
            Request(
                uid=uid,
                tokens=tokens,
                max_tokens=16 + uid % 113,
                max_len=4096,
                ttft=1.0,
                tpot=0.05,
                tenant=f"tenant {uid % tenants}",
            ),
            0.0,
        )
    now, times = 0.0, []
    while scheduler.busy:
        now, schedule, commit, _ = step(scheduler, now)
        times.append((schedule + commit) * 1e6)
    return statistics.mean(times), max(times), len(times)


def add_row(length: int) -> float:
    """Microseconds to add a prompt of ``length`` tokens, hashing included."""
    scheduler: Scheduler[Request] = Scheduler(SchedulerConfig(), BlockPool(length, 16), StepTime())
    tokens = [i % 32000 for i in range(length)]
    times = []
    for uid in range(20):
        request = Request(uid=uid, tokens=tokens.copy(), max_tokens=1, max_len=length + 1, ttft=1.0, tpot=0.05)
        begin = time.process_time()
        scheduler.add(request, 0.0)
        times.append((time.process_time() - begin) * 1e6)
        scheduler.abort(uid)
    return statistics.median(times)


def main(write: Callable[[str], None] = print) -> None:
    """Measure, and write one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="steps measured a row (default: 500)")
    steps = parser.parse_args().steps
    write("| running | waiting | tenants | batch | schedule us | commit us | step us |")
    write("| --- | --- | --- | --- | --- | --- | --- |")
    rows = (
        (1, 0, 1, 0), (64, 0, 1, 0), (256, 0, 1, 0), (64, 2000, 1, 0), (64, 2000, 500, 0), (256, 2000, 10, 0),
        (64, 0, 1, 500), (256, 0, 1, 500),
    )  # fmt: skip
    for row in rows:
        schedule, commit = decode_row(*row, steps=steps)
        write("| " + " | ".join(map(str, row)) + f" | {schedule:.0f} | {commit:.0f} | {schedule + commit:.0f} |")
    for requests, tenants in ((2000, 1), (2000, 500)):
        mean, longest, count = drain_row(requests, tenants)
        figures = f"{mean:.0f} us a step (longest {longest:.0f}), {count} steps"
        write(f"\nA queue of {requests} requests, {tenants} tenant(s), worked off: {figures}")
    write(f"\nAdding a prompt of 32,768 tokens: {add_row(32768):.0f} us")


if __name__ == "__main__":
    main()
