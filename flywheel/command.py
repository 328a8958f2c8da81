"""What does ``penstock log`` do? It looks at the request log, takes something out, or looks after it."""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import duckdb

    from flywheel.maintenance import Done
    from flywheel.record import Record

_COLUMNS: Final = (
    "Views: records, feedback, and judged (both). Columns: penstock log query 'DESCRIBE records'. Names that SQL has a "
    'use for need quotes: "user".'
)
_MOST: Final = 1_000_000  # hours: a hundred years and more
_UNITS: Final = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put all commands on ``parser``."""
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", required=True)
    query = _add(
        commands,
        "query",
        "ask with SQL",
        "Ask with SQL (DuckDB's), over all records, those of just now too. " + _COLUMNS,
    )
    query.add_argument("sql", metavar="SQL", help="what to ask")
    query.add_argument("--json", action="store_true", help="print every row, as an object a line")
    query.add_argument("--rows", type=_count, default=100, metavar="N", help="of the table (default: 100)")
    tail = _add(commands, "tail", "show the latest requests", "Show the latest requests, and those that come.")
    tail.add_argument("--rows", type=_count, default=20, metavar="N", help="how many to begin with (default: 20)")
    tail.add_argument("--once", action="store_true", help="don't wait for more")
    export = _add(
        commands,
        "export",
        "write records to a file",
        "Write records to a file. openai-chat is a conversation a line, as fine-tuning takes it; where there is "
        "feedback with a correction, that is the answer.",
    )
    export.add_argument("--format", choices=("parquet", "jsonl", "openai-chat"), required=True, help="of the file")
    export.add_argument("--out", metavar="FILE", required=True, help="where to; -: standard output, except of parquet")
    export.add_argument(
        "--where", metavar="SQL", default="true", help="which, a condition on the records (default: all)"
    )
    summary = _add(commands, "summary", "how it has been going", "The last hour by model, variant and worker.")
    summary.add_argument("--hours", type=_some, default=1.0, help="how long to look back (default: 1)")
    compact = _add(
        commands,
        "compact",
        "bring the log into its table",
        "Bring closed segments into the Delta Lake table, each record once, and remove what is too old. A gateway with "
        "a log does that by itself.",
    )
    compact.add_argument("--every", type=_some, metavar="SECONDS", help="go on doing that (default: once)")
    compact.add_argument("--keep-days", type=_count, metavar="N", help="remove older days (default: none)")
    compact.add_argument("--keep-bytes", type=_bytes, metavar="N", help="remove the oldest days above that: 50G")
    erase = _add(
        commands,
        "erase",
        "forget a user",
        "Forget a user: what was sealed under the user's key can't be read from now on, wherever there are copies; "
        "then the table is written anew without the user's name and texts.",
    )
    erase.add_argument("--user", metavar="U", required=True, help="as the requests had it")


def run(args: argparse.Namespace) -> int:
    """``penstock log`` with the command line in ``args``; returns the exit status."""
    import sqlite3

    import duckdb
    from deltalake.exceptions import DeltaError

    from flywheel.compaction import BusyError
    from flywheel.query import NoLogError

    command = {
        "query": _query, "tail": _tail, "export": _export, "summary": _summary, "compact": _compact, "erase": _erase,
    }[args.what]  # fmt: skip
    try:
        return command(args)
    except (NoLogError, BusyError) as error:
        return _fail(str(error))
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
        return _fail(f"{error}\n{_COLUMNS}")
    except (OSError, duckdb.Error, DeltaError, sqlite3.Error) as error:
        if isinstance(error, BrokenPipeError):
            raise
        return _fail(str(error))


def _add(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description)
    parser.add_argument(
        "--log", type=Path, default=Path("log"), metavar="FOLDER", help="the log's folder (default: ./log)"
    )
    return parser


def _bytes(text: str) -> int:
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "")
    try:
        if (found := int(float(number) * _UNITS[unit])) > 0:
            return found
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes: 500M, or 50G")


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MOST:,}")
    return int(text)


def _some(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= _MOST:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, of {_MOST:,} at most")


def _fail(why: str) -> int:
    print(f"penstock: error: {why}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _database(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    from flywheel.erasure import open_keys
    from flywheel.query import connect

    keys = open_keys(folder)
    try:
        with connect(folder, None if keys is None else keys.unseal) as database:
            yield database
    finally:
        if keys is not None:
            keys.close()


def _query(args: argparse.Namespace) -> int:
    from flywheel.export import to_json
    from flywheel.statement import execute, rows

    with _database(args.log) as database:
        if not database.extract_statements(args.sql):
            return _fail(f"Nothing is asked. {_COLUMNS}")
        result = execute(database, args.sql)
        names = [column[0] for column in result.description or ()]
        if args.json:
            for row in rows(result):
                sys.stdout.buffer.write(to_json(dict(zip(names, row, strict=True))) + b"\n")
            sys.stdout.buffer.flush()
            return 0
        some = list(islice(rows(result), args.rows + 1))
    _show(_table(names, some[: args.rows]))
    if len(some) > args.rows:
        print("… and more: --rows N shows that many, --json all of them.", file=sys.stderr)
    return 0


def _table(names: list[str], rows: list[Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    return table


def _show(table: Any) -> None:
    """A table in full width: one that is cut to the terminal's says less than one that is wrapped."""
    from rich.console import Console

    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(console.width, needed)).print(table)


