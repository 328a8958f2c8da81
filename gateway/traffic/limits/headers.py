"""What are clients told about their limits? OpenAI's ``x-ratelimit-*`` headers, and its error for who exceeds one."""

import math

from gateway.traffic.limits.contract import Granted, Refused, Standing
from gateway.wire import errors

_WHAT = {
    "requests": ("requests", "on requests"),
    "tokens": ("tokens", "on tokens"),
    "concurrent": ("requests", "on requests at the same time"),
    "day": ("", "on tokens per day"),
}


def rate_headers(verdict: Granted | Refused) -> dict[str, str]:
    """The headers that go with an answer, by lower-case name."""
    headers = _of("requests", verdict.requests) if verdict.requests is not None else {}
    if verdict.tokens is not None:
        headers |= _of("tokens", verdict.tokens)
    return headers


def _of(what: str, standing: Standing) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(standing.limit),
        f"x-ratelimit-remaining-{what}": str(standing.remaining),
        f"x-ratelimit-reset-{what}": duration(standing.reset),
    }


def duration(seconds: float) -> str:
    """A time as Go writes it, and OpenAI with it: ``12ms``, ``8.64s``, ``6m0s``; rounded up to milliseconds."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:g}s"
    if minutes or hours:
        shown = f"{minutes}m{shown}"
    return f"{hours}h{shown}" if hours else shown


def limit_error(refused: Refused) -> errors.ApiError:
    """429 for a request that exceeds a limit, with its headers and ``Retry-After`` (where waiting helps)."""
    kind, on = _WHAT[refused.limited]
    used = f"Limit {refused.limit}, Used {refused.used}, Requested {refused.asked}."
    headers = rate_headers(refused)
    if math.isinf(refused.retry_after):
        advice = "The request is larger than the limit: shorten the prompt or lower max_tokens."
    else:
        headers["retry-after"] = str(max(1, math.ceil(refused.retry_after)))
        advice = f"Please try again in {duration(refused.retry_after)}."
    message = f"Rate limit reached for this API key {on}: {used} {advice}"
    if refused.limited == "day":
        return errors.insufficient_quota(message, headers)
    return errors.rate_limit_exceeded(kind, message, headers)
