"""A report is one page that needs nothing else and runs nothing that a model wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from lit_depth.results.changed_samples import Change, MaskChanges, find_changes
from lit_depth.results.charts import Mark, quality_vs_blocks
from lit_depth.results.page import RunPart, write_page, write_parts
from lit_depth.results.report import Report, Section, Table
from lit_depth.results.shown_samples import Kept, ShownSample, ShownSamples
from lit_depth.results.store import save_figure
from tests.helpers.charts import WORDS

URL = "data:image/jpeg;base64,AAAA"
EVIL = '<script>alert("x")</script> & </td><img src=http://a/b onerror=x>'


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are nested."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.policy += [value or "" for name, value in attrs if name == "content" and "src" in (value or "")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    from matplotlib.figure import Figure

    save_figure(Figure(figsize=(1, 1)), tmp_path / "m5_quality.png")
    return tmp_path / "m5_quality.png"


def write(folder: Path, section: Section, figures: dict[str, Path], title: str = "t", argument: str = "x") -> str:
    path = write_page(folder, Report(title, title, [section], "test"), figures, {"name": argument})
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_holds_everything_and_links_nothing(tmp_path: Path, figure: Path) -> None:
    table = Table(["policy", "blocks", "quality"], [["prefix", 8, 0.78125], ["importance", 8, None]])
    section = Section("Quality", "One.\n\nTwo.", table, ["m5_quality"], printed=False)
    html = write(tmp_path, section, {"m5_quality": figure}, "Comparison", "mine")
    page = Page(html)
    assert page.tags.count("p") == 3 and page.tags.count("tr") == 3 and page.tags.count("table") == 1
    for text in ("Comparison", "Quality", "One.", "0.781", "importance", '"name": "mine"', "m5_quality.png"):
        assert text in page.text
    prefix = "data:image/svg+xml;base64,"
    drawn = figure.with_suffix(".svg")
    assert [base64.b64decode(link.removeprefix(prefix)) for link in page.links] == [drawn.read_bytes()]
    assert not re.search(r"https?://|<link|@import|url\(", html)
    assert html.count('class="number"') == 2 * 3  # head and cells of the columns that hold numbers


def test_a_picture_is_shown_where_nothing_else_was_drawn(tmp_path: Path, figure: Path) -> None:
    figure.with_suffix(".svg").unlink()
    page = Page(write(tmp_path, Section("Quality", figures=["m5_quality"]), {"m5_quality": figure}))
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(link.removeprefix(prefix)) for link in page.links] == [figure.read_bytes()]


def test_everything_is_escaped(tmp_path: Path) -> None:
    plain = write(tmp_path / "a", Section("h", "p", Table(["c"], [["x"]])), {})
    evil = write(tmp_path / "b", Section(EVIL, EVIL, Table([EVIL], [[EVIL]])), {}, EVIL, EVIL)
    page = Page(evil)
    assert page.tags == Page(plain).tags
    # head, page, headline, heading, paragraph, header, cell; in the arguments as JSON writes it
    assert page.text.count(EVIL) == 7 and page.text.count("onerror=x") == 8


def test_the_policy_allows_the_scripts_of_the_page_and_no_others(tmp_path: Path) -> None:
    page = Page(write_charted(tmp_path))
    data, *scripts = page.scripts
    (policy,) = page.policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert "unsafe-eval" not in policy and "default-src 'none'" in policy
    found = json.loads(data)
    assert len(found["charts"]) == 1 and found["charts"][0]["run"] == 0
    assert EVIL in json.dumps(found, ensure_ascii=False).replace('\\"', '"') and "<" not in data


def test_without_the_runtime_pictures_stay_and_the_rest_says_why(
    tmp_path: Path, figure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_depth.results.page.vega_runtime", lambda: None)
    part = charted()
    section = Section("Quality", figures=["m5_quality"])
    charts = {"quality": part.report.charts["quality"], "loose": part.report.charts["quality"]}
    report = replace(part.report, sections=[section], charts=charts, drawn={"quality": "m5_quality"})
    own = replace(part, report=report, figures={"m5_quality": figure})
    page = Page(write_parts(tmp_path / "page.html", report, [own]).read_text(encoding="utf-8"))
    assert len(page.scripts) == 2 and len(page.links) == 1  # data and the page's own; one picture
    assert page.text.count("the package vl-convert-python, which was missing") == 1


def test_masks_are_strips_and_changed_samples_stand_in_the_page(tmp_path: Path) -> None:
    page = Page(write_charted(tmp_path))
    (task,) = json.loads(page.scripts[0])["runs"][0]["tasks"]
    assert task["changes"]["10"]["worse"] == 1 and task["changes"]["10"]["shown"] == [["s0", EVIL, "b", 1.0, 0.0]]
    assert task["samples"] == {"s0": {"question": EVIL, "references": ["a"], "images": ["i"]}}  # and not the other one
    assert task["images"] == {"i": URL}
    assert page.tags.count("path") == 2 * 2 and "prefix, 1" in page.text  # active and skipped cells of two masks
    for fact in ("tiny", "What the statistics assume", "+0.500"):
        assert fact in page.text


def test_a_page_of_several_runs_has_them_all_and_links_to_their_own_pages(tmp_path: Path) -> None:
    part = charted()
    other = replace(part, link="b/report.html", facts={"run": "compare/b", "model": "other"})
    overview = Report("2 runs", "One is better.", [Section("Models", table=Table(["a"], [["x"]]))], "overview")
    page = Page(write_parts(tmp_path / "all.html", overview, [part, other]).read_text(encoding="utf-8"))
    assert page.links == ["#run-0", "#run-1", "b/report.html"]
    assert page.text.index("One is better.") < page.text.index("Models") < page.text.index("compare/b: t")
    found = json.loads(page.scripts[0])
    assert [chart["run"] for chart in found["charts"]] == [0, 1] and len(found["runs"]) == 2


def test_further_pages_of_a_run_are_linked_where_a_table_names_them(tmp_path: Path) -> None:
    section = Section("Prompts", table=Table(["prompt", "page"], [["a", "one.html"], ["b", "other.html"]]))
    part = RunPart(Report("t", "t", [section], "test", pages=["one.html"]), {}, {})
    page = Page(write_parts(tmp_path / "report.html", part.report, [part]).read_text(encoding="utf-8"))
    assert page.links == ["one.html"]
    far = replace(part, link="b%20c/report.html")
    page = Page(write_parts(tmp_path / "all.html", part.report, [far]).read_text(encoding="utf-8"))
    assert page.links == ["b%20c/one.html"]


def test_hundreds_of_masks_with_long_answers_stay_below_the_stated_size(tmp_path: Path) -> None:
    masks = [format(number, "09b") for number in range(511, 0, -1)]
    rows = [
        {"mask": mask, "sample": f"s{n}", "score": float(mask == "1" * 9), "prediction": f"{mask} {n} " + "x" * 900}
        for mask in masks
        for n in range(60)
    ]
    changes = find_changes(pd.DataFrame(rows))
    shown = ShownSample("q" * 600, ["r" * 600] * 3, ["i"])
    kept = Kept(tasks={"shapes": ShownSamples({f"s{n}": shown for n in range(60)}, {"i": URL})})
    report = Report("t", "h", [], "test")
    part = RunPart(report, {}, {}, changes={"shapes": changes}, splits={"shapes": "validation"}, kept=kept)
    assert 1_000_000 < write_parts(tmp_path / "page.html", report, [part]).stat().st_size < 5_000_000


def charted() -> RunPart:
    chart = quality_vs_blocks([Mark("prefix", 1, 0.5)], Mark("full", 2, 1.0), {**WORDS, "title": EVIL})
    report = Report("t", EVIL, [], "test", charts={"quality": chart}, masks={"prefix, 1": ["10", "00"]})
    changes = [
        MaskChanges("11", 2, 1.0, 0.0, 0, 0, 0, []),
        MaskChanges("10", 2, 0.5, 0.5, 1, 0, 0, [Change("s0", EVIL, "b", 1.0, 0.0)]),
    ]
    shown = ShownSample(EVIL, ["a"], ["i"])
    kept = Kept(tasks={"shapes": ShownSamples({"s0": shown, "s1": shown}, {"i": URL, "j": URL})})
    facts = {"run": "compare/a", "model": "tiny"}
    return RunPart(report, {}, {}, facts, changes={"shapes": changes}, splits={"shapes": "validation"}, kept=kept)


def write_charted(folder: Path) -> str:
    part = charted()
    return write_parts(folder / "page.html", part.report, [part]).read_text(encoding="utf-8")


def test_missing_or_wrong_figure_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ValueError, match=f"PNG file .*{name}"):
            write(tmp_path, Section("h", figures=["f"]), {"f": tmp_path / name})
    assert not (tmp_path / "report.html").exists()
