"""What is kept of samples is small, and comes back as it was."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lit_depth.data.task import Sample
from lit_depth.results.shown_samples import KEPT, Kept, read_kept, show_samples, thumbnail, write_kept


@pytest.mark.parametrize(("mode", "size"), [("RGB", (4000, 1000)), ("RGBA", (20, 20)), ("L", (160, 161))])
def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(mode: str, size: tuple[int, int]) -> None:
    url = thumbnail(Image.new(mode, size))
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert image.format == "JPEG" and max(image.size) <= 160
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_texts_are_shortened_and_one_picture_is_kept_once(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (10, 10), color) for color in ("red", "blue"))
    samples = [
        Sample("1", "i", red, "x" * 5000, ("a", "a", "b"), options=("cat", "dog")),
        Sample("2", "i", red, "two?", ("c",), more_images=(blue,)),
        Sample("3", "j", None, "", ("d",), prompt="plain"),
    ]
    shown = show_samples(samples)
    assert len(shown.images) == 2 and len(shown.samples["1"].question) == 600
    assert shown.samples["1"].references == ["a", "b"] and len(shown.samples["2"].images) == 2
    assert shown.samples["3"].question == "plain" and shown.samples["3"].images == []
    kept = Kept("2026-01-01", "cpu", {"shapes": shown})
    write_kept(tmp_path, kept)
    assert read_kept(tmp_path) == kept and list(tmp_path.iterdir()) == [tmp_path / KEPT]


def test_an_earlier_run_kept_nothing_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_kept(tmp_path) == Kept()
    for text in (
        "{",
        "[]",
        '{"finished": null, "device": null, "tasks": {"a": {"samples": {}, "images": {"i": "x"}}}}',
    ):
        (tmp_path / KEPT).write_text(text)
        with pytest.raises(ValueError, match=f"{KEPT} is damaged"):
            read_kept(tmp_path)
