import json
from pathlib import Path

import pytest

from engine.demo import evaluate, sheets, tasks
from engine.demo.evaluate import held_out
from engine.demo.scores import accuracy, score
from engine.demo.sheets import Item


def test_every_domain_and_task_gets_the_same_number_of_held_out_questions() -> None:
    cells = score(items := held_out(3, 0), [item.answer for item in items])
    assert len(cells) == 8 * len(sheets.TASKS) + len(tasks.TASKS)
    assert {cell.asked for cell in cells} == {3}
    assert accuracy(cells) == 1.0


def test_the_command_prints_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--count", "1", "--json", str(tmp_path / "out.json"), "--wrong"])
    monkeypatch.setattr(evaluate, "Answerer", lambda folder: Perfect())
    evaluate.main()
    assert "trained domains and tasks 100.0 %" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["untrained"] == 1.0


class Perfect:
    def answer(self, items: list[Item], *, in_system: bool) -> list[str]:
        return [item.answer for item in items]
