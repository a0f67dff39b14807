"""The page of token masking in a real browser: it shows the table that it was given, and runs nothing of it."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lit_depth.results.token_tables import COLUMNS, METRICS, read_token_masking, write_token_masking
from lit_depth.studies.tokens.analysis import Measured
from lit_depth.studies.tokens.prompts import Prompt
from lit_depth.studies.tokens.token_page import SPANS, CropImage, write_files, write_token_page
from tests.helpers.browser import Browser, missing_programs
from tests.studies.tokens.test_knockout_results import knocked_out

EVIL = "<script>alert(1)</script>"
TOKENS = [
    "<bos>",
    "<im_patch>",
    "<im_patch>",
    "<im_patch>",
    EVIL,
    " the",
    'a "b", c',
    "line\nfeed",
    "",
    "</script><!--",
    "{{table}}",
]
LAYERS, VARIANTS = (0, 1, 2, 5), ("Head_10", "Full", "Head_2", "Attn")
HEADER = ",".join(COLUMNS) + "\n"
UNDEFINED = (0, 2, 4, "Full")  # (step, layer, position, variant)


def make_frame(num_tokens: int = len(TOKENS), steps: int = 2) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        (step, layer, TOKENS[position % len(TOKENS)], position, variant)
        for step in range(steps)
        for layer in LAYERS
        for position in range(num_tokens - steps + 1 + step)
        for variant in VARIANTS
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS[:5])
    for metric in METRICS:
        frame[metric] = generator.exponential(size=len(frame)).astype(np.float32)
    key = list(zip(frame["generation_step"], frame["layer"], frame["token_position"], frame["variant"]))
    frame.loc[[k == UNDEFINED for k in key], list(METRICS)] = np.nan
    return frame.sample(frac=1, random_state=0, ignore_index=True)  # the order of rows must not matter


def make_image() -> CropImage:
    """A 60 x 40 picture, grey, whose overview is one token and whose crops are two halves; one token shows nothing."""
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (128, 128, 128)).save(file, format="png")
    halves = [
        (1, 0, (0.0, 0.0, 60.0, 40.0)),
        (2, 1, (0.0, 0.0, 30.0, 40.0)),
        (3, 2, (30.0, 0.0, 60.0, 40.0)),
        (5, 2, None),
    ]
    return CropImage(file.getvalue(), 60, 40, halves)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if missing := missing_programs():
        pytest.skip(f"needs {' and '.join(missing)} (Debian: apt install chromium chromium-driver)")
    with Browser() as browser:
        yield browser


class Page:
    """What a user does and sees."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def centre(self, selector: str) -> tuple[float, float]:
        script = "const r = document.querySelector(arguments[0]).getBoundingClientRect(); "
        x, y = self.browser.run(script + "return [r.x + r.width / 2, r.y + r.height / 2]", selector)
        return x, y

    def cell(self, position: int, column: int) -> tuple[float, float]:
        """Middle of a cell; column 0 is the mean. Scrolling that is under way ends first: it hides the tooltip."""
        self.browser.run(
            "document.getElementById('grid').scrollIntoView({block: 'nearest'});"
            "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
        )
        y = self.centre(f'.label[data-position="{position}"]')[1]
        return self.centre(f'.column[data-column="{column}"]')[0], y

    def hover(self, position: int, column: int) -> dict[str, str]:
        self.browser.move(*self.cell(position, column))
        return self.tooltip()

    def tooltip(self) -> dict[str, str]:
        terms, texts = self.browser.run(
            "if (document.getElementById('tooltip').hidden) return [[], []];"
            "return ['dt', 'dd'].map(n => [...document.querySelectorAll('#tooltip ' + n)].map(e => e.textContent))"
        )
        return dict(zip(terms, texts))

    def pixel(self, x: float, y: float, canvas: str = "canvas") -> list[int]:
        """Colour that a canvas shows at a point of the window."""
        script = (
            "const c = document.getElementById(arguments[0]), r = c.getBoundingClientRect();"
            "const x = Math.floor(arguments[1] - r.x), y = Math.floor(arguments[2] - r.y);"
            "return [...c.getContext('2d').getImageData(x, y, 1, 1).data]"
        )
        return self.browser.run(script, canvas, x, y)[:3]

    def colours(self) -> dict[tuple[int, int], list[int]]:
        """(position, column) of every cell in sight -> its colour on the canvas; column 0 is the mean."""
        found = self.browser.run(
            "const c = document.getElementById('canvas'), r = c.getBoundingClientRect(), g = c.getContext('2d');"
            "const middle = (e) => [e, e.getBoundingClientRect()].map((f, i) => i ? [f.x + f.width / 2, f.y + 10] : f);"
            "return [...document.querySelectorAll('.label')].map(middle).flatMap(([row, [, y]]) =>"
            "[...document.querySelectorAll('.column')].map(middle).map(([column, [x]]) => "
            "[+row.dataset.position, +column.dataset.column, [...g.getImageData(x - r.x, y - r.y, 1, 1).data]]))"
        )
        return {(position, column): pixel[:3] for position, column, pixel in found}

    def choose(self, name: str, value: Any) -> None:
        """Set a control as a user would: the value, then the event."""
        self.browser.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "if (e.value !== String(arguments[1])) throw Error('no such choice');"
            "e.dispatchEvent(new Event(e.tagName === 'INPUT' ? 'input' : 'change', {bubbles: true}))",
            name,
            str(value),
        )

    def positions(self) -> list[int]:
        """Positions of the rows in sight, from top to bottom."""
        return self.browser.run(
            "const rows = [...document.querySelectorAll('.label')];"
            "return rows.map(e => [e.getBoundingClientRect().y, +e.dataset.position])"
            ".sort((a, b) => a[0] - b[0]).map(pair => pair[1])"
        )

    def text(self, selector: str) -> str:
        return self.browser.run("return document.querySelector(arguments[0]).textContent", selector)

    def there(self, selector: str) -> bool:
        return self.browser.run("return document.querySelector(arguments[0]) !== null", selector)

    def visible(self, selector: str) -> bool:
        return self.browser.run("return document.querySelector(arguments[0]).checkVisibility()", selector)

    def wait(self, condition: Callable[[], Any]) -> None:
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("the page did not get there within 10 s")


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    def open_page(frame: pd.DataFrame | None, **arguments: Any) -> Page:
        path = write_token_page(tmp_path / "page.html", frame, **{"title": "Tokens", **arguments})
        browser.open(path)
        shown = Page(browser)
        if frame is not None:
            shown.wait(lambda: browser.run("return document.documentElement.dataset.firstHeatMapMs"))
            shown.choose("scale", "linear")
        return shown

    yield open_page
    assert browser.log() == []  # no error, nothing refused by the policy
    assert (
        browser.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )


