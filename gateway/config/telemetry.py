"""What may stand under ``telemetry`` in a configuration file? Where traces and metrics go, and how many of them."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.config.document import Document, Fault
from gateway.config.values import Part
from gateway.settings import SettingsError
from gateway.telemetry.plan import check_url


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where traces and metrics go, over OTLP; without this section, where options or OpenTelemetry's variables say."""

    otlp: Annotated[
        str | None,
        Meta(
            description="the OpenTelemetry collector, such as http://127.0.0.1:4318; default: what "
            "OTEL_EXPORTER_OTLP_ENDPOINT says, or this host"
        ),
    ] = None
    sample: Annotated[
        Part | None,
        Meta(
            description="the share of traces that begin here to keep, such as 1%; clients that send a traceparent say "
            "so themselves; default: what OTEL_TRACES_SAMPLER_ARG says, or 1%"
        ),
    ] = None
    metrics: Annotated[bool, Meta(description="whether metrics are sent, too")] = True
    headers_env: Annotated[
        str | None,
        Meta(
            description="the environment variable with what the collector wants to be sent with it, such as a key: "
            "NAME=VALUE, or several with commas between them"
        ),
    ] = None


def wrong_telemetry(document: Document, telemetry: Telemetry | None) -> Iterator[Fault]:
    """What can't be meant."""
    if telemetry is not None and telemetry.otlp is not None:
        try:
            check_url(telemetry.otlp)
        except SettingsError as error:
            yield document.fault(("telemetry", "otlp"), str(error))
