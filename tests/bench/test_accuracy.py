"""Are int8's answers as good as bfloat16's, as far as a few questions can tell?"""

import math
from pathlib import Path

import msgspec
import pytest

from bench import accuracy
from bench.accuracy import FORMS, Report, ask, main, questions


def test_int8_is_as_good_on_a_few_questions() -> None:
    chats = questions(1, 3)
    found = {form: ask(form, chats) for form in FORMS}
    assert {one.asked for one in found.values()} == {len(chats)}
    assert len({one.tokens for one in found.values()}) == 1
    exact = found["float32"]
    assert exact.right > 0.7 * exact.asked
    for one in found.values():
        assert abs(one.right - exact.right) <= 0.1 * exact.asked
        assert math.isclose(one.perplexity, exact.perplexity, rel_tol=0.01)
    assert found["int8"].perplexity != found["bfloat16"].perplexity  # else nothing was rounded


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "questions", lambda count, seed: [])
    monkeypatch.setattr(accuracy, "bound_spinning", lambda: None)
    monkeypatch.setattr(accuracy, "ask", lambda form, chats: accuracy.Accuracy(form, 19, 20, 1.25, 100))
    out = str(tmp_path) + "/accuracy.json"
    monkeypatch.setattr("sys.argv", ["accuracy", "--out", out])
    main()
    with open(out, "rb") as file:
        assert [one.form for one in msgspec.json.decode(file.read(), type=Report).results] == list(FORMS)
    with open(out.replace(".json", ".md")) as file:
        assert "| int8 | 95.00 % of 20 | 1.2500 |" in file.read()
