"""Where does DuckDB put what doesn't fit into memory? In a folder that only its owner may read, and not for long.

It deletes what it put there when it is closed. What a process that was killed has left is deleted by the next one.
"""

import os
from pathlib import Path
from typing import Final

import duckdb

_NAME: Final = "duckdb_temp_"


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory, for a log's ``folder``. Where nothing can be written there, memory has to be enough."""
    return duckdb.connect(config={"temp_directory": _make(folder / "scratch")})


def _make(scratch: Path) -> str:
    try:
        scratch.mkdir(mode=0o700, exist_ok=True)
        for path in scratch.iterdir():
            if not _alive(path.name):
                path.unlink(missing_ok=True)
    except OSError:
        return ""
    return str(scratch)


def _alive(name: str) -> bool:
    """Whether a file is of a process that is there; its number is in the name."""
    number = name.removeprefix(_NAME).partition("_")[0]
    if not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
