"""`gateway.telemetry.exporter`: a collector that refuses what it gets is not stormed with it."""

import time

from flywheel.record import VERSION, Record, Timing
from gateway.telemetry.exporter import Exporter
from gateway.telemetry.measures import Measures
from gateway.telemetry.plan import TelemetryPlan
from gateway.telemetry.trace import NOTHING, Traces
from tests.gateway.telemetry.collector import collecting


def test_after_a_refusal_it_waits() -> None:
    trace = Traces(1.0).join(NOTHING)
    with collecting() as collector:
        collector.status = 400
        exporter = Exporter(TelemetryPlan(url=collector.url, metrics=False), Measures())
        for number in range(2000):
            exporter.add(Record(VERSION, f"r{number}", 1, "ok", 200, timing=Timing(ended=1.0)), trace)
        while not exporter.lost:
            time.sleep(0.01)
        exporter.add(Record(VERSION, "r", 1, "ok", 200), trace)  # enough of them are there to be sent at once
        time.sleep(0.2)
        assert collector.posts == 1 and exporter.lost < 1000
        exporter.close()
        assert collector.posts > 1 and exporter.lost == 2001
