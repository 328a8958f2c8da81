"""Is telemetry sent anywhere, where to, and how much of it? From options, a file, and OpenTelemetry's own variables.

What the command line says holds before the file, and the file before the environment. What only OpenTelemetry has a
variable for (certificates, compression, time limits, intervals, attributes of the resource) its exporter reads itself.
"""

import importlib.util
import logging
from collections.abc import Mapping
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.settings import Settings, SettingsError, parse_part

USUAL_SHARE: Final = 0.01
_ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_RATIO: Final = ("traceidratio", "parentbased_traceidratio")
_FIXED: Final = {"always_on": 1.0, "parentbased_always_on": 1.0, "always_off": 0.0, "parentbased_always_off": 0.0}
_MISSING: Final = "OpenTelemetry's exporter is not installed: pip install 'penstock[otel]'"

log = logging.getLogger(__name__)


class TelemetryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where telemetry goes.

    Attributes:
        url: the collector's; None: what OpenTelemetry's variables say, else this host.
        share: how many of the traces that begin here are kept, from 0 to 1.
        metrics: whether metrics are sent, too.
        headers: what the collector wants to be sent with it.
    """

    url: str | None = None
    share: float = USUAL_SHARE
    metrics: bool = True
    headers: Mapping[str, str] = {}

    def endpoint(self, signal: str) -> str | None:
        """Where one kind of telemetry, ``traces`` or ``metrics``, goes."""
        return None if self.url is None else f"{self.url.rstrip('/')}/v1/{signal}"


class Section(Protocol):
    """What a configuration file says of telemetry."""

    @property
    def otlp(self) -> str | None: ...
    @property
    def sample(self) -> float | None: ...
    @property
    def metrics(self) -> bool: ...
    @property
    def headers_env(self) -> str | None: ...


def telemetry_plan(settings: Settings, section: Section | None, environment: Mapping[str, str]) -> TelemetryPlan | None:
    """What becomes of telemetry; None: nothing.

    Raises:
        SettingsError: it can't be sent, or an environment variable makes no sense.
    """
    asked = settings.otlp is not None or section is not None
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not asked and not any(environment.get(name) for name in _ENDPOINTS):
        return None
    if not _installed():
        if asked:
            raise SettingsError(f"telemetry can't be sent: {_MISSING}")
        log.warning("%s is set, but telemetry isn't sent: %s", _ENDPOINTS[0], _MISSING)
        return None
    url = settings.otlp or (section.otlp if section is not None else None)
    if url is not None:
        check_url(url)
    said = [settings.trace_sample, section.sample if section is not None else None]
    share = next((one for one in said if one is not None), None)
    return TelemetryPlan(
        url=url,
        share=share if share is not None else _share(environment),
        metrics=section.metrics if section is not None else True,
        headers=_headers(section, environment),
    )


def check_url(url: str) -> None:
    """See that a collector can be where somebody says.

    Raises:
        SettingsError: it can't.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise SettingsError(f"{url!r} is no address of an OTLP collector: write http://HOST:4318")


def parse_headers(text: str) -> dict[str, str]:
    """Headers as ``OTEL_EXPORTER_OTLP_HEADERS`` has them: ``name=value,name=value``, with %-escapes.

    Raises:
        ValueError: they are written otherwise.
    """
    found: dict[str, str] = {}
    for one in text.split(","):
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise ValueError("it has to be NAME=VALUE, or several of these with commas between them")
        found[unquote(name.strip()).lower()] = unquote(value.strip())
    return found


def _headers(section: Section | None, environment: Mapping[str, str]) -> dict[str, str]:
    if section is None or section.headers_env is None:
        return {}
    try:
        return parse_headers(environment.get(section.headers_env, ""))
    except ValueError as error:
        raise SettingsError(f"telemetry: what is in {section.headers_env} can't be used: {error}") from None


def _share(environment: Mapping[str, str]) -> float:
    """What OpenTelemetry's variables say of sampling."""
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    said = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if sampler in _FIXED:
        return _FIXED[sampler]
    if sampler and sampler not in _RATIO:
        log.warning("OTEL_TRACES_SAMPLER=%s is unknown here: a share of %g is kept", sampler, USUAL_SHARE)
        return USUAL_SHARE
    if not said:
        return 1.0 if sampler else USUAL_SHARE
    try:
        return parse_part(said)
    except ValueError as error:
        raise SettingsError(f"OTEL_TRACES_SAMPLER_ARG: {error}") from None


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False
