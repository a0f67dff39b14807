"""Questions, references and small pictures of the samples that a page shows, kept beside the result of a run.

They are written when the run ends, so that its page can be made again without the data.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_depth.results.reading import read_object
from lit_depth.results.store import write_of_run

if TYPE_CHECKING:
    from PIL import Image

KEPT = "page.json"
_PIXELS, _QUALITY = 160, 80
_MOST_CHARACTERS = 600
_MOST_IMAGES = 4  # of one question
_PREFIX = "data:image/jpeg;base64,"


class ShownSample(NamedTuple):
    """A sample as a page shows it; ``images`` are keys of `ShownSamples.images`."""

    question: str
    references: Sequence[str]
    images: Sequence[str]


class ShownSamples(NamedTuple):
    """The samples of one task by id, and their pictures as URLs that hold them."""

    samples: Mapping[str, ShownSample]
    images: Mapping[str, str]


class Kept(NamedTuple):
    """What a run's page needs besides its result and records.

    Args:
        finished: When the run ended, in UTC.
        device: On which it ran.
        tasks: Samples by task.
    """

    finished: str | None = None
    device: str | None = None
    tasks: Mapping[str, ShownSamples] = {}


def show_samples(samples: Iterable[Any]) -> ShownSamples:
    """Texts, shortened to 600 characters, and thumbnails of at most 160 pixels, each picture once.

    Args:
        samples: With ``id``, ``question``, ``options``, ``references`` and ``images``, which are PIL's.
    """
    shown: dict[str, ShownSample] = {}
    pictures: dict[str, str] = {}
    for sample in samples:
        urls = [thumbnail(image) for image in sample.images[:_MOST_IMAGES]]
        keys = [hashlib.blake2b(url.encode(), digest_size=8).hexdigest() for url in urls]
        pictures |= dict(zip(keys, urls))
        asked = sample.question or (sample.prompt or "")
        options = "".join(f"\n- {option}" for option in sample.options)
        texts = [shortened(reference) for reference in dict.fromkeys(map(str, sample.references))]
        shown[sample.id] = ShownSample(shortened(asked + options), texts[:10], keys)
    return ShownSamples(shown, pictures)


def thumbnail(image: Image.Image) -> str:
    """A JPEG of at most 160 pixels on either side, as a URL that holds it."""
    small = image.convert("RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=_QUALITY)
    return _PREFIX + base64.b64encode(data.getvalue()).decode()


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    """
    >>> len(shortened("x" * 1000)), shortened("a cat"), shortened("three cats", 8)
    (600, 'a cat', 'three...')
    """
    return text if len(text) <= most else text[: most - 3] + "..."


def write_kept(folder: Path, kept: Kept) -> None:
    """Write ``page.json`` into the folder of a run.

    Raises:
        ValueError: If the file cannot be written.
    """
    tasks = {
        name: {"samples": {key: each._asdict() for key, each in found.samples.items()}, "images": found.images}
        for name, found in kept.tasks.items()
    }
    write_of_run(folder / KEPT, {"finished": kept.finished, "device": kept.device, "tasks": tasks})


def read_kept(folder: Path) -> Kept:
    """What `write_kept` wrote; of a run of an earlier version nothing is known.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / KEPT
    if not path.is_file():
        return Kept()
    try:
        content = read_object(path)
        tasks = {name: _read_task(each) for name, each in content["tasks"].items()}
        return Kept(_text(content["finished"]), _text(content["device"]), tasks)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the page shows no samples") from error


def _read_task(content: Mapping[str, Any]) -> ShownSamples:
    images = {str(key): str(url) for key, url in content["images"].items()}
    if not all(url.startswith(_PREFIX) for url in images.values()):
        raise ValueError("expected pictures as JPEG")
    samples = {
        str(key): ShownSample(str(each["question"]), [*map(str, each["references"])], [*map(str, each["images"])])
        for key, each in content["samples"].items()
    }
    return ShownSamples(samples, images)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
