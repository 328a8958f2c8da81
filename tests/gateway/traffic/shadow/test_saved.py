"""What is written down of shadows, and what becomes of it where the disk takes nothing. (Pairs: test_review.py.)"""

from pathlib import Path

import pytest

from gateway.traffic.shadow import standing
from gateway.traffic.shadow.privacy import Privacy
from gateway.traffic.shadow.saved import Saved
from gateway.traffic.shadow.standing import Standing
from tests.gateway.traffic.shadow.test_review import line

KNOWN = {("chat", "next", "/v1/completions"): Standing(agreed=3, differed=1, fields={"$.price": 1})}


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = Saved(None)
    assert saved.save(standing.encode(KNOWN)) and saved.load() == {}
    assert saved.review("chat", "next", Privacy()).path is None
    assert list(tmp_path.iterdir()) == []


def test_counts_and_pairs_are_found_again(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "shadows")
    assert saved.load() == {}
    assert saved.save(b"[]") and saved.save(standing.encode(KNOWN))
    path = saved.review("chat", "next", Privacy()).path
    assert path is not None
    saved.append(path, [line(1), line(2)])
    again = Saved(tmp_path / "shadows")
    assert again.load() == KNOWN
    assert [pair.at for pair in again.review("chat", "next", Privacy()).newest(9, differing=True)] == [2.0, 1.0]
    assert again.review("chat", "other", Privacy()).newest(9, differing=True) == []


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b'[{"model": "chat"}]', b"\xff"])
def test_counts_that_cannot_be_read_are_none(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "agreement.json").write_bytes(data)
    assert Saved(tmp_path).load() == {}
    assert "agreement is counted anew" in caplog.text


def test_a_disk_is_complained_of_once_until_it_is_well_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shadows"
    folder.write_bytes(b"this is no folder")
    saved = Saved(folder)
    for _ in range(3):
        assert not saved.save(b"[]")
        saved.append(folder / "pairs.jsonl", [line(1), line(2)])
    assert saved.unwritten == 6
    assert len(caplog.records) == 2
    folder.unlink()
    assert saved.save(b"[]")
    folder.rename(tmp_path / "elsewhere")
    folder.write_bytes(b"once more")
    assert not saved.save(b"[]")
    assert len(caplog.records) == 3
