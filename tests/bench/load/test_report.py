import base64
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from bench.load import plots
from bench.load.columns import RunFileError
from bench.load.records import Record
from bench.load.report import write
from bench.load.summary import as_json, parse_slo, summarize
from bench.load.sweep import Level, Sweep
from tests.bench.load.made import queue, run_info, write_run

EVIL = "<script>alert('1')</script> & \"co\""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page: its text, its tags with their attributes, and that each is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def images(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def summarized(folder: Path, records: list[Record], bound: float = 0.01, **changes: str) -> Path:
    info, slo = run_info(**changes), parse_slo("ttft=300ms,tpot=20ms")
    write_run(folder, records, info)
    (folder / "summary.json").write_bytes(as_json(summarize(info, records, slo, bound=bound)))
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without plots: drawing is what takes the time."""
    monkeypatch.setattr(plots, "plots", lambda columns, series: iter(()))


def test_a_report_is_one_page_that_needs_nothing_else_and_a_picture_for_each_plot(tmp_path: Path) -> None:
    written = write(summarized(tmp_path, queue(300, failing=0.02, cached=0.5)))
    assert sorted(one.name for one in written) == [
        "caches.png", "distributions.png", "latency.png", "load.png", "report.html", "requests.png",
    ]  # fmt: skip
    assert all(one.read_bytes().startswith(b"\x89PNG") for one in written if one.suffix == ".png")
    page = Page(tmp_path / "report.html")
    assert len(page.images()) == 5
    for image in page.images():
        kind, _, data = image.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        assert not (attributes.get("href") or "").startswith("http")
    css = (tmp_path / "report.html").read_text().partition("</style>")[0]
    assert "url(" not in css
    assert "prefers-color-scheme: dark" in css
    assert "@media print" in css
    for fact in ("goodput", "A CPU", "poisson:20", "penstock", "1.2", "50.0% of them cached", "refused"):
        assert fact in page.text
    assert "invalid" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_whatever_a_run_is_called_it_is_text(tmp_path: Path) -> None:
    records = queue(50, failing=0.2)
    for record in records:
        record.error = EVIL if record.outcome == "refused" else ""
        record.group = EVIL if record.index % 2 else ""
    write(summarized(tmp_path, records, title=EVIL, model=EVIL, workload=EVIL, target=EVIL))
    page = Page(tmp_path / "report.html")
    assert all(tag != "script" for tag, _ in page.tags)
    assert page.text.count("alert('1')") >= 6


@pytest.mark.usefixtures("undrawn")
def test_an_invalid_run_says_so_on_top(tmp_path: Path) -> None:
    write(summarized(tmp_path, queue(50), bound=0.0001))
    text = Page(tmp_path / "report.html").text
    assert text.index("This run is invalid") < text.index("Latencies")
    assert "Do not use its figures" in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_a_summary_is_summed_up(tmp_path: Path) -> None:
    write(write_run(tmp_path, queue(50)))
    text = Page(tmp_path / "report.html").text
    assert "50 requests" in text
    assert "goodput" not in text


def test_a_run_without_requests_has_a_page_and_no_plots(tmp_path: Path) -> None:
    assert [one.name for one in write(write_run(tmp_path, []))] == ["report.html"]


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_has_its_knee_and_a_report_for_each_side_of_it(tmp_path: Path) -> None:
    levels = []
    for rate, held in ((10, True), (40, False), (20, True), (30, False)):
        summarized(tmp_path / f"rate-{rate}", queue(60, rate=rate))
        levels.append(Level(rate=rate, goodput=0.99 if held else 0.5, held=held, folder=f"rate-{rate}"))
    sweep = Sweep(slo="ttft=300ms", share=0.95, precision=0.05, highest=20, lowest_failing=30, levels=levels)
    (tmp_path / "sweep.json").write_bytes(msgspec.json.encode(sweep))
    written = {str(one.relative_to(tmp_path)) for one in write(tmp_path)}
    assert {"report.html", "goodput.png", "rate-20/report.html", "rate-30/report.html"} <= written
    assert not any(one.startswith(("rate-10", "rate-40")) for one in written)
    page = Page(tmp_path / "report.html")
    assert "20 requests/s is the highest rate that kept 95% of all requests within ttft=300ms" in page.text
    assert [one["href"] for tag, one in page.tags if tag == "a"] == ["rate-20/report.html", "rate-30/report.html"]


@pytest.mark.parametrize(
    ("highest", "failing", "said"),
    [(None, 5.0, "No rate kept 95% of all requests"), (5.0, None, "Every rate kept 95% of all requests")],
)
def test_a_sweep_without_a_knee(tmp_path: Path, highest: float | None, failing: float | None, said: str) -> None:
    levels = [Level(rate=5.0, goodput=0.5, held=highest is not None)]
    sweep = Sweep(slo="ttft=1s", share=0.95, precision=0.05, highest=highest, lowest_failing=failing, levels=levels)
    (tmp_path / "sweep.json").write_bytes(msgspec.json.encode(sweep))
    write(tmp_path)
    assert said in Page(tmp_path / "report.html").text


@pytest.mark.usefixtures("undrawn")
def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"has no records\.jsonl"):
        write(tmp_path)
    write_run(tmp_path, queue(5))
    (tmp_path / "summary.json").write_bytes(b"[]")
    with pytest.raises(RunFileError, match="is no summary"):
        write(tmp_path)
