"""The files of a data folder, and the folder itself."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from gateway.batches.files import FileStore
from gateway.batches.folder import DataFolder, FolderUnavailable, same_file, write_whole
from gateway.wire.files import FileObject, ListQuery, Purpose


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


def keep(store: FileStore, data: bytes, purpose: Purpose = "user_data", expires_after: int | None = None) -> FileObject:
    upload = store.begin()
    try:
        upload.write(data)
        return upload.commit("name.txt", purpose, expires_after)
    finally:
        upload.discard()


def query(text: str = "") -> ListQuery:
    return ListQuery(text.encode(), default=100, most=100)


def test_a_file_comes_and_goes(folder: DataFolder) -> None:
    store = FileStore(folder, lambda: 1000.7)
    file = keep(store, b"hello")
    assert (file.bytes, file.created_at, file.expires_at, file.status) == (5, 1000, None, "processed")
    assert store.get(file.id) == file
    assert store.path(file.id).read_bytes() == b"hello"
    assert store.path(file.id).stat().st_mode & 0o077 == 0
    assert FileStore(folder).get(file.id) == file
    assert store.delete(file.id)
    assert not store.delete(file.id)
    assert store.get(file.id) is None
    assert os.listdir(folder.files) == []


def test_an_upload_that_is_given_up_leaves_nothing(folder: DataFolder) -> None:
    store = FileStore(folder)
    upload = store.begin()
    upload.write(b"x")
    upload.discard()
    assert os.listdir(folder.files) == []
    assert store.list(query()) == []


def test_a_description_that_cannot_be_written(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(folder)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("gateway.batches.files.write_whole", full)
    with pytest.raises(OSError, match="full"):
        keep(store, b"x")
    assert os.listdir(folder.files) == []


def test_lists(folder: DataFolder) -> None:
    store = FileStore(folder)
    purposes: list[Purpose] = ["batch", "user_data", "batch", "evals"]
    files = [keep(store, b"", purpose) for purpose in purposes]
    assert store.list(query("order=asc")) == files
    assert store.list(query()) == files[::-1]
    assert store.list(query("limit=2")) == files[:0:-1]  # one more than asked for: there is more
    assert store.list(query(f"after={files[2].id}")) == [files[1], files[0]]
    assert store.list(query(f"order=asc&after={files[1].id}")) == files[2:]
    assert store.list(query("purpose=batch")) == [files[2], files[0]]
    assert store.list(query("purpose=gone")) == []
    assert FileStore(folder).list(query("order=asc")) == files


def test_files_expire(folder: DataFolder) -> None:
    now = 1000.0
    store = FileStore(folder, lambda: now)
    short, batch, forever = keep(store, b"", expires_after=3600), keep(store, b"", "batch"), keep(store, b"")
    assert (short.expires_at, batch.expires_at, forever.expires_at) == (4600, 1000 + 30 * 86400, None)
    now = 4600.0
    assert store.get(short.id) is None
    assert store.list(query()) == [forever, batch]
    assert not store.delete(short.id)
    now += 30 * 86400
    store.sweep()
    assert {name.partition(".")[0] for name in os.listdir(folder.files)} == {forever.id}


def test_what_a_crash_left_is_removed(folder: DataFolder, caplog: pytest.LogCaptureFixture) -> None:
    file = keep(FileStore(folder), b"kept")
    for name in ("file-1.part", "file-2", "file-3.json", "file-4.json.part", "file-5", "file-5.json"):
        (folder.files / name).write_bytes(b"{}")
    (folder.files / "notes").mkdir()
    store = FileStore(folder)
    assert store.list(query()) == [file]
    # What can't be read isn't thrown away.
    assert sorted(os.listdir(folder.files)) == sorted([file.id, f"{file.id}.json", "file-5", "file-5.json", "notes"])
    assert "file-5.json can't be read" in caplog.text


def test_results_are_adopted_once_or_twice(folder: DataFolder, tmp_path: Path) -> None:
    store = FileStore(folder)
    (tmp_path / "result").write_bytes(b"r")
    store.adopt("file-r", tmp_path / "result", "out.jsonl", "batch_output", 3600)
    store.adopt("file-r", tmp_path / "result", "out.jsonl", "batch_output", 3600)
    (tmp_path / "result").unlink()
    assert store.path("file-r").read_bytes() == b"r"
    found = store.get("file-r")
    assert found is not None
    assert found.expires_at == found.created_at + 3600


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a" / "data"
    first = DataFolder(path)
    assert path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FolderUnavailable, match="is in use by another process"):
        DataFolder(path)
    first.close()
    DataFolder(path).close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FolderUnavailable, match="can't be used: Not a directory"):
        DataFolder(tmp_path / "file" / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "files").write_bytes(b"")
    with pytest.raises(FolderUnavailable, match="can't be used: File exists"):
        DataFolder(tmp_path / "data")


def test_a_small_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        write_whole(path, b"three")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x"]


def test_a_second_name_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content")

    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    same_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"

    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"con")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="full"):
        same_file(tmp_path / "a", tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
