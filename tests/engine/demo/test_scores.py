from engine.demo.scores import JSON, TOOLS, Cell, accuracy, report, score, table, trained
from engine.demo.sheets import Item


def item(domain: str, task: str, answer: str) -> Item:
    return Item(domain, task, "", "?", answer)


def test_only_exactly_the_right_text_counts() -> None:
    asked = [item("zoo", "fact", "7:30"), item("zoo", "fact", "7:30"), item("vineyard", "fact", "slate")]
    cells = score(asked, ["7:30", "7:30.", "slate"])
    assert cells == [Cell("zoo", "fact", 1, 2), Cell("vineyard", "fact", 1, 1)]
    assert trained(cells) == cells[:1]
    assert accuracy([]) != accuracy([])


def test_the_table_marks_untrained_domains_and_lists_other_tasks() -> None:
    text = table([Cell("zoo", "fact", 1, 2), Cell("vineyard", "fact", 1, 1), Cell("general", "sort", 3, 4)])
    assert "| zoo |" in text
    assert "| vineyard (untrained) |" in text
    assert "| sort | 75.0 |" in text


def test_tools_and_json_are_counted_apart() -> None:
    cells = [Cell("zoo", "fact", 1, 1), Cell(TOOLS, "sum: call", 1, 2), Cell(JSON, "row", 1, 4)]
    assert trained(cells) == cells[:1]
    text = table(cells)
    assert "| with tools | exact match |\n| --- | --- |\n| sum: call | 50.0 |" in text
    assert "| row | 25.0 |" in text
    assert "untrained" not in text
    summary = report(cells, 1, 0)
    assert (summary["trained"], summary["tools"], summary["json"]) == (1.0, 0.5, 0.25)
