"""``lit-depth report``: one page of two models and three tasks, used in a real browser from a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_depth.integrations.run_notes import RunNote, write_note
from lit_depth.results.vega_runtime import vega_runtime
from tests.helpers.browser import Browser, missing_programs
from tests.helpers.commands import run
from tests.helpers.result_folders import EVIL, write_comparison
from tests.helpers.wandb_server import fake_server

TASKS = ("shapes", "charts", "documents")


@pytest.fixture
def folders(tmp_path: Path, comparison: dict[str, Any]) -> list[Path]:
    """Two models on three tasks; questions and answers are hostile."""
    models = (("strong", 1.0), ("weak", 0.4))
    return [
        write_comparison(tmp_path / "compare" / name, comparison, name, TASKS, right, answer=EVIL)
        for name, right in models
    ]


def report(*arguments: Any) -> int:
    return run(["report", *arguments])


def test_runs_that_were_logged_are_put_side_by_side_in_a_dashboard(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    api = fake_server(monkeypatch, there={"a1": ""})
    write_note(folders[0], RunNote("a1", "lit-depth", name="one", command="compare", headline="Strong."))
    assert report("compare", "--samples", "0", "--project", "p") == 2
    assert "--project belongs to --wandb" in capsys.readouterr().err and not (tmp_path / "report.html").exists()
    assert report("compare", "--samples", "0", "--wandb") == 0
    out = capsys.readouterr().out
    assert "workspace: https://here/me/lit-depth?nw=" in out and "report: https://here/me/lit-depth/reports/" in out
    assert f"not logged, so left out: {folders[1].relative_to(tmp_path)}" in out and len(api.views) == 2


def test_a_page_for_several_runs_and_a_table_for_each_of_its_tables(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "compare").rglob("*")}
    assert report("compare") == 0
    out = capsys.readouterr().out
    assert "2 runs of 2 models (strong, weak) on 3 tasks" in out and "strong scores higher than weak" in out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert EVIL not in page and "Models on the same samples" in page
    assert "models-on-the-same-samples.csv" in {path.name for path in (tmp_path / "report_tables").iterdir()}
    # nothing is written into the folders of the runs
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "compare").rglob("*")} == before
    assert report("compare", "--samples", "0") == 0  # a second run writes its own page anew
    assert len((tmp_path / "report.html").read_text(encoding="utf-8")) < len(page)


def test_a_page_for_one_run_takes_the_place_of_its_own(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(folders[0]) == 0 and report(folders[0], "--out", tmp_path / "other" / "page.html", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"page": str(tmp_path / "other" / "page.html"), "runs": 1}
    assert (folders[0] / "report.html").read_text() == (tmp_path / "other" / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "expected a folder of results such as results/compare/default, nowhere is none"),
        (["."], "holds no result"),
        (["compare", "--samples", "21"], "samples"),
        (["compare", "--confidence", "2"], "confidence"),
        (["compare", "--out", "page.pdf"], "expected the name of an HTML file, such as report.html, got page.pdf"),
        ([], "required: DIR"),
    ],
)
def test_mistakes_end_with_a_readable_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], comparison: dict[str, Any],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if "compare" in arguments:
        write_comparison(tmp_path / "compare", comparison)
    assert report(*arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if missing := missing_programs():
        pytest.skip(f"needs {' and '.join(missing)} (Debian: apt install chromium chromium-driver)")
    if vega_runtime() is None:
        pytest.skip("needs vl-convert-python")
    with Browser() as browser:
        yield browser


def opened(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.cdp("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.cdp("Network.enable")
    browser.cdp("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    browser.open(page)
    until(browser, "document.documentElement.classList.contains('ready')")


def until(browser: Browser, condition: str) -> None:
    deadline = time.monotonic() + 60
    while not browser.run(f"return Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def first_point(browser: Browser, chart: int) -> tuple[float, float]:
    x, y = browser.run(
        "const node = document.querySelector(`[data-chart='${arguments[0]}']`); node.scrollIntoView({block: 'center'});"
        "const box = node.querySelector('.mark-symbol.role-mark path').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]",
        chart,
    )
    return x, y


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(browser: Browser, folders: list[Path], tmp_path: Path, width: int, scheme: str) -> None:
    page = tmp_path / "page.html"
    assert report(*folders, "--out", page) == 0
    opened(browser, page, width, scheme)
    charts = browser.run("return document.querySelectorAll('[data-chart]').length")
    drawn = "return [...document.querySelectorAll('[data-chart] svg')].length"
    assert charts >= len(TASKS) + 2 * (len(TASKS) + 1) and browser.run(drawn) == charts
    # nothing lies beyond the page's width, and its paper is that of the scheme
    assert browser.run("return document.documentElement.scrollWidth") <= width
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(27, 27, 27)")
    clicks_a_point(browser, charts - 1)
    clicks_the_legend(browser, charts - 1)
    uses_the_keyboard(browser)
    assert browser.log() == []


def clicks_a_point(browser: Browser, chart: int) -> None:
    browser.move(*first_point(browser, chart))
    until(browser, "document.querySelector('#vg-tooltip-element.visible')")
    browser.move(*first_point(browser, chart), click=True)
    until(browser, "document.getElementById('samples').open")
    texts = browser.run("return [...document.querySelectorAll('#samples .sample')].map(each => each.textContent)")
    # the text of a question, of its reference and of both answers, as text
    assert texts and all(text.count(EVIL) == 4 for text in texts)
    assert browser.run("return document.querySelectorAll('#samples script, #samples .sample p img').length") == 0
    assert browser.run("return [...document.querySelectorAll('#samples img')].every(each => each.naturalWidth === 160)")
    browser.press("Escape")
    until(browser, "!document.getElementById('samples').open")


def clicks_the_legend(browser: Browser, chart: int) -> None:
    opacities = (
        f"[...document.querySelectorAll(\"[data-chart='{chart}'] .mark-symbol.role-mark path\")]"
        ".map(each => Number(each.getAttribute('opacity') ?? 1))"
    )
    assert min(browser.run(f"return {opacities}")) == 1
    x, y = browser.run(
        f"const box = document.querySelector(\"[data-chart='{chart}'] .role-legend-symbol path\")"
        ".getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
    )
    browser.move(x, y, click=True)
    until(browser, f"Math.min(...{opacities}) < 0.2 && Math.max(...{opacities}) === 1")


def uses_the_keyboard(browser: Browser) -> None:
    """Sort a table and open the samples of a mask, with nothing but keys."""
    header = "[...document.querySelectorAll('th')].filter(each => each.textContent === 'quality')[0]"
    browser.run(f"{header}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.run(f"return {header}.getAttribute('aria-sort')") == "ascending"
    column = (
        f"[...{header}.closest('table').tBodies[0].rows].map(row => Number(row.cells[{header}.cellIndex].textContent))"
    )
    ascending = browser.run(f"return {column}")
    assert ascending == sorted(ascending) and len(ascending) > 2
    browser.press("Enter")
    assert browser.run(f"return {column}") == ascending[::-1]
    browser.run("document.querySelector('button[data-mask]').focus()")
    browser.press("Enter")
    until(browser, "document.getElementById('samples').open")
    assert browser.run("return document.activeElement.textContent") == "Close"
    browser.press("Enter")
    until(browser, "!document.getElementById('samples').open")


@pytest.mark.slow
def test_without_scripts_the_page_has_all_but_the_samples(
    browser: Browser, folders: list[Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert report(*folders, "--out", page) == 0
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        document = browser.cdp("DOM.getDocument", depth=-1)
        images = browser.cdp("DOM.querySelectorAll", nodeId=document["root"]["nodeId"], selector="figure > img")
        for node in images["nodeIds"]:
            box = browser.cdp("DOM.getBoxModel", nodeId=node)["model"]
            assert box["width"] > 300 and box["height"] > 100
        assert len(images["nodeIds"]) >= 2 * (len(TASKS) + 2)
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)
