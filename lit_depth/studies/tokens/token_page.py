"""The tables and pages of ``lit-depth tokens``: tokens x blocks as a heat map, and the impact painted onto the image.

A page is one HTML file from the template beside this module. It opens offline with the data inside, or empty, and reads
a CSV or JSON file that is dropped onto it. The values travel as little-endian float32, base64, in the order
[step][variant][layer][position]: a million rows open in seconds, where JSON records would take minutes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from lit_depth.functional.arguments import shorten
from lit_depth.results.page import PAGE, STYLE
from lit_depth.results.store import write_text
from lit_depth.results.token_tables import COLUMNS, METRICS, write_csv, write_token_masking
from lit_depth.studies.tokens.knockout_results import ANSWERS, POSITIONS, KnockedOut, table_of_span

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_depth.models.prompting import Prompter
    from lit_depth.studies.tokens.analysis import Measured

SPANS = "span_results.csv"
_PAGE_PIXELS = 1024  # longest side of the picture in the page
_TEMPLATE = Path(__file__).with_name("token_page.html")

_KNOCKOUTS = """<section id="knockouts-of-answer">
<h2>Hidden from a block and all later ones</h2>
<p class="quiet">By how many nats per token the answer becomes less likely, by the first block that the tokens are
hidden from; with nothing hidden its log-probability is {logprob}. How far every later position moves can be chosen
above, under Shown.</p>
<div class="table" tabindex="0"><table>
<thead><tr><th scope="col">hidden</th>{head}</tr></thead>
<tbody>{rows}</tbody>
</table></div>
</section>"""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class CropImage:
    """A picture of the prompt and where its vision tokens lie.

    Args:
        png: The upright picture as a PNG file; any resolution.
        width: Width that the boxes refer to, in pixels.
        height: Height that the boxes refer to, in pixels.
        tokens: (position in the sequence, crop, box) of each vision token, as
            `lit_depth.models.prompting.Prompter.image_places` gives them: crop 0 is the overview, a box is
            (left, top, right, bottom) in pixels, None for a token that shows nothing of the picture.

    Raises:
        ValueError: If the bytes are no PNG file, the size is not positive, or a box is empty or outside the picture.
    """

    png: bytes
    width: int
    height: int
    tokens: Sequence[tuple[int, int, Box | None]]

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG"):
            raise ValueError(f"expected the bytes of a PNG file, got {self.png[:8]!r}...")
        if min(self.width, self.height) < 1:
            raise ValueError(f"expected a positive width and height, got {self.width} x {self.height}")
        for position, _, box in self.tokens:
            if box is not None and not (0 <= box[0] < box[2] <= self.width and 0 <= box[1] < box[3] <= self.height):
                raise ValueError(
                    f"expected boxes (left, top, right, bottom) within {self.width} x {self.height} pixels, got "
                    f"{tuple(box)} at position {position}"
                )


def write_token_page(
    path: str | Path,
    frame: pd.DataFrame | None,
    *,
    title: str,
    images: Sequence[CropImage] = (),
    answer: str = "",
    back: str = "",
    knockouts: KnockedOut | None = None,
) -> Path:
    """Write the page atomically. All text is escaped or set as text: tokens can be shown as they are.

    The frame has the columns of `write_token_masking`, in any order. NaN is an undefined distance (the token was the
    only visible one). ``answer`` is what the model generated behind the prompt, ``back`` the name of a page beside
    this one that it links to. ``knockouts`` of the prompt can be chosen beside the frame. No frame makes a page that
    waits for a file.

    Raises:
        ValueError: If columns are missing, there is no row, a step, layer or position is no whole number from 0 on, a
            (step, layer, position, variant) occurs twice, a position has two texts in one step, an image is given
            without rows, or the file cannot be written.

    Example:
        >>> import tempfile, pandas as pd
        >>> rows = [(0, layer, "cat", 0, "Full", 0.5, 0.1) for layer in range(2)]
        >>> path = Path(tempfile.mkdtemp()) / "tokens.html"
        >>> write_token_page(path, pd.DataFrame(rows, columns=COLUMNS), title="One token").name
        'tokens.html'
    """
    if frame is None and images:
        raise ValueError("expected rows with the images, got images alone")
    meta, values = (None, dict.fromkeys(METRICS, "")) if frame is None else _pack(frame)
    template = _TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    parts = {
        "title": escape(title),
        "answer": f"<p>The model's answer: <q>{escape(answer)}</q></p>" if answer.strip() else "",
        "back": _link(back) if back else "",
        "style": STYLE,
        # nothing but the page's own script runs, and nothing is fetched, whatever a token says
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{_digest(script)}'",
        "table": _json(meta),
        "knockouts": _json([] if frame is None or knockouts is None else _knockout_tables(frame, knockouts)),
        "knockout_drops": "" if knockouts is None else knockout_table(knockouts),
        "images": _json([_plain_image(image) for image in images]),
        **values,
    }
    # one pass over the template: what is filled in is not looked at again
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    write_text(path, page)
    return Path(path)


def _knockout_tables(frame: pd.DataFrame, found: KnockedOut) -> list[dict[str, Any]]:
    """The tables of all spans, each with its values."""
    known = frame.drop_duplicates("token_position").set_index("token_position")["token_masked"]
    later = found.positions["token_position"].unique()
    texts = [str(known.get(position, "")) for position in range(1 + max(later, default=0))]
    tables = []
    for span in found.spans:
        table = table_of_span(found, span, texts)
        if table.empty:  # nothing stands behind it
            continue
        meta, values = _pack(table)
        tables.append({**meta, **values, "prompt": f"hidden from a block on: {span.name}", "isKnockout": True})
    return tables


def knockout_table(found: KnockedOut) -> str:
    """Drops in the answer's log-probability as a table in HTML, its cells the redder the more they cost."""
    drops = {span.name: found.answers.loc[found.answers["span"] == span.name, "drop"].tolist() for span in found.spans}
    most = max((abs(value) for row in drops.values() for value in row), default=0.0) or 1.0
    blocks = len(next(iter(drops.values())))
    head = "".join(f'<th scope="col">{block}</th>' for block in range(blocks))
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(value, most) for value in row)}</tr>'
        for name, row in drops.items()
    ]
    return _KNOCKOUTS.format(head=head, rows="".join(rows), logprob=f"{found.answer_logprob:.2g}")


