"""What does the Prometheus page say, and how is it counted without slowing a token down?

`METRICS` is the table of all that is exported; the documentation is tested against it. What happens once a request or
once a token is `Count`s and `Intervals`, looked up once: a list increment, 0.13 µs, where prometheus-client takes a
lock and walks its buckets, 0.64 µs (Python 3.11, Zen 5). It still writes the page.
"""

import contextlib
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.registry import Collector

from engine.link import Load
from gateway.telemetry.request_log import RequestLogMetrics
from gateway.telemetry.rollouts import RolloutMetrics
from gateway.telemetry.upstreams import UpstreamMetrics

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The format that has exemplars."""

Outcome = Literal["ok", "invalid", "refused", "failed", "disconnected"]


def outcome_of(status: int) -> Outcome:
    """What an answer with an error's ``status`` counts as."""
    if status == 429:
        return "refused"
    return "invalid" if status < 500 else "failed"


class Metric(NamedTuple):
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final[dict[str, Metric]] = {
    "penstock_requests_total": Metric(
        "counter",
        "Requests that have ended. outcome: ok; invalid (the client's fault); refused (the queue was full); failed "
        "(the server's fault, also in the middle of a stream); disconnected (the client left first).",
        ("endpoint", "model", "status", "outcome"),
    ),
    "penstock_requests_in_flight": Metric("gauge", "Requests that are being answered now."),
    "penstock_requests_queued": Metric("gauge", "Requests that wait for their first token."),
    "penstock_requests_refused_total": Metric("counter", "Requests answered 429 because the queue was full."),
    "penstock_disconnects_total": Metric("counter", "Clients that left before their answer was complete."),
    "penstock_time_to_first_token_seconds": Metric(
        "histogram", "From the request's last byte to the first token; lines of batches aside.", ("endpoint", "model")
    ),
    "penstock_inter_token_latency_seconds": Metric(
        "histogram", "Between two arrivals of tokens of one request, seen once per engine step.", ("model",)
    ),
    "penstock_request_duration_seconds": Metric(
        "histogram", "From the request's last byte to the end of its answer.", ("endpoint", "model")
    ),
    "penstock_prompt_tokens_total": Metric("counter", "Prompt tokens of requests that got a first token.", ("model",)),
    "penstock_cached_tokens_total": Metric(
        "counter", "Those of the prompt tokens that the worker found in its prefix cache.", ("model",)
    ),
    "penstock_output_tokens_total": Metric("counter", "Tokens that the worker generated.", ("model",)),
    "penstock_key_requests_total": Metric("counter", "Requests of an API key with limits that were let in.", ("key",)),
    "penstock_key_tokens_total": Metric("counter", "Tokens that were counted for an API key with limits.", ("key",)),
    "penstock_key_refused_total": Metric(
        "counter",
        "Requests of an API key that were refused. limit: requests, tokens, concurrent or day; unknown (what counts "
        "could not be reached).",
        ("key", "limit"),
    ),
    "penstock_variant_requests_total": Metric(
        "counter",
        "Requests for a model with variants that have ended, by the variant or fallback that answered.",
        ("model", "variant", "outcome"),
    ),
    "penstock_fallbacks_total": Metric(
        "counter",
        "Requests that went over to a fallback, by the variant or fallback that could not answer. cause: unavailable, "
        "timeout, overloaded, error or context_length.",
        ("model", "variant", "cause"),
    ),
    "penstock_shadow_requests_total": Metric(
        "counter",
        "Copies of requests for a shadow. outcome: compared; dropped (no room, or the target rests because it kept "
        "failing); failed (the target gave no answer); unread (one of the answers was an error, incomplete, or can't "
        "be read).",
        ("model", "target", "outcome"),
    ),
    "penstock_shadow_agreement_ratio": Metric(
        "gauge",
        "Share of a shadow's answers with which one would do the same as with the model's own.",
        ("model", "target"),
    ),
    "penstock_shadow_waiting": Metric("gauge", "Copies of requests that wait for a shadow."),
    "penstock_retries_total": Metric("counter", "Requests sent to another upstream because the first one failed."),
    "penstock_hedges_total": Metric("counter", "Requests sent to a second upstream because the first one was late."),
    "penstock_hedges_won_total": Metric("counter", "Those of the hedges that answered first."),
    "penstock_streams_continued_total": Metric(
        "counter", "Streams that another upstream went on with because theirs broke off."
    ),
    "penstock_breaker_openings_total": Metric("counter", "How often an upstream's circuit breaker opened."),
    "penstock_upstream_requests_total": Metric(
        "counter",
        "Requests sent to an upstream. outcome: answered; refused (429); failed (5xx, or no answer); abandoned (the "
        "client left, or another upstream was quicker).",
        ("upstream", "outcome"),
    ),
    "penstock_upstream_in_flight": Metric("gauge", "Requests that an upstream is answering for us.", ("upstream",)),
    "penstock_upstream_up": Metric("gauge", "1 if an upstream answered the last probe, else 0.", ("upstream",)),
    "penstock_upstream_breaker": Metric(
        "gauge", "An upstream's circuit breaker: 0 closed, 1 half-open, 2 open.", ("upstream",)
    ),
    "penstock_upstream_running": Metric("gauge", "Requests running, by the upstream's own metrics.", ("upstream",)),
    "penstock_upstream_waiting": Metric("gauge", "Requests waiting, by the upstream's own metrics.", ("upstream",)),
    "penstock_upstream_kv_used_ratio": Metric(
        "gauge", "Share of the KV cache in use, by the upstream's own metrics.", ("upstream",)
    ),
    "penstock_upstream_kv_blocks": Metric(
        "gauge", "Blocks that an upstream has cached, by its KV events.", ("upstream",)
    ),
    "penstock_upstream_kv_losses_total": Metric(
        "counter",
        "How often an upstream's KV events had a gap that could not be filled, or began anew: nothing is believed then",
        ("upstream",),
    ),
    "penstock_upstream_believed_cached_tokens_total": Metric(
        "counter",
        "Prompt tokens that an upstream was believed to have cached, by its KV events, of requests placed by them that "
        "said what they used.",
        ("upstream",),
    ),
    "penstock_upstream_found_cached_tokens_total": Metric(
        "counter", "Prompt tokens of the same requests that it said it had found in its cache.", ("upstream",)
    ),
    "penstock_rollout_weight": Metric("gauge", "A canary's share of its model's traffic, in percent.", ("model",)),
    "penstock_rollout_status": Metric("gauge", "A rollout: 0 running or held, 1 promoted, 2 rolled back.", ("model",)),
    "penstock_rollout_evidence": Metric(
        "gauge",
        "A guard's evidence as a share of what it takes. kind: worse (at 1 the canary is rolled back); harmless (at 1, "
        "of all guards, it may get more traffic).",
        ("model", "guard", "kind"),
    ),
    "penstock_rollout_compared_requests_total": Metric(
        "counter", "Requests that a rollout has compared. arm: control or canary.", ("model", "arm")
    ),
    "penstock_rollout_unsaved_total": Metric(
        "counter", "How often what rollouts know could not be saved, so that a restart would have undone some of it."
    ),
    "penstock_rollout_untold_requests_total": Metric(
        "counter",
        "Requests that count for no rollout because the gateway process that leads was away, or was told of enough "
        "others.",
    ),
    "penstock_log_records_total": Metric("counter", "Records of requests, and feedback, written to the request log."),
    "penstock_log_lost_total": Metric(
        "counter",
        "Records that the disk didn't take, and for which there was no room to wait, or whose file was removed.",
    ),
    "penstock_log_failures_total": Metric("counter", "Attempts to write to the request log that failed."),
    "penstock_log_backlog_bytes": Metric("gauge", "What waits in memory for the disk to take it into the request log."),
    "penstock_traces_lost_total": Metric(
        "counter", "Traces that the OTLP collector didn't take, or for which there was no room to wait."
    ),
    "penstock_requests_moved_total": Metric(
        "counter", "Answers that another worker went on with because theirs was lost.", ("model",)
    ),
    "penstock_requests_held": Metric("gauge", "Requests that the gateway has not sent to a worker yet.", ("model",)),
    "penstock_model_up": Metric("gauge", "1 while anybody answers for a model, else 0.", ("model",)),
    "penstock_worker_up": Metric("gauge", "1 while the worker can take requests, else 0.", ("worker",)),
    "penstock_worker_restarts_total": Metric("counter", "Workers started again after they died.", ("worker",)),
    "penstock_worker_waiting": Metric("gauge", "Requests waiting in the worker.", ("worker",)),
    "penstock_worker_running": Metric("gauge", "Requests running in the worker.", ("worker",)),
    "penstock_worker_waiting_tokens": Metric("gauge", "Prompt tokens the worker still has to compute.", ("worker",)),
    "penstock_worker_backlog_seconds": Metric(
        "gauge", "How long the worker expects to take for the prompts at hand.", ("worker",)
    ),
    "penstock_worker_kv_used_tokens": Metric(
        "gauge", "Tokens that the KV cache blocks in use have room for.", ("worker",)
    ),
    "penstock_worker_kv_total_tokens": Metric("gauge", "Tokens that the whole KV cache has room for.", ("worker",)),
    "penstock_worker_steps": Metric("gauge", "Engine steps since the worker's start.", ("worker",)),
    "penstock_worker_preemptions": Metric("gauge", "Preemptions since the worker's start.", ("worker",)),
}

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEPS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Count:
    """A counter that costs an addition."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Intervals:
    """A histogram of seconds that costs a bisection and an increment. ``bounds`` are those of its buckets.

    ``examples`` has, by bucket, the last request that was told to be one.
    """

    __slots__ = ("bounds", "counts", "examples", "total")

    def __init__(self, bounds: Sequence[float] = _STEPS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.examples: dict[int, Exemplar] = {}

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def exemplify(self, seconds: float, trace_id: str) -> None:
        """Show a trace as an example of what is counted here."""
        self.examples[bisect_left(self.bounds, seconds)] = Exemplar({"trace_id": trace_id}, seconds, time.time())


class _Counts(Collector):
    """Shows prometheus-client the `Count`s of one metric, by their labels."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.children: defaultdict[tuple[str, ...], Count] = defaultdict(Count)

    def collect(self) -> Iterator[CounterMetricFamily]:
        metric = METRICS[self._name]
        family = CounterMetricFamily(self._name.removesuffix("_total"), metric.help, labels=metric.labels)
        for labels, count in self.children.items():
            family.add_metric(labels, count.value)
        yield family


