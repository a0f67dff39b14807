"""The tables and pages of ``lit-depth tokens``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lit_depth.functional.arguments import shorten
from lit_depth.models.prompting import Prompter
from lit_depth.results.token_tables import write_csv, write_token_masking
from lit_depth.studies.tokens.analysis import Measured
from lit_depth.studies.tokens.token_page import CropImage, write_token_page

if TYPE_CHECKING:
    from PIL.Image import Image

SPANS = "span_results.csv"
_PAGE_PIXELS = 1024  # longest side of the picture in the page


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
    for each, entry in zip(measured, result["prompts"]):
        title = f"Token masking: {shorten(entry['text'])}"
        images = _page_images(each.prompt.image, prompter)
        write_token_page(folder / entry["page"], each.tokens, title=title, images=images)
        names.append(entry["page"])
    return names


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