def _cell(value: float, most: float) -> str:
    red, green, blue = (213, 94, 0) if value > 0 else (0, 114, 178)
    shade = f"rgb({red} {green} {blue} / {0.75 * abs(value) / most:.2f})"
    return f'<td style="background: {shade}">{value:.2f}</td>'.replace(">-0.00<", ">0.00<")


def _link(page: str) -> str:
    return f'<p><a href="{quote(page)}">{escape(page)}</a>: averages, and every prompt of the run.</p>'


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> str:
    """ASCII JSON that can stand in a script element, where ``</script>`` or ``<!--`` would end or change it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")


def _plain_image(image: CropImage) -> dict[str, Any]:
    tokens = [
        (int(position), int(crop), box and [round(float(x), 2) for x in box]) for position, crop, box in image.tokens
    ]
    png = base64.b64encode(image.png).decode()
    return {"png": f"data:image/png;base64,{png}", "width": image.width, "height": image.height, "tokens": tokens}


def _pack(frame: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Axes and texts as JSON values, and per metric the values as base64."""
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"expected the columns {', '.join(COLUMNS)}, got a table without {', '.join(missing)}")
    if frame.empty:
        raise ValueError("expected at least one row, got an empty table")
    steps, step = np.unique(_whole_numbers(frame, "generation_step"), return_inverse=True)
    layers, layer = np.unique(_whole_numbers(frame, "layer"), return_inverse=True)
    variants, variant = _variants(frame)
    position = _whole_numbers(frame, "token_position")
    texts = frame["token_masked"].astype(str).to_numpy(dtype=object)

    positions, tokens, index, total = [], [], np.empty(len(frame), np.int64), 0
    for number in range(len(steps)):
        rows = np.flatnonzero(step == number)
        here, first, column = np.unique(position[rows], return_index=True, return_inverse=True)
        index[rows] = total + (variant[rows] * len(layers) + layer[rows]) * len(here) + column
        total += len(variants) * len(layers) * len(here)
        names = texts[rows[first]]
        if len(differing := rows[names[column] != texts[rows]]):
            row = differing[0]
            raise ValueError(
                f"expected one text per step and position, got {texts[row]!r} and another one at step "
                f"{steps[number]}, position {position[row]}: several prompts in one table?"
            )
        positions.append(here.tolist())
        tokens.append(names.tolist())

    taken, counts = np.unique(index, return_counts=True)
    if len(taken) < len(index):
        where = frame.iloc[int(np.flatnonzero(index == taken[counts.argmax()])[0])]
        raise ValueError(
            "expected one row per step, layer, position and variant, got several for step "
            f"{where['generation_step']}, layer {where['layer']}, position {where['token_position']}, "
            f"{where['variant']}: several prompts in one table?"
        )
    values = {}
    for metric in METRICS:
        dense = np.full(total, np.nan, "<f4")
        dense[index] = frame[metric].to_numpy(dtype=np.float32, na_value=np.nan)
        values[metric] = base64.b64encode(dense.tobytes()).decode()
    meta = {"steps": steps.tolist(), "layers": layers.tolist(), "variants": variants}
    return {**meta, "positions": positions, "tokens": tokens, "num_rows": len(frame)}, values


