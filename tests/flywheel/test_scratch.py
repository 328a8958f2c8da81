"""`flywheel.scratch`: what doesn't fit into memory is for its owner's eyes, and doesn't stay."""

import os
import stat
from pathlib import Path

from flywheel.scratch import connect


def test_what_does_not_fit_into_memory_lies_in_the_logs_folder(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    with connect(tmp_path) as database:
        database.execute("SET memory_limit = '30MB'; SET threads = 1; SET preserve_insertion_order = false")
        database.execute("CREATE TABLE x AS SELECT repeat(md5(i::VARCHAR), 20) AS text FROM range(100_000) t(i)")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sum(path.stat().st_size for path in folder.iterdir()) > 1 << 20
        with connect(tmp_path):  # another process lets it be
            assert sum(path.stat().st_size for path in folder.iterdir()) > 1 << 20
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_has_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    dead = folder / "duckdb_temp_4194999_0_storage.tmp"
    other = folder / f"duckdb_temp_{os.getppid()}_0_storage.tmp"
    for path in (dead, other, folder / "something"):
        path.write_bytes(b"texts")
    connect(tmp_path).close()
    assert list(folder.iterdir()) == [other]


def test_where_nothing_can_be_written_memory_has_to_be_enough(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_bytes(b"no folder")
    with connect(tmp_path) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
        assert database.execute("SELECT current_setting('temp_directory')").fetchone() == ("",)