class _Histograms(Collector):
    """Shows prometheus-client the `Intervals` of one metric, by their labels."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self._name = name
        self.children: defaultdict[tuple[str, ...], Intervals] = defaultdict(lambda: Intervals(bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        metric = METRICS[self._name]
        family = HistogramMetricFamily(self._name, metric.help, labels=metric.labels)
        for labels, intervals in self.children.items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            seen = 0
            bounds = [*map(str, intervals.bounds), "+Inf"]
            for place, (bound, count) in enumerate(zip(bounds, intervals.counts, strict=True)):
                seen += count
                example = intervals.examples.get(place) if count else None
                buckets.append((bound, float(seen)) if example is None else (bound, float(seen), example))
            family.add_metric(labels, buckets, intervals.total)
        yield family


class _ModelsUp(Collector):
    """Which names somebody answers for; ``faults`` has why nobody does."""

    def __init__(self) -> None:
        self.faults: Callable[[], Mapping[str, str | None]] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        metric = METRICS["penstock_model_up"]
        family = GaugeMetricFamily("penstock_model_up", metric.help, labels=metric.labels)
        for model, fault in self.faults().items():
            family.add_metric([model], fault is None)
        yield family


class ModelMetrics(NamedTuple):
    """What is counted for one model by one endpoint, ready to be incremented."""

    first_token: Intervals
    duration: Intervals
    intervals: Intervals
    prompt_tokens: Count
    cached_tokens: Count
    output_tokens: Count


class Metrics:
    """Every metric of one gateway process, in a registry of its own.

    The labels are bounded by what the gateway serves: ``endpoint`` is a path that exists (else ``other``), ``model`` a
    served name (else empty), ``status`` an HTTP status, ``key`` the id of a configured key.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the page for nothing
        self.registry = CollectorRegistry()
        self._intervals = self._histograms("penstock_inter_token_latency_seconds", _STEPS)
        self._requests = self._counts("penstock_requests_total")
        self._ended: dict[tuple[str, str, int, Outcome], Count] = {}
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self.in_flight = self._gauge("penstock_requests_in_flight")
        self.queued = self._gauge("penstock_requests_queued")
        self.refused = self._counter("penstock_requests_refused_total")
        self.disconnects = self._counter("penstock_disconnects_total")
        self._first_token = self._histograms("penstock_time_to_first_token_seconds", _SECONDS)
        self._duration = self._histograms("penstock_request_duration_seconds", _SECONDS)
        self._prompt_tokens = self._counts("penstock_prompt_tokens_total")
        self._cached_tokens = self._counts("penstock_cached_tokens_total")
        self._output_tokens = self._counts("penstock_output_tokens_total")
        self._key_requests = self._counts("penstock_key_requests_total")
        self._key_tokens = self._counts("penstock_key_tokens_total")
        self._key_refused = self._counts("penstock_key_refused_total")
        self._variant_requests = self._counts("penstock_variant_requests_total")
        self._fallbacks = self._counts("penstock_fallbacks_total")
        self._shadow_requests = self._counts("penstock_shadow_requests_total")
        self._shadow_agreement = self._gauge("penstock_shadow_agreement_ratio")
        self.shadow_waiting = self._gauge("penstock_shadow_waiting")
        self.models = _ModelsUp()
        self.registry.register(self.models)
        self.upstreams = UpstreamMetrics(METRICS)
        self.registry.register(self.upstreams)
        self.rollouts = RolloutMetrics(METRICS)
        self.registry.register(self.rollouts)
        self.request_log = RequestLogMetrics(METRICS)
        self.registry.register(self.request_log)
        self.moved = self._counter("penstock_requests_moved_total")
        self.held = self._gauge("penstock_requests_held")
        self._up = self._gauge("penstock_worker_up")
        self._restarts = self._counter("penstock_worker_restarts_total")
        self._load = {
            field: self._gauge(f"penstock_worker_{name}")
            for field, name in (
                ("waiting", "waiting"),
                ("running", "running"),
                ("waiting_tokens", "waiting_tokens"),
                ("backlog", "backlog_seconds"),
                ("kv_used", "kv_used_tokens"),
                ("kv_total", "kv_total_tokens"),
                ("steps_total", "steps"),
                ("preemptions_total", "preemptions"),
            )
        }

    def model(self, endpoint: str, model: str) -> ModelMetrics:
        """The children of ``model`` at ``endpoint``: the same object each time."""
        found = self._models.get((endpoint, model))
        if found is None:
            found = self._models[endpoint, model] = ModelMetrics(
                self._first_token.children[endpoint, model],
                self._duration.children[endpoint, model],
                self._intervals.children[(model,)],
                self._prompt_tokens.children[(model,)],
                self._cached_tokens.children[(model,)],
                self._output_tokens.children[(model,)],
            )
        return found

    def exemplify(self, endpoint: str, model: str, first_token: float | None, duration: float, trace_id: str) -> None:
        """Show a request, whose trace is kept, as an example of those that took as long; times are in seconds."""
        found = self._models.get((endpoint, model))
        if found is not None:
            found.duration.exemplify(duration, trace_id)
            if first_token is not None:
                found.first_token.exemplify(first_token, trace_id)

    def ended(self, endpoint: str, model: str, status: int, outcome: Outcome) -> None:
        """Count a request that has ended."""
        key = (endpoint, model, status, outcome)
        child = self._ended.get(key)
        if child is None:
            child = self._ended[key] = self._requests.children[endpoint, model, str(status), outcome]
        child.inc()

    def variant_ended(self, model: str, variant: str, outcome: Outcome) -> None:
        """Count a request for a model with variants."""
        self._variant_requests.children[model, variant, outcome].inc()

    def fell_back(self, model: str, variant: str, cause: str) -> None:
        """Count a request that another target answers."""
        self._fallbacks.children[model, variant, cause].inc()

    def key_admitted(self, key: str) -> None:
        """Count a request of a key with limits."""
        self._key_requests.children[(key,)].inc()

    def key_used(self, key: str, tokens: int) -> None:
        """Count what a request of a key with limits has used."""
        self._key_tokens.children[(key,)].inc(tokens)

    def key_refused(self, key: str, limit: str) -> None:
        """Count a request that a limit has kept out."""
        self._key_refused.children[key, limit].inc()

    def shadowed(self, model: str, target: str, outcome: str) -> None:
        """Count what became of a copy for a shadow."""
        self._shadow_requests.children[model, target, outcome].inc()

    def shadow_agreement(self, model: str, target: str, share: float) -> None:
        """Show how often a shadow agrees."""
        self._shadow_agreement.labels(model, target).set(share)

    def keep_shadows(self, shadows: Collection[tuple[str, str]]) -> None:
        """Show no other shadows, by model and target, any longer."""
        children = self._shadow_requests.children
        for labels in [labels for labels in children if labels[:2] not in shadows]:
            model, target, _ = labels
            del children[labels]
            with contextlib.suppress(KeyError):  # it never was
                self._shadow_agreement.remove(model, target)

    def worker_up(self, worker: str, up: bool) -> None:
        self._up.labels(worker).set(up)

    def forget_worker(self, worker: str) -> None:
        """Show a worker no longer: it won't come back."""
        for gauge in (self._up, *self._load.values()):
            with contextlib.suppress(KeyError):  # it never was
                gauge.remove(worker)

    def worker_restarted(self, worker: str) -> None:
        self._restarts.labels(worker).inc()

    def watch_worker(self, worker: str, load: Load) -> None:
        """Show a worker's latest load report."""
        for field, gauge in self._load.items():
            gauge.labels(worker).set(getattr(load, field))

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)

    def open_page(self) -> bytes:
        """The page as OpenMetrics has it, with exemplars."""
        page: bytes = generate_open_metrics(self.registry)  # type: ignore[no-untyped-call]
        return page

    def _counter(self, name: str) -> Counter:
        return Counter(name, METRICS[name].help, METRICS[name].labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(name, METRICS[name].help, METRICS[name].labels, registry=self.registry)

    def _counts(self, name: str) -> _Counts:
        counts = _Counts(name)
        self.registry.register(counts)
        return counts

    def _histograms(self, name: str, bounds: Sequence[float]) -> _Histograms:
        histograms = _Histograms(name, bounds)
        self.registry.register(histograms)
        return histograms