def _whole_numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    try:
        numbers = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not (numbers >= 0).all() or (numbers % 1).any():
        raise ValueError(f"expected whole numbers from 0 on in {name}, got {frame[name].unique()[:5].tolist()}")
    return numbers.astype(np.int64)


def _variants(frame: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Names with the whole block first and heads by number, and the index of each row's."""
    codes, names = frame["variant"].astype(str).factorize()
    known = {"Full": -2, "Attn": -1}
    heads = [re.fullmatch(r"Head_(\d+)", name) for name in names]
    if wrong := [name for name, head in zip(names, heads) if name not in known and head is None]:
        raise ValueError(f"expected the variants Full, Attn and Head_0, Head_1, ..., got {wrong[:5]}")
    keys = [known[name] if head is None else int(head[1]) for name, head in zip(names, heads)]
    order = np.argsort(keys)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return [str(names[i]) for i in order], rank[codes]


def write_files(folder: Path, result: Mapping[str, Any], measured: Sequence[Measured], prompter: Prompter) -> list[str]:
    """Write tables and pages into the run's folder; returns their names."""
    tables = [each.tokens for each in measured]
    spans = [(each.prompt.name, each.spans) for each in measured if each.spans is not None]
    if len(measured) > 1:
        tables = [_named(each.prompt.name, each.tokens) for each in measured]
        spans = [(name, _named(name, frame)) for name, frame in spans]
    names = [path.name for path in write_token_masking(folder, pd.concat(tables, ignore_index=True))]
    if spans:
        write_csv(folder / SPANS, pd.concat([frame for _, frame in spans], ignore_index=True))
        names.append(SPANS)
    names += _write_knockouts(folder, measured)
    for each, entry in zip(measured, result["prompts"]):
        title = f"Token masking: {shorten(entry['text'])}"
        images = _page_images(each.prompt.image, prompter)
        write_token_page(
            folder / entry["page"],
            each.tokens,
            title=title,
            images=images,
            answer=each.generated_text,
            back=PAGE,
            knockouts=each.knockouts,
        )
        names.append(entry["page"])
    return names


def _write_knockouts(folder: Path, measured: Sequence[Measured]) -> list[str]:
    """Both tables of knockouts of all prompts; nothing where there are none."""
    found = [(each.prompt.name, each.knockouts) for each in measured if each.knockouts is not None]
    for file, of_answers in ((ANSWERS, True), (POSITIONS, False)):
        frames = [(name, each.answers if of_answers else each.positions) for name, each in found]
        if len(measured) > 1:
            frames = [(name, _named(name, frame)) for name, frame in frames]
        if frames:
            write_csv(folder / file, pd.concat([frame for _, frame in frames], ignore_index=True))
    return [ANSWERS, POSITIONS] if found else []


def _named(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    named = frame.copy()
    named.insert(0, "prompt", name)
    return named


def _page_images(image: Image | None, prompter: Prompter) -> list[CropImage]:
    """The picture and where its tokens lie, for families that tell."""
    places = [] if image is None else prompter.image_places(image)
    if image is None or not places:
        return []
    shown = image.copy()
    shown.thumbnail((_PAGE_PIXELS, _PAGE_PIXELS))
    file = io.BytesIO()
    shown.save(file, format="png")
    return [CropImage(file.getvalue(), image.width, image.height, places)]
