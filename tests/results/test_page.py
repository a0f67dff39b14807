"""The report is one page that needs nothing else and runs nothing that a model wrote."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_depth.results.page import Section, write_report
from lit_depth.results.store import save_figure

EVIL = '<script>alert("x")</script> & </td><img src=http://a/b onerror=x>'


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are nested."""

    VOID = ("meta", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    from matplotlib.figure import Figure

    save_figure(Figure(figsize=(1, 1)), tmp_path / "m5_quality.png")
    return tmp_path / "m5_quality.png"


def test_report_holds_everything_and_links_nothing(tmp_path: Path, figure: Path) -> None:
    rows = [["prefix", 8, 0.78125], ["importance", 8, None]]
    section = Section("Quality", "One.\n\nTwo.", ["policy", "blocks", "quality"], rows, [figure], "a: 1")
    path = write_report(tmp_path, "Comparison", [section, Section("Empty")])
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("p") == 2 and page.tags.count("tr") == 3 and page.tags.count("table") == 1
    for text in ("Comparison", "Quality", "One.", "0.781", "importance", "a: 1", "Empty"):
        assert text in page.text
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(link.removeprefix(prefix)) for link in page.links] == [figure.read_bytes()]
    assert not re.search(r"https?://|<link|@import|url\(", html)


def test_everything_is_escaped(tmp_path: Path) -> None:
    plain = write_report(tmp_path / "a", "t", [Section("h", "p", ["c"], [["x"]], [], "code")])
    evil = write_report(tmp_path / "b", EVIL, [Section(EVIL, EVIL, [EVIL], [[EVIL]], [], EVIL)])
    page = Page(evil.read_text(encoding="utf-8"))
    assert page.tags == Page(plain.read_text(encoding="utf-8")).tags
    assert "script" not in page.tags
    assert page.text.count(EVIL) == 7  # title twice (head and page), heading, paragraph, header, cell, code


def test_missing_or_wrong_figure_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ValueError, match=f"PNG file .*{name}"):
            write_report(tmp_path, "t", [Section("h", figures=[tmp_path / name])])
    assert not (tmp_path / "report.html").exists()
