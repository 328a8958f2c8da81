"""The commands of docs/log.md: each is run, on a log with a request in it."""

import re
import shlex
from pathlib import Path

import pytest

import penstock
from flywheel.record import VERSION, Content, Feedback
from flywheel.user_keys import UserKeys, keys_path
from tests.flywheel.log.driving import RECEIVED, record
from tests.flywheel.test_compaction import write

PAGE = Path(__file__).parent.parent.parent / "docs" / "log.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("penstock log ")]


def test_every_command_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("log")
    sealed = UserKeys(keys_path(folder)).seal("ann", {"input": b'{"messages":[]}', "output": b'[{"role":"assistant"}]'})
    write(
        folder,
        record(1, user="ann", content=Content("full", sealed=sealed)),
        Feedback(VERSION, "req_1", RECEIVED, 0.1, "bad"),
    )
    lines = commands()
    assert len(lines) > 8
    for line in lines:
        assert penstock.main(shlex.split(line)[1:]) == 0, line
        shown = capsys.readouterr()
        assert "error" not in shown.err, line
        if "judged" in line:
            assert "req_1" in shown.out
    assert Path("chats.jsonl").read_bytes().count(b"\n") == 1
    assert Path("records.parquet").exists()
