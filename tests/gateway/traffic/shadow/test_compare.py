import pytest

from gateway.traffic.answers import Answer
from gateway.traffic.shadow.compare import compare, is_refusal


def test_equal_answers() -> None:
    found = compare(Answer("Paris is the capital."), Answer("Paris is the capital."))
    assert (found.exact, found.normalised, found.edits, found.length, found.calls) == (True, True, 0.0, 1.0, "none")
    assert found.agrees


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [
        ("Paris!", "paris", True),
        ("The answer is 42.", "The answer is 43.", False),
        ("It costs 1,200 euros.", "It costs 1,200 euros.", True),
        ("the town of Lyon is large", "the town of Nice is large", False),
        ("I'm sorry, but I can't help with that.", "Sure: 12.", False),
        ("I'm sorry, but I can't help with that.", "I cannot assist with this request.", False),
        ('{"a": 1, "b": [1, 2]}', '```json\n{"b": [1, 2], "a": 1}\n```', True),
        ('{"a": 1, "b": [1, 2]}', '{"a": 1, "b": [1, 3]}', False),
        ('{"a": 1}', '{"a": true}', False),
        ("one of ten words may be another without any harm", "one of ten words may be another without much harm", True),
        ("", "", True),
        ("", "something", False),
    ],
)  # fmt: skip
def test_what_agrees(one: str, other: str, agrees: bool) -> None:
    assert compare(Answer(one), Answer(other)).agrees is agrees
    assert compare(Answer(other), Answer(one)).agrees is agrees


def test_what_differs_is_named() -> None:
    found = compare(Answer("we saw Ada Lovelace at 9:30, code X-17"), Answer("we saw Ada Byron at 9:45, code X-18"))
    assert found.numbers == ("30", "45")
    assert found.names == ("Ada Byron", "Ada Lovelace", "X-17", "X-18")
    assert 0 < found.edits < 0.5


def test_fields_of_json() -> None:
    found = compare(Answer('{"a": {"b": 1, "c": 2}, "d": [1]}'), Answer('{"a": {"b": 1, "c": 3}, "d": [1, 2], "e": 0}'))
    assert found.fields == ("$.a.c", "$.d", "$.e")
    assert compare(Answer("{not json"), Answer("{}")).fields is None


@pytest.mark.parametrize(
    ("calls", "others", "said"),
    [
        ([("f", '{"a": 1, "b": 2}')], [("f", '{"b":2,"a":1}')], "same"),
        ([("f", '{"a": 1}')], [("f", '{"a": 2}')], "arguments"),
        ([("f", "{}")], [("g", "{}")], "tools"),
        ([("f", "{}")], [], "tools"),
        ([("f", "{}"), ("g", "{}")], [("g", "{}"), ("f", "{}")], "same"),
        ([("f", "{broken")], [("f", "{broken")], "same"),
    ],
)
def test_tool_calls(calls: list[tuple[str, str]], others: list[tuple[str, str]], said: str) -> None:
    found = compare(Answer(calls=tuple(calls)), Answer(calls=tuple(others)))
    assert found.calls == said
    assert found.agrees == (said == "same")


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I\u2019m sorry, but I can\u2019t do that.", True),
        ("Unfortunately, I cannot do this.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I'm afraid that isn't possible.", True),
        ("I can help with that!", False),
        ("Sorry is a short word.", False),
        ("He said: I'm sorry.", False),
    ],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert is_refusal(Answer(text)) is refuses
