"""Files of rollouts: what they are called, and what is left in the folder."""

from pathlib import Path

import pytest

from gateway.traffic.rollout.rollout import RolloutConfig, RolloutPlan, RolloutState
from gateway.traffic.rollout.saved import Saved, SavedRollouts, encode
from gateway.wire.rollouts import ChangeShown


def saved(model: str) -> Saved:
    plan = RolloutPlan(RolloutConfig(), "stable", "canary", "adapter 12")
    return Saved(model, plan, RolloutState(step=1, since=7.5, reason="so"), [ChangeShown(1.0, "begun", "it is new")])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    files = SavedRollouts(tmp_path / "rollouts")
    assert files.load("chat") is None and files.written("chat") is None
    files.write({"chat": encode(saved("chat"))}, ["chat"])
    assert files.load("chat") == saved("chat")
    first = files.written("chat")
    files.write({"chat": encode(saved("chat"))}, ["chat"])
    assert files.written("chat") not in (None, first)


def test_names_that_differ_have_files_that_differ_within_the_folder(tmp_path: Path) -> None:
    names = ["chat", "Chat", "a/b", "a%2Fb", "..", "x" * 400, "x" * 401, "\u00e9", "e\u0301"]
    files = SavedRollouts(tmp_path / "rollouts")
    paths = {files.path(name).name.lower() for name in names}  # some file systems don't tell case
    assert len(paths) == len(names)
    assert all(len(path) <= 128 and path.isascii() and "/" not in path for path in paths)
    files.write({name: encode(saved(name)) for name in names}, names)
    assert [found.model for name in names if (found := files.load(name)) is not None] == names


def test_what_is_no_longer_wanted_is_removed_and_what_was_put_aside_stays(tmp_path: Path) -> None:
    files = SavedRollouts(tmp_path)
    files.write({name: encode(saved(name)) for name in ("one", "two", "three")}, ["one", "two", "three"])
    files.put_aside("three")
    files.put_aside("four")  # there is none
    files.write({}, ["one"])
    left = {"lock", files.path("one").name, files.path("three").with_suffix(".bad").name}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    first, second = SavedRollouts(tmp_path), SavedRollouts(tmp_path)
    first.write({"one": encode(saved("one"))}, ["one"])
    with pytest.raises(OSError, match="another server keeps its rollouts there"):
        second.write({"two": encode(saved("two"))}, ["two"])
    assert second.load("one") is not None and second.load("two") is None
    first.close()
    first.close()
    second.write({"two": encode(saved("two"))}, ["two"])
    assert second.load("one") is None and second.load("two") is not None
    del second  # as where a process ends
    first.write({}, ["two"])


def test_something_else_in_a_file_is_a_value_error(tmp_path: Path) -> None:
    files = SavedRollouts(tmp_path)
    files.path("chat").write_bytes(b'{"model": 7}')
    with pytest.raises(ValueError, match="model"):
        files.load("chat")