def _summary(args: argparse.Namespace) -> int:
    from flywheel.summary import summarize

    since = datetime.now(UTC) - timedelta(hours=args.hours)
    with _database(args.log) as database:
        _show(summarize(database, since, args.hours * 3600))
    return 0


def _tail(args: argparse.Namespace) -> int:
    from flywheel.log.reading import all_segments
    from flywheel.query import frames_after

    places = {}
    for segment in all_segments(args.log):
        _, places[segment.writer, segment.number] = frames_after(segment, 0)
    with _database(args.log) as database:
        found = database.execute(
            "SELECT received, outcome, status, model, variant, input_tokens, output_tokens, ttft, ended, request_id "
            f"FROM records ORDER BY received DESC LIMIT {args.rows}"
        ).fetchall()
    shown = {row[-1] for row in found}  # they may have come between the two looks
    for row in reversed(found):
        print(_line(*row), flush=True)
    while not args.once:
        time.sleep(0.3)
        for segment in all_segments(args.log):
            key = (segment.writer, segment.number)
            records, places[key] = frames_after(segment, places.get(key, 0))
            for record in records:
                if record.request_id not in shown:
                    print(_line(*_told(record)), flush=True)
    return 0


def _told(record: "Record") -> tuple[Any, ...]:
    received = datetime.fromtimestamp(record.received / 1e6, UTC)
    timing = record.timing
    return (
        *(received, record.outcome, record.status, record.model, record.variant),
        *(record.input_tokens, record.output_tokens),
        *((None, None) if timing is None else (timing.first_token, timing.ended)),
        record.request_id,
    )


def _line(
    received: datetime,
    outcome: str,
    status: int,
    model: str,
    variant: str,
    tokens_in: int | None,
    tokens_out: int | None,
    ttft: float | None,
    ended: float | None,
    request_id: str,
) -> str:
    name = model or "(no model)"
    times = " ".join("-" if one is None else f"{one * 1000:.0f} ms" for one in (ttft, ended))
    tokens = " → ".join("?" if one is None else str(one) for one in (tokens_in, tokens_out))
    return (
        f"{received:%Y-%m-%d %H:%M:%S.%f} {outcome:12} {status:3} {name}{'/' + variant if variant else ''} "
        f"{tokens} tokens, {times} {request_id}"
    )


def _export(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flywheel.export import export

    if args.format == "parquet" and args.out == "-":
        return _fail("Parquet can't be written to standard output: --out FILE")
    bar = Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        console=(console := Console(stderr=True)),
        transient=True,
        disable=not console.is_terminal,
    )
    with _database(args.log) as database, _out(args) as out, bar:
        task = bar.add_task("records", total=None)
        done = export(
            *(database, args.format, out, args.where),
            progress=lambda count, total: bar.update(task, completed=count, total=total),
        )
    left_out = f"; {done.left_out:,} have no conversation to write" if done.left_out else ""
    print(f"{done.rows:,} records{left_out}", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _out(args: argparse.Namespace) -> "Iterator[IO[bytes] | Path]":
    if args.format == "parquet":
        yield Path(args.out)
    elif args.out == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with open(args.out, "wb") as file:
            yield file


def _compact(args: argparse.Namespace) -> int:
    from flywheel.maintenance import maintain
    from flywheel.query import require

    require(args.log)
    while True:
        begun = time.monotonic()
        try:
            done = maintain(args.log, args.keep_days, args.keep_bytes)
        except Exception as error:
            if args.every is None:
                raise
            print(f"penstock: the request log could not be compacted, and will be: {error}", file=sys.stderr)
        else:
            if done.compacted.segments or done.merged or done.retained.files or args.every is None:
                print(_done(done, time.monotonic() - begun), flush=True)
        if args.every is None:
            return 0
        time.sleep(args.every)


def _done(done: "Done", seconds: float) -> str:
    return (
        f"{done.compacted.records:,} records and {done.compacted.feedback:,} of feedback came into the table in "
        f"{seconds:.1f} s; {done.merged} small files were merged; {done.retained.too_old} days went for their age, "
        f"{done.retained.too_large} for their size"
    )


def _erase(args: argparse.Namespace) -> int:
    from flywheel.erasure import erase
    from flywheel.query import require

    require(args.log)
    erase(args.log, args.user, lambda what: print(what, flush=True))
    return 0
