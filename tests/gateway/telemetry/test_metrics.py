"""The Prometheus page."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from engine.link import Load
from gateway.telemetry.metrics import METRICS, Intervals, Metrics

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.page().decode())
        for sample in family.samples
    }


def test_the_page_has_what_the_table_names_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.model("/v1/completions", "m").intervals.observe(0.01)
    found = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(metrics.page().decode())
    }
    assert set(found) == set(METRICS)
    for name, metric in METRICS.items():
        assert found[name].type == metric.kind
        assert found[name].documentation == metric.help
        assert name.startswith("penstock_")


def test_requests_are_counted_by_their_end() -> None:
    metrics = Metrics()
    metrics.ended("/v1/completions", "m", 200, "ok")
    metrics.ended("/v1/completions", "m", 200, "ok")
    metrics.ended("/v1/completions", "m", 200, "failed")
    found = samples(metrics)
    labels = (("endpoint", "/v1/completions"), ("model", "m"))
    assert found["penstock_requests_total", (*labels, ("outcome", "ok"), ("status", "200"))] == 2
    assert found["penstock_requests_total", (*labels, ("outcome", "failed"), ("status", "200"))] == 1


def test_a_models_counters_are_made_once_and_shared() -> None:
    metrics = Metrics()
    chat, again = metrics.model("/v1/chat/completions", "m"), metrics.model("/v1/chat/completions", "m")
    completions = metrics.model("/v1/completions", "m")
    assert chat is again
    assert chat.intervals is completions.intervals
    chat.output_tokens.inc(3)
    completions.output_tokens.inc(4)
    assert samples(metrics)["penstock_output_tokens_total", (("model", "m"),)] == 7


def test_intervals_fall_into_their_buckets() -> None:
    metrics = Metrics()
    intervals = metrics.model("/v1/completions", "m").intervals
    for seconds in (0.0001, 0.001, 0.0011, 0.03, 9.0):
        intervals.observe(seconds)
    found = samples(metrics)

    def bucket(bound: str) -> float:
        return found["penstock_inter_token_latency_seconds_bucket", (("le", bound), ("model", "m"))]

    assert [bucket(bound) for bound in ("0.0005", "0.001", "0.0025", "0.03", "5.0", "+Inf")] == [1, 2, 3, 4, 4, 5]
    assert found["penstock_inter_token_latency_seconds_count", (("model", "m"),)] == 5
    assert found["penstock_inter_token_latency_seconds_sum", (("model", "m"),)] == sum((0.0001, 0.001, 0.0011, 0.03, 9))


def test_intervals_count_every_observation() -> None:
    intervals = Intervals()
    for step in range(1000):
        intervals.observe(step / 100)
    assert sum(intervals.counts) == 1000


def test_a_worker_is_shown() -> None:
    metrics = Metrics()
    metrics.worker_up("w0", True)
    metrics.worker_restarted("w0")
    load = Load(
        waiting=1, running=2, waiting_tokens=3, kv_used=4, kv_total=5, backlog=0.6, steps_total=7, preemptions_total=8
    )
    metrics.watch_worker("w0", load)
    found = samples(metrics)
    names = (
        *("up", "restarts_total", "waiting", "running", "waiting_tokens", "kv_used_tokens", "kv_total_tokens"),
        *("backlog_seconds", "steps", "preemptions"),
    )
    values = [found[f"penstock_worker_{name}", (("worker", "w0"),)] for name in names]
    assert values == [1, 1, 1, 2, 3, 4, 5, 0.6, 7, 8]


def test_open_metrics_have_examples_where_something_was_counted() -> None:
    metrics = Metrics()
    model = metrics.model("/v1/completions", "m")
    model.duration.observe(0.3)
    metrics.exemplify("/v1/completions", "m", 0.02, 0.3, TRACE)  # as for an answer that is no stream
    metrics.exemplify("/v1/completions", "nobody", 0.02, 0.3, TRACE)
    page = metrics.open_page().decode()
    families = {family.name: family for family in open_metrics_families(page)}  # type: ignore[no-untyped-call]
    assert {f"{name}_total" if one.type == "counter" else name for name, one in families.items()} == set(METRICS)
    found = {
        (sample.name, sample.labels["le"]): sample.exemplar
        for name in ("penstock_request_duration_seconds", "penstock_time_to_first_token_seconds")
        for sample in families[name].samples
        if sample.exemplar is not None
    }
    ((where, example),) = found.items()
    assert where == ("penstock_request_duration_seconds_bucket", "0.5")
    assert example is not None and (example.labels, example.value) == ({"trace_id": TRACE}, 0.3)
    assert TRACE not in metrics.page().decode()  # the older format has no place for them


def test_the_request_log_and_lost_traces_are_shown() -> None:
    class Log:
        records, lost, failures, backlog = 5, 1, 2, 3000

    metrics = Metrics()
    metrics.request_log.log = metrics.request_log.traces = Log()
    found = samples(metrics)
    names = ("log_records_total", "log_lost_total", "log_failures_total", "log_backlog_bytes", "traces_lost_total")
    assert [found[f"penstock_{name}", ()] for name in names] == [5, 1, 2, 3000, 1]
