"""An OTLP collector of the tests' own: it takes what comes over HTTP, and decodes the protobuf."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What has come so far. ``status`` is what senders are answered."""

    def __init__(self) -> None:
        self.status = 200
        self.url = ""
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.resources: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.posts = 0

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(values(resource.resource.attributes))
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.resources.append(values(group.resource.attributes))
                self.metrics |= {metric.name: metric for scope in group.scope_metrics for metric in scope.metrics}
        else:
            raise ValueError(path)

    def named(self, name: str) -> list[Span]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]

    def requests(self) -> list[Span]:
        """The spans of requests, without those of their phases."""
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    found: dict[str, Any] = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.posts += 1
            if collector.status == 200:
                collector.headers = {name.lower(): value for name, value in self.headers.items()}
                packed = self.headers.get("content-encoding") == "gzip"
                collector.take(self.path, gzip.decompress(body) if packed else body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