def cells(frame: pd.DataFrame, step: int, variant: str, metric: str) -> pd.DataFrame:
    """The heat map that should be there: positions x layers."""
    rows = frame[(frame["generation_step"] == step) & (frame["variant"] == variant)]
    return rows.pivot(index="token_position", columns="layer", values=metric)


def shown_value(value: float) -> Any:
    return "undefined" if np.isnan(value) else pytest.approx(value, rel=1e-5)


def parsed(text: str) -> Any:
    return text if text == "undefined" else float(text)


def viridis(share: float) -> np.ndarray:
    return 255 * np.array(matplotlib.colormaps["viridis"](share)[:3])


class TestHeatMap:
    @pytest.mark.parametrize(("step", "variant"), [(0, "Full"), (1, "Head_10")])
    def test_values_on_hover(self, page: Callable[..., Page], step: int, variant: str) -> None:
        frame = make_frame()
        shown = page(frame)
        shown.choose("step", step)
        shown.choose("variant", ["Full", "Attn", "Head_2", "Head_10"].index(variant))
        expected = {metric: cells(frame, step, variant, metric) for metric in METRICS}
        assert shown.positions() == expected["l2_distance"].index.tolist()
        for position in (0, 4, 9):
            for column, layer in enumerate(LAYERS, start=1):
                found = shown.hover(position, column)
                assert json.loads(found["token"]) == TOKENS[position]
                assert (found["position"], found["block"], found["step"], found["variant"]) == (
                    str(position),
                    str(layer),
                    str(step),
                    variant,
                )
                for metric, name in zip(METRICS, ("L2 distance", "cosine distance")):
                    assert parsed(found[name]) == shown_value(expected[metric].loc[position, layer])
            mean = shown.hover(position, 0)
            assert parsed(mean["L2 distance"]) == shown_value(expected["l2_distance"].loc[position].mean())

    @pytest.mark.parametrize("metric", METRICS)
    def test_colours_are_viridis_from_zero_to_the_largest(self, page: Callable[..., Page], metric: str) -> None:
        frame = make_frame()
        shown = page(frame)
        shown.browser.run(f"document.querySelector('[value={metric}]').click()")
        expected = cells(frame, 0, "Full", metric)
        largest = np.nanmax(expected.to_numpy())
        colours = shown.colours()
        assert {position for position, _ in colours} == set(expected.index)
        for position in expected.index:
            assert np.abs(viridis(expected.loc[position].mean() / largest) - colours[position, 0]).max() < 4
            for column, layer in enumerate(LAYERS, start=1):
                value, pixel = expected.loc[position, layer], colours[position, column]
                if np.isnan(value):
                    assert (position, layer) == (UNDEFINED[2], UNDEFINED[1])
                    assert len(set(pixel)) == 1 and pixel[0] > 100  # grey, which viridis has nowhere
                else:
                    assert np.abs(viridis(value / largest) - pixel).max() < 4
        ticks = shown.browser.run(
            "return [...document.querySelectorAll('#legend .ticks span')].map(e => +e.textContent)"
        )
        assert ticks == pytest.approx([share * largest for share in (0, 0.25, 0.5, 0.75, 1)], rel=6e-3)
        assert ("cosine" if metric == "cosine_distance" else "L2") in shown.text("#legend")
        assert "undefined" in shown.text("#legend")

    def test_logarithmic_and_shared_range(self, page: Callable[..., Page]) -> None:
        frame = make_frame()
        frame.loc[(frame["generation_step"] == 1) & (frame["variant"] == "Full"), "l2_distance"] *= 100
        shown = page(frame)
        first = cells(frame, 0, "Full", "l2_distance").to_numpy()
        both = np.concatenate([first, cells(frame, 1, "Full", "l2_distance").to_numpy()])
        value = cells(frame, 0, "Full", "l2_distance").loc[3, 1]
        for choice, values in (("step", first), ("steps", both)):
            shown.choose("range", choice)
            for scale in ("linear", "log"):
                shown.choose("scale", scale)
                high, low = np.nanmax(values), max(np.nanmin(values), np.nanmax(values) / 1e4)
                share = value / high if scale == "linear" else np.log(value / low) / np.log(high / low)
                assert np.abs(viridis(share) - shown.pixel(*shown.cell(3, 2))).max() < 4

    @pytest.mark.parametrize("order", ["mean", "largest", "2"])
    def test_orders(self, page: Callable[..., Page], order: str) -> None:
        frame = make_frame()
        shown = page(frame)
        shown.choose("order", order)
        table = cells(frame, 0, "Full", "l2_distance")
        key = {"mean": table.mean(axis=1), "largest": table.max(axis=1), "2": table[2]}[order]
        assert shown.positions() == key.sort_values(ascending=False, na_position="last").index.tolist()
        # a second click on the sorted column goes back; the first orders by it
        shown.choose("order", "position")
        column = {"mean": 0, "largest": 4, "2": 3}[order]
        key = table.mean(axis=1) if column == 0 else table[LAYERS[column - 1]]
        for expected in (key.sort_values(ascending=False, na_position="last").index.tolist(), table.index.tolist()):
            shown.browser.move(*shown.centre(f'.column[data-column="{column}"]'), click=True)
            assert shown.positions() == expected

    def test_all_steps_in_one_table(self, page: Callable[..., Page]) -> None:
        frame = make_frame()
        shown = page(frame, images=[make_image()])
        tables = [cells(frame, step, "Full", "l2_distance") for step in (0, 1)]
        shown.choose("step", -1)
        both = [(step, position) for step, table in enumerate(tables) for position in table.index]
        found = shown.browser.run(
            "return [...document.querySelectorAll('.label')].map(e => [+e.dataset.step, +e.dataset.position])"
        )
        assert sorted(map(tuple, found)) == both
        count = len(tables[0])
        shown.browser.run("moveCursor(arguments[0], 2)", count + 3)
        assert shown.text("#status").startswith('token "<im_patch>", position 3, block 1, variant Full, step 1, ')
        assert f"L2 distance {tables[1].loc[3, 1]:.6g}"[:16] in shown.text("#status")
        shown.choose("first", "out")
        shown.browser.run("moveCursor(0, 2)")
        shown.choose("first", "out")
        assert "position 1," in shown.text("#status")
        assert 0 not in shown.positions() and len(shown.positions()) == len(both) - 2
        shown.choose("kind", "image")
        assert sorted(shown.positions()) == sorted(2 * [1, 2, 3, 5])
        shown.browser.press("]")
        shown.browser.run("document.getElementById('next').click()")
        assert shown.browser.run("return document.getElementById('step').value") in ("0", "1")

    @pytest.mark.parametrize("scale", ["root", "percentile"])
    def test_scales_of_every_block(self, page: Callable[..., Page], scale: str) -> None:
        frame = make_frame()
        frame.loc[frame["token_position"] == 0, "l2_distance"] = 1e3
        shown = page(frame)
        for name, value in {"scale": scale, "range": "block", "first": "out"}.items():
            shown.choose(name, value)
        table = cells(frame, 0, "Full", "l2_distance").drop(0)
        colours = shown.colours()
        for column, layer in enumerate(LAYERS, start=1):
            values = table[layer].dropna()
            for position, value in values.items():
                share = (value / values.max()) ** 0.5 if scale == "root" else (values < value).sum() / (len(values) - 1)
                assert np.abs(viridis(share) - colours[position, column]).max() < 4, (position, layer)

    def test_filter_and_kind(self, page: Callable[..., Page]) -> None:
        shown = page(make_frame(), images=[make_image()])
        shown.choose("filter", "SCRIPT")
        assert shown.positions() == [4, 9]
        shown.choose("filter", "")
        shown.choose("kind", "image")
        assert shown.positions() == [1, 2, 3, 5]
        shown.choose("kind", "other")
        assert shown.positions() == [0, 4, 6, 7, 8, 9]
        shown.choose("filter", "nowhere")
        assert shown.positions() == []

    def test_keyboard(self, page: Callable[..., Page]) -> None:
        frame = make_frame()
        shown = page(frame)
        shown.browser.run("document.getElementById('grid').focus()")

        def status() -> tuple[str, ...]:
            found = re.search(r"position (\d+), block (.*?), variant (\w+), step (\d+)", shown.text("#status"))
            assert found
            return found.groups()

        assert status() == ("0", "0", "Full", "0")
        shown.browser.press("Down", "Down", "Right", "Right", "Right", "Right", "Right")
        assert status() == ("2", "5", "Full", "0")
        shown.browser.press("Up", "Left")
        assert status() == ("1", "2", "Full", "0")
        shown.browser.press("End")
        assert status() == ("9", "2", "Full", "0")
        shown.browser.press("Home", "]")
        assert status() == ("0", "2", "Full", "1")
        shown.browser.press("[", "m", "Enter")
        table = cells(frame, 0, "Full", "cosine_distance")
        assert shown.positions() == table[2].sort_values(ascending=False, na_position="last").index.tolist()
        shown.browser.press("Home")
        assert status()[0] == str(table[2].idxmax())
        shown.browser.press(*["Left"] * 5)
        assert status()[1] == "mean of 4"

    def test_many_tokens_scroll_to_the_end(self, page: Callable[..., Page]) -> None:
        frame = make_frame(num_tokens=3000, steps=1)
        shown = page(frame)
        assert len(shown.positions()) < 60  # only what is in sight exists
        shown.browser.run("document.getElementById('grid').focus()")
        shown.browser.press("PageDown")
        assert 10 < int(re.search(r"position (\d+)", shown.text("#status"))[1]) < 60  # type: ignore[index]
        shown.browser.press("End")
        shown.wait(lambda: shown.positions()[-1] == 2999)
        found = shown.hover(2999, 4)
        assert parsed(found["L2 distance"]) == shown_value(cells(frame, 0, "Full", "l2_distance").loc[2999, 5])

    def test_more_rows_than_a_page_can_be_tall(self, page: Callable[..., Page]) -> None:
        count = 600_000  # 12 million pixels of rows
        frame = pd.DataFrame(
            {
                "generation_step": 0,
                "layer": 0,
                "token_masked": "x",
                "token_position": np.arange(count),
                "variant": "Full",
            }
        )
        frame["l2_distance"] = frame["cosine_distance"] = np.arange(count, dtype=np.float32)
        shown = page(frame)
        for share in (1.0, 0.5, 0.0):
            shown.browser.run(
                "const g = document.getElementById('grid'); g.scrollTop = arguments[0] * g.scrollHeight", share
            )
            time.sleep(0.1)
            seen = shown.positions()
            assert seen == list(range(seen[0], seen[-1] + 1))
            assert seen[-1] == count - 1 if share == 1 else abs(seen[0] - share * count) < 50
        shown.browser.run("document.getElementById('grid').focus()")
        shown.browser.press("End", "Up")
        shown.wait(lambda: count - 2 in shown.positions())
        assert parsed(shown.hover(count - 2, 1)["L2 distance"]) == count - 2

    @pytest.mark.parametrize("width", [1280, 420])
    def test_nothing_is_wider_than_the_window(self, page: Callable[..., Page], width: int) -> None:
        frame = make_frame()
        frame["token_masked"] = frame["token_masked"].replace(TOKENS[0], 500 * "x")
        shown = page(frame, images=[make_image()], title=500 * "x")
        metrics = dict(width=width, height=800, deviceScaleFactor=1, mobile=False)
        shown.browser.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        try:
            # the browser takes over the new size in one of its next frames
            script = "const e = document.documentElement; return e.scrollWidth <= e.clientWidth && e.clientWidth"
            shown.wait(lambda: 0 < shown.browser.run(script) <= width)
        finally:
            shown.browser.cdp("Emulation.clearDeviceMetricsOverride")
        assert 500 * "x" in shown.text("#status")

    def test_dark_where_the_reader_likes_it_dark(self, page: Callable[..., Page]) -> None:
        shown = page(make_frame(), images=[make_image()], answer="red")
        scheme = "prefers-color-scheme"
        try:
            for name, paper in (("dark", [27, 27, 27]), ("light", [255, 255, 255])):  # switched while it is looked at
                shown.browser.cdp("Emulation.setEmulatedMedia", features=[{"name": scheme, "value": name}])
                x, y = shown.cell(0, 1)
                left = shown.browser.run("return document.querySelector('.column[data-column=\"1\"]').offsetWidth")
                shown.wait(lambda: shown.pixel(x - left / 2 - 2, y) == paper)  # noqa: B023  # between two columns
                assert {tuple(ground) for _, _, ground in shown.browser.run(_TEXTS)} <= {(0, 0, 0), tuple(paper)}
                faint = [(text, ink) for text, ink, _ in shown.browser.run(_TEXTS) if contrast(ink, paper) < 4.5]
                assert not faint
        finally:
            shown.browser.cdp("Emulation.setEmulatedMedia", features=[])


