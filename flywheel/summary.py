"""How has it been going? The last hour by model, variant and worker, as a table in the terminal."""

from datetime import datetime
from typing import Any, Final

import duckdb
from rich.table import Table

from flywheel.statement import execute, rows

_SQL: Final = """
SELECT model, variant, worker,
    count(*) AS requests,
    count(*) / $seconds AS rate,
    avg((outcome IN ('failed', 'aborted'))::INT) AS failed,
    avg((outcome IN ('refused', 'invalid', 'disconnected'))::INT) AS unserved,
    quantile_cont(ttft, 0.5) AS ttft_p50, quantile_cont(ttft, 0.95) AS ttft_p95,
    quantile_cont(itl, 0.5) AS itl_p50, quantile_cont(itl, 0.95) AS itl_p95,
    sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
    sum(cached_tokens) / nullif(sum(input_tokens), 0) AS cached,
    avg(-mean_logprob) AS surprisal, avg(low_margin) AS low_margin
FROM records WHERE received >= $since
GROUP BY ALL ORDER BY model, variant, worker
"""

_HEADINGS: Final = (
    *("model", "variant", "worker", "requests", "per s", "failed", "not served", "TTFT p50 / p95", "ITL p50 / p95"),
    *("tokens in", "tokens out", "cached", "uncertainty", "low margin"),
)


def summarize(database: duckdb.DuckDBPyConnection, since: datetime, seconds: float) -> Table:
    """What happened in the ``seconds`` from ``since`` on.

    ``failed`` is the server's fault, ``not served`` the client's, or a limit's. Uncertainty is the mean surprisal of a
    token, in nats; ``low margin`` the share of tokens that were hardly likelier than the runner-up.
    """
    result = execute(database, _SQL, {"since": since, "seconds": seconds})
    table = Table(*_HEADINGS, title=f"since {since:%Y-%m-%d %H:%M:%S} UTC")
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows(result):
        table.add_row(*_cells(row))
    return table


def _cells(row: tuple[Any, ...]) -> list[str]:
    model, variant, worker, requests, rate, failed, unserved, *times, tokens_in, tokens_out, cached, nats, margin = row
    return [
        *(model or "(none)", variant, worker, f"{requests:,}", f"{rate:,.2f}", _share(failed), _share(unserved)),
        f"{_time(times[0])} / {_time(times[1])}",
        f"{_time(times[2])} / {_time(times[3])}",
        f"{tokens_in or 0:,}",
        f"{tokens_out or 0:,}",
        _share(cached),
        "" if nats is None else f"{nats:.2f}",
        _share(margin),
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
