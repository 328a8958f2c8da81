import json
from pathlib import Path

import pytest

from engine.demo import evaluate, sheets, tasks, tools
from engine.demo.evaluate import Asked, held_out, held_out_tools
from engine.demo.scores import accuracy, score


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


def test_a_held_out_tool_is_asked_for_its_call_and_then_for_its_answer() -> None:
    chats = held_out_tools(4, 0)
    cells = score([chat.item for chat in chats], [chat.item.answer for chat in chats])
    assert len(cells) == 2 * len(tools.KINDS) + 2 + 1
    assert {cell.asked for cell in cells} == {4}
    assert all(chat.tools for chat in chats)
    for chat in chats:
        assert chat.messages[-1]["role"] == ("tool" if chat.item.task.endswith("answer") else "user")
        assert chat.item.answer.startswith("<tool_call>") == chat.item.task.endswith("call")


class Perfect:
    def answer_chats(self, chats: list[Asked]) -> list[str]:
        return [chat.item.answer for chat in chats]