# text, its colour, and the colour behind it where it has one of its own, of all that is no control
_TEXTS = """
const numbers = (colour) => {
  const [r, g, b, a] = colour.match(/[0-9.]+/g).map(Number);
  return a === 0 ? [0, 0, 0] : [r, g, b];
};
return [...document.querySelectorAll('h1, h2, p, a, q, span, figcaption, .column, #corner')]
  .filter(e => e.checkVisibility() && e.textContent.trim() && !e.closest('#tooltip, .current, .sorted'))
  .map(e => [e.textContent.slice(0, 40), ...['color', 'backgroundColor'].map(n => numbers(getComputedStyle(e)[n]))])
"""


def contrast(ink: list[int], paper: list[int]) -> float:
    """Of two colours, as WCAG 2 defines it: 4.5 is enough for text."""

    def luminance(colour: list[int]) -> float:
        shares = np.array(colour) / 255
        return float(
            np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


class TestImage:
    def test_overlay(self, page: Callable[..., Page]) -> None:
        frame = make_frame()
        shown = page(frame, images=[make_image()])
        shown.wait(lambda: shown.there("#thumbnails button") and shown.visible("#thumbnails button"))
        shown.choose("opacity", 100)
        table = cells(frame, 0, "Full", "l2_distance").loc[[1, 2, 3]]
        shown.browser.run("document.getElementById('pictures').scrollIntoView()")
        for block, column in ((-1, None), (0, 0), (3, 5)):
            shown.choose("block", block)
            values = table.mean(axis=1) if column is None else table[column]
            largest = values.max()
            x, y = shown.centre("#overview")
            assert np.abs(viridis(values[1] / largest) - shown.pixel(x, y, "overview")).max() < 4
            width = shown.browser.run("return document.getElementById('crops').clientWidth")
            x, y = shown.centre("#crops")
            for position, shift in ((2, -width / 4), (3, width / 4)):
                assert np.abs(viridis(values[position] / largest) - shown.pixel(x + shift, y, "crops")).max() < 4
                shown.browser.move(x + shift, y)
                found = shown.tooltip()
                assert (found["position"], found["crop"]) == (str(position), str(position - 1))
                assert parsed(found["L2 distance"]) == shown_value(values[position])
        shown.choose("opacity", 0)
        assert shown.pixel(*shown.centre("#overview"), "overview") == [128, 128, 128]

    def test_every_block_and_the_mean_have_a_small_picture(self, page: Callable[..., Page]) -> None:
        frame = make_frame()
        shown = page(frame, images=[make_image()])
        shown.wait(lambda: shown.there("#thumbnails button") and shown.visible("#thumbnails button"))
        names = shown.browser.run("return [...document.querySelectorAll('#thumbnails button')].map(e => e.textContent)")
        assert names == ["mean of blocks", *(f"block {layer}" for layer in LAYERS)]
        shown.browser.run("document.querySelectorAll('#thumbnails button')[3].click()")
        assert shown.browser.run("return document.getElementById('block').value") == "2"
        assert shown.browser.run("return document.querySelectorAll('#thumbnails button')[3].ariaPressed") == "true"

    def test_no_image_no_view(self, page: Callable[..., Page]) -> None:
        shown = page(make_frame())
        assert not shown.visible("#pictures") and not shown.visible("#kind")


class TestFiles:
    @pytest.mark.parametrize("kind", ["csv", "json", "json_nan", "csv_crlf"])
    def test_dropped_on_an_empty_page(self, page: Callable[..., Page], tmp_path: Path, kind: str) -> None:
        frame = make_frame()
        shown = page(None)
        assert shown.visible("#drop") and not shown.visible("#heat")
        path = tmp_path / f"masking_results.{kind[:4].strip('_')}"
        if kind == "csv":
            frame.assign(further=1).to_csv(path, index=False)
        elif kind == "csv_crlf":
            frame.to_csv(path, index=False, lineterminator="\r\n", encoding="utf-8-sig")
        elif kind == "json":
            frame.to_json(path, orient="records")  # NaN becomes null
        else:
            path.write_text(json.dumps(frame.to_dict("records")))  # NaN, which is not JSON
        shown.browser.drop(path)
        shown.wait(lambda: shown.visible("#heat"))
        assert not shown.visible("#drop") and not shown.visible("#message")
        assert path.name in shown.text("#summary") and f"{len(frame)} rows" in shown.text("#summary")
        table = cells(frame, 0, "Full", "l2_distance")
        for position in (2, 4, 6, 7, 8):
            found = shown.hover(position, 3)
            assert json.loads(found["token"]) == TOKENS[position]
            assert parsed(found["L2 distance"]) == shown_value(table.loc[position, 2])

    @pytest.mark.parametrize("kind", ["csv", "json"])
    def test_several_prompts_are_chosen_from(self, page: Callable[..., Page], tmp_path: Path, kind: str) -> None:
        first, second = make_frame(), make_frame(num_tokens=5, steps=1)
        second = second.assign(token_masked="x" + second["token_masked"], l2_distance=second["l2_distance"] * 7)
        second = second[second["variant"] != "Attn"]
        both = pd.concat([first.assign(prompt=EVIL), second.assign(prompt="0")]).sample(frac=1, random_state=1)
        both = pd.concat([both[both["prompt"] == EVIL][:1], both]).drop_duplicates()  # the order of the file counts
        paths = write_token_masking(tmp_path, both.reset_index(drop=True))
        shown = page(None)
        shown.browser.drop(next(path for path in paths if path.suffix == f".{kind}"))
        shown.wait(lambda: shown.visible("#heat"))
        assert shown.browser.run("return [...document.querySelectorAll('#prompt option')].map(e => e.textContent)") == [
            EVIL,
            "0",
        ]
        shown.choose("variant", 2)  # Head_2, which the other prompt has at another place
        for prompt, frame in ((1, second), (0, first)):
            shown.choose("prompt", prompt)
            table = cells(frame, 0, "Head_2", "l2_distance")
            assert shown.positions() == table.index.tolist()
            assert f"prompt {prompt + 1} of 2: {len(frame)} rows" in shown.text("#summary")
            for position in (1, 3):
                found = shown.hover(position, 2)
                assert found["variant"] == "Head_2"
                assert json.loads(found["token"]) == "x" * prompt + TOKENS[position]
                assert parsed(found["L2 distance"]) == shown_value(table.loc[position, LAYERS[1]])

    def test_knockouts_are_chosen_from_and_told_of_the_answer(self, page: Callable[..., Page]) -> None:
        found = knocked_out()
        shown = page(
            make_frame(),
            knockouts=found._replace(
                spans=[found.spans[0]._replace(name=EVIL), *found.spans[1:]],
                answers=found.answers.replace("image [0-1]", EVIL),
                positions=found.positions.replace("image [0-1]", EVIL),
            ),
        )
        assert (
            shown.text("#prompts-name") == "Shown" and shown.visible("#cell") and not shown.visible("#cell-of-knockout")
        )
        # the third span is that of the last position: nothing stands behind it
        names = shown.browser.run("return [...document.querySelectorAll('#prompt option')].map(e => e.textContent)")
        before = "hidden from a block on: "
        assert names == ["one token, from one block", before + EVIL, before + "a [2]"]
        shown.choose("prompt", 1)
        assert shown.positions() == [2, 3] and shown.visible("#cell-of-knockout")
        cell = shown.hover(3, 2)
        assert (cell["from block"], cell["L2 distance"], cell["cosine distance"]) == ("1", "31", "0.5")
        rows = shown.browser.run(
            "const rows = [...document.querySelectorAll('#knockouts-of-answer tr')];"
            "return rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert rows == [
            ["hidden", "0", "1"],
            [EVIL, "0.00", "0.50"],
            ["a [2]", "1.00", "1.50"],
            ["b [3]", "2.00", "2.50"],
        ]

    def test_one_prompt_is_not_chosen_from(self, page: Callable[..., Page], tmp_path: Path) -> None:
        shown = page(make_frame())
        assert not shown.visible("#prompt")
        make_frame(num_tokens=5, steps=1).assign(prompt="a").to_csv(tmp_path / "one.csv", index=False)
        shown.browser.drop(tmp_path / "one.csv")
        shown.wait(lambda: len(shown.positions()) == 5)
        assert not shown.visible("#prompt") and "one.csv: 80 rows" in shown.text("#summary")

    def test_replaces_what_was_shown(self, page: Callable[..., Page], tmp_path: Path) -> None:
        shown = page(make_frame(), images=[make_image()])
        other = make_frame(num_tokens=5, steps=1)
        other.to_csv(tmp_path / "other.csv", index=False)
        shown.browser.drop(tmp_path / "other.csv")
        shown.wait(lambda: len(shown.positions()) == 5)
        assert not shown.visible("#pictures")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", ",".join(COLUMNS[2:6]), "missing columns generation_step, layer, cosine_distance"),
            ("a.csv", "", "missing columns generation_step, layer"),
            ("a.csv", ",".join(COLUMNS), "at least one row"),
            ("a.csv", HEADER + "0,0,a,0,Full,1\n", "row 1: expected 7 fields, got 6"),
            ("a.csv", HEADER + "0,0,a,0,Full,1,x\n", 'row 1: expected a number in cosine_distance, got "x"'),
            ("a.csv", HEADER + "0,,a,0,Full,1,1\n", 'row 1: expected a whole number from 0 on in layer, got ""'),
            ("a.csv", HEADER + "0,0,a,0,Half,1,1\n", 'got "Half"'),
            ("a.csv", HEADER + '0,0,"a,0,Full,1,1\n', "never closed"),
            ("a.csv", HEADER + '0,0,"a"b,0,Full,1,1\n', 'closing quotation mark, got "b"'),
            ("a.csv", HEADER + 2 * "0,0,a,0,Full,1,1\n", "row 2: step 0, layer 0, position 0, Full occurs twice"),
            ("a.csv", HEADER + "0,0,a,0,Full,1,1\n0,1,b,0,Full,1,1\n", 'row 2: position 0 is "a" and "b" in step 0'),
            ("a.csv", f"prompt,{HEADER}" + 2 * "p,0,0,a,0,Full,1,1\nq,0,0,a,0,Full,1,1\n", "row 3: step 0, layer 0"),
            ("a.csv", f"prompt,{HEADER}p,0,0,a,0,Full,1,1\nq,0,x,a,0,Full,1,1\n", "row 2: expected a whole number"),
            ("a.json", '[{"layer": 0}]', "missing columns generation_step, token_masked"),
            ("a.json", '{"layer": 0}', "expected a list of records"),
            ("a.json", "[1, 2]", "expected a list of records"),
            ("a.json", "[{]", "not valid JSON"),
            ("a.parquet", "PAR1\x15", "pandas.read_parquet"),
            (f"{EVIL.replace('/', '')}.csv", EVIL, "missing columns"),
        ],
    )  # fmt: skip
    def test_bad_files_are_explained(
        self, page: Callable[..., Page], tmp_path: Path, name: str, content: str, message: str
    ) -> None:
        shown = page(make_frame())
        before = shown.positions()
        (tmp_path / name).write_text(content)
        shown.browser.drop(tmp_path / name)
        shown.wait(lambda: "Cannot read" in shown.text("#message"))
        assert message in shown.text("#message") and name in shown.text("#message")
        assert shown.visible("#message") and shown.visible("#heat") and shown.positions() == before

    def test_a_bad_file_leaves_an_empty_page_usable(self, page: Callable[..., Page], tmp_path: Path) -> None:
        shown = page(None)
        (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
        shown.browser.drop(tmp_path / "bad.csv")
        shown.wait(lambda: "missing columns generation_step" in shown.text("#message"))
        assert shown.visible("#message") and shown.visible("#drop")
        make_frame().to_csv(tmp_path / "good.csv", index=False)
        shown.browser.drop(tmp_path / "good.csv")
        shown.wait(lambda: shown.visible("#heat"))
        assert not shown.visible("#message")


def test_hostile_text_is_shown_as_text(page: Callable[..., Page]) -> None:
    shown = page(make_frame(), title=EVIL, images=[make_image()])
    assert shown.text("h1") == shown.text("title") == EVIL
    assert shown.text('.label[data-position="4"] .token') == EVIL
    assert json.loads(shown.hover(4, 1)["token"]) == EVIL
    shown.choose("step", 1)
    assert shown.text('.label[data-position="10"] .token') == "{{table}}"
    assert shown.browser.run("return document.scripts.length") == 6  # an alert would have made this fail
    assert shown.browser.run("return [...document.scripts].filter(s => !s.type).length") == 1


def test_inserted_markup_would_not_run(browser: Browser, tmp_path: Path) -> None:
    """The second line of defence: even if text became markup, the page's policy runs no script and fetches nothing."""
    browser.open(write_token_page(tmp_path / "page.html", make_frame(), title="t"))
    browser.run(
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"document.title=1\">"
        '<img src="http://127.0.0.1:9/x.png">\'; document.body.append(d);'
        "const s = document.createElement('script'); s.textContent = 'document.title=2'; document.body.append(s);"
    )
    time.sleep(0.3)
    assert browser.run("return document.title") == "t"
    assert any("Content Security Policy" in line for line in browser.log())


class TestWriting:
    def test_the_answer_and_the_way_back_are_text(self, tmp_path: Path) -> None:
        path = write_token_page(tmp_path / "p.html", make_frame(), title="t", answer=EVIL, back="report.html")
        html = path.read_text("utf-8")
        assert EVIL not in html and '<a href="report.html">report.html</a>' in html

    def test_needs_nothing_else(self, tmp_path: Path) -> None:
        html = write_token_page(tmp_path / "a" / "page.html", make_frame(), title="t", images=[make_image()]).read_text(
            "utf-8"
        )
        assert not re.search(r"https?://|<link|@import|url\(|\{\{\w+\}\}(?!\")", html)
        assert html.isascii()

    def test_size_is_that_of_the_numbers(self, tmp_path: Path) -> None:
        frame = make_frame(num_tokens=2000)
        empty = write_token_page(tmp_path / "empty.html", None, title="t").stat().st_size
        size = write_token_page(tmp_path / "page.html", frame, title="t").stat().st_size - empty
        assert size < 12 * len(frame)  # 2 x 4 bytes in base64, and the texts once per step

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda frame: frame.drop(columns=["layer", "variant"]), "without layer, variant"),
            (lambda frame: frame[:0], "empty table"),
            (lambda frame: frame.assign(layer=-1), "whole numbers from 0 on in layer, got"),
            (lambda frame: frame.assign(token_position=0.5), "whole numbers from 0 on in token_position"),
            (lambda frame: frame.assign(layer="a"), "whole numbers from 0 on in layer"),
            (lambda frame: frame.assign(variant="Half"), "Full, Attn and Head_0.*Half"),
            (lambda frame: pd.concat([frame, frame]), "several for step"),
            (lambda frame: frame.assign(token_masked=[*map(str, frame.index)]), "one text per step and position"),
        ],
    )  # fmt: skip
    def test_wrong_tables(self, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
        with pytest.raises(ValueError, match=f"expected .*{message}"):
            write_token_page(tmp_path / "page.html", change(make_frame()), title="t")
        assert not (tmp_path / "page.html").exists()

    def test_wrong_images(self, tmp_path: Path) -> None:
        png = make_image().png
        for arguments, message in (
            ((b"JFIF", 60, 40, []), "PNG"),
            ((png, 0, 40, []), "positive"),
            ((png, 60, 40, [(1, 0, (0, 0, 61, 40))]), "60 x 40 pixels, got .*61.* at position 1"),
            ((png, 60, 40, [(1, 0, (5, 0, 5, 40))]), "at position 1"),
        ):
            with pytest.raises(ValueError, match=message):
                CropImage(*arguments)
        with pytest.raises(ValueError, match="images alone"):
            write_token_page(tmp_path / "page.html", None, title="t", images=[make_image()])


# the tables and pages of a run


TABLE = pd.DataFrame([(0, 0, "a", 0, "Full", 0.5, 0.25), (0, 0, "a", 0, "Attn", 1.5, 0.75)], columns=COLUMNS)


def measured(name: str, spans: bool) -> Measured:
    table = TABLE.assign(span="text") if spans else None
    return Measured(Prompt(name, name, None, None), ["text"], TABLE, table, "no", "cpu")


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
@pytest.mark.parametrize("spans", [False, True])
def test_every_file_is_named_and_there(tmp_path, names, spans):
    result = {"prompts": [{"text": name, "page": f"{name}.html"} for name in names]}
    written = write_files(tmp_path, result, [measured(name, spans) for name in names], SimpleNamespace())
    assert set(written) == {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.html" for name in names} < set(written) and (SPANS in written) is spans
    frame = read_token_masking(tmp_path / "masking_results.csv")
    assert len(frame) == 2 * len(names) and ("prompt" in frame.columns) is (len(names) > 1)
    if len(names) > 1:
        assert list(frame["prompt"].unique()) == names
