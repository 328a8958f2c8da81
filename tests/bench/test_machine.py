import os
import subprocess
import sys
import time

from bench.machine import CpuMeter, describe

SPIN = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"


def test_describe() -> None:
    machine = describe()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory > 2**20


def test_a_childs_time_is_our_own() -> None:
    meter, start = CpuMeter(), time.monotonic()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    use, elapsed = meter.read(), time.monotonic() - start
    assert use.own * elapsed * (os.cpu_count() or 1) > 0.3


def test_the_time_of_a_process_that_is_not_ours_is_foreign() -> None:
    """The meter runs in a child, so that this process's other child is a stranger to it."""
    program = (
        "from bench.machine import CpuMeter\n"
        "meter = CpuMeter()\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "use = meter.read()\n"
        "print(use.own, use.foreign)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as metering:
        assert metering.stdout is not None
        assert metering.stdin is not None
        metering.stdout.readline()
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", SPIN], check=True)
        elapsed = time.monotonic() - start
        metering.stdin.write("\n")
        metering.stdin.flush()
        own, foreign = map(float, metering.stdout.readline().split())
    available = (elapsed + 1) * (os.cpu_count() or 1)
    assert foreign > 0.3 / available
    assert foreign > own
