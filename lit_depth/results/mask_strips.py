"""Masks drawn as strips, one cell for each entry, and what each of them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_depth.results.changed_samples import MOST_MASKS, MaskChanges
from lit_depth.results.unit_names import list_counts

if TYPE_CHECKING:
    from markupsafe import Markup

_CELL, _HEIGHT = 7, 14
_WIDEST = 420  # pixels of a strip; of many blocks the cells are narrower
_MOST_NAMES = 4


class StripTable(NamedTuple):
    """The masks of one task, for the page."""

    name: str
    split: str
    num_samples: int
    unit: str
    rows: list[dict[str, Any]]
    left_out: str


def strip_table(
    task: str, split: str, changes: Sequence[MaskChanges], names: Mapping[str, Sequence[str]], unit: str
) -> StripTable:
    """One row for each mask: its strip, what it is called, and what it changes."""
    rows = []
    for each in changes:
        called = list(dict.fromkeys(names.get(each.mask, ())))
        more = f" and {len(called) - _MOST_NAMES} more" if len(called) > _MOST_NAMES else ""
        skipped = [place for place, bit in enumerate(each.mask) if bit == "0"]
        words = f"skipped: {list_counts(skipped)}"
        rows.append(
            {
                "strip": draw_strip(each.mask, words),
                "mask": each.mask,
                "skipped": words,
                "active": each.mask.count("1"),
                "names": "; ".join(called[:_MOST_NAMES]) + more or ("full model" if not skipped else "-"),
                "quality": each.quality,
                "drop": f"{each.drop:+.3f}" if skipped else "-",
                "worse": each.worse,
                "better": each.better,
                "reworded": each.reworded,
                "shown": bool(each.shown),
            }
        )
    left_out = f" The {MOST_MASKS} masks with the most active ones." if len(rows) == MOST_MASKS else ""
    return StripTable(task, split, changes[0].num_samples, unit, rows, left_out)


def draw_strip(mask: str, words: str) -> Markup:
    """An SVG of one cell for each bit.

    >>> "M0 0h6v14h-6z" in draw_strip("10", "skipped: 1")
    True
    """
    from markupsafe import Markup

    width = min(_CELL, max(2, _WIDEST // len(mask)))
    cell = f"h{width - 1}v{_HEIGHT}h-{width - 1}z"
    paths = {
        kind: "".join(f"M{width * place} 0{cell}" for place, one in enumerate(mask) if one == bit)
        for kind, bit in (("on", "1"), ("off", "0"))
    }
    drawn = Markup("").join(Markup('<path class="{}" d="{}"/>').format(kind, path) for kind, path in paths.items())
    size = width * len(mask), _HEIGHT
    frame = Markup('<svg class="strip" role="img" width="{}" height="{}" viewBox="0 0 {} {}"><title>{}</title>{}</svg>')
    return frame.format(*size, *size, words, drawn)
