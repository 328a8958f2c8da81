"""Results on disk: nothing lost, nothing twice, whatever was left in the middle."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batches import results as module
from gateway.batches.results import Results, answered, result_id, unanswered

ID = "batch_" + "0a" * 12


def filled(folder: Path, numbers: range) -> Results:
    results = recovered(folder)
    results.append({"completed": [(n, answered(ID, n, f"id {n}", 200, "req-1", b'{"n": 1}')) for n in numbers]})
    return results


def recovered(folder: Path) -> Results:
    results = Results(folder, ID)
    for _ in results.recover():
        pass
    return results


def test_the_lines() -> None:
    one = json.loads(answered(ID, 31, 'a"b', 200, "req-1", b'{"x":\n [1]}'))
    assert one == {
        "id": f"batch_req_{'0a' * 12}_1f",
        "custom_id": 'a"b',
        "response": {"status_code": 200, "request_id": "req-1", "body": {"x": [1]}},
        "error": None,
    }
    two = unanswered(ID, 31, "é", "batch_expired", "Too late.")
    assert two.count(b"\n") == 1
    assert json.loads(two)["error"] == {"code": "batch_expired", "message": "Too late."}
    assert json.loads(two)["response"] is None
    assert result_id(ID, 31) == one["id"]


def test_what_was_appended_is_known_after_a_restart(tmp_path: Path) -> None:
    results = filled(tmp_path, range(1, 5000, 3))
    results.append({"failed": [(2, unanswered(ID, 2, "x", "c", "m"))], "completed": []})
    results.close()
    again = recovered(tmp_path)
    assert (again.completed, again.failed) == (len(range(1, 5000, 3)), 1)
    assert [n for n in range(6000) if again.done(n)] == sorted([*range(1, 5000, 3), 2])
    assert again.path("failed") == tmp_path / "errors.jsonl"
    again.close()


def test_tokens_are_counted_by_either_name_and_after_a_restart(tmp_path: Path) -> None:
    chat = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": None}
    response = {
        "input_tokens": 10, "output_tokens": 20, "total_tokens": 30,
        "input_tokens_details": {"cached_tokens": 8}, "output_tokens_details": {"reasoning_tokens": 3},
    }  # fmt: skip
    bodies = [{"usage": chat}, {"usage": response}, {"usage": None}, {}, {"usage": {"prompt_tokens": "many"}}]
    results = recovered(tmp_path)
    for number, body in enumerate(bodies):
        results.append({"completed": [(number, answered(ID, number, "x", 200, "r", json.dumps(body).encode()))]})
    failed = answered(ID, 9, "x", 400, "r", json.dumps({"usage": chat}).encode())
    results.append({"failed": [(9, failed)]})
    found = results.usage
    assert (found.input_tokens, found.output_tokens, found.total_tokens) == (15, 22, 37)
    assert (found.input_tokens_details.cached_tokens, found.output_tokens_details.reasoning_tokens) == (8, 3)
    results.close()
    again = recovered(tmp_path)
    assert again.usage == found
    again.close()


def test_no_results_no_file(tmp_path: Path) -> None:
    results = recovered(tmp_path)
    assert results.path("completed") is None
    results.close()


@settings(deadline=None, max_examples=80)
@given(cut=st.integers(0, 2000), tail=st.binary(max_size=40))
def test_a_torn_end_is_cut(tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes) -> None:
    folder = tmp_path_factory.mktemp("results")
    filled(folder, range(10, 20)).close()
    path = folder / "output.jsonl"
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut] + tail.replace(b"\n", b""))
    again = recovered(folder)
    kept = path.read_bytes()
    assert whole.startswith(kept)
    assert kept == b"" or kept.endswith(b"\n")
    # Nothing that was whole is gone, unless what follows makes another line of the last.
    assert again.completed == kept.count(b"\n") >= whole[:cut].count(b"\n")
    assert [n for n in range(30) if again.done(n)] == list(range(10, 10 + again.completed))
    again.append({"completed": [(7, answered(ID, 7, "new", 200, "r", b"{}"))]})
    assert json.loads(path.read_bytes().splitlines()[-1])["custom_id"] == "new"
    again.close()


def test_zeros_at_the_end_are_cut(tmp_path: Path) -> None:
    """What a file system may leave where the power went."""
    filled(tmp_path, range(3)).close()
    with open(tmp_path / "output.jsonl", "ab") as file:
        file.write(bytes(4096) + b"\n")
    again = recovered(tmp_path)
    assert again.completed == 3
    assert b"\0" not in (tmp_path / "output.jsonl").read_bytes()
    again.close()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = filled(tmp_path, range(3))
    before = (tmp_path / "output.jsonl").read_bytes()
    real = module.write_all  # type: ignore[attr-defined]

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:10])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(module, "write_all", full)
    lines: dict[module.Outcome, list[tuple[int, bytes]]] = {
        "completed": [(9, answered(ID, 9, "nine", 200, "r", b"{}"))]
    }
    with pytest.raises(OSError, match="full"):
        results.append(lines)
    assert (tmp_path / "output.jsonl").read_bytes() == before
    assert not results.done(9)
    # Even where the file can't be cut at once, it is before the next line.
    monkeypatch.setattr(os, "ftruncate", lambda fd, size: full(fd, b""))
    with pytest.raises(OSError, match="full"):
        results.append(lines)
    monkeypatch.undo()
    assert module.write_all is real  # type: ignore[attr-defined]
    results.append(lines)
    assert (tmp_path / "output.jsonl").read_bytes() == before + answered(ID, 9, "nine", 200, "r", b"{}")
    assert results.done(9)
    assert lines == {"completed": []}
    results.close()
