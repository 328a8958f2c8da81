"""What can be set about upstreams? Timeouts, retries, hedging and probes, with defaults that are sane."""

from typing import Literal

import msgspec


class UpstreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds.

    ``first_byte`` bounds the wait from a request's last byte to its answer's first, ``idle`` the silence within an
    answer. ``retries`` are other targets that a request may try, ``retry_share`` how many retries there may be per
    request in the long run, ``hedge`` the same for hedges (0: none). ``keep_idle`` is how long an unused connection is
    kept: less than servers keep theirs (uvicorn's 5 s, so vLLM's), or requests meet closed ones. ``continuing`` is
    which upstreams go on with others' answers: those that are known to be able to, or all of them. ``tokenizer`` is the
    folder with their model's tokenizer and chat template, for those that tell what they have cached. ``max_wait`` is
    how long a request may be held until one of them is about to be free; None: as long as it must.
    """

    connect: float = 5.0
    first_byte: float = 300.0
    idle: float = 120.0
    keep_idle: float = 4.0
    most_idle: int = 512
    retries: int = 2
    retry_share: float = 0.2
    hedge: float = 0.0
    failures: int = 5
    pause: float = 1.0
    slow_start: float = 10.0
    probe_every: float = 5.0
    probe_timeout: float = 3.0
    load_every: float = 1.0
    resolve_every: float = 5.0
    key: str | None = None
    tokenizer: str | None = None
    max_wait: float | None = None
    continuing: Literal["auto", "always", "never"] = "auto"
