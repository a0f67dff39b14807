"""A strip has a cell for each entry of a mask, and the table names it in words."""

from __future__ import annotations

import re

import pytest

from lit_depth.results.changed_samples import MaskChanges
from lit_depth.results.mask_strips import draw_strip, strip_table


@pytest.mark.parametrize("mask", ["1101", "1" * 16, "10" * 40, "0" * 199 + "1"])
def test_a_cell_for_each_entry_in_its_place(mask: str) -> None:
    found = {}
    svg = str(draw_strip(mask, "<b>"))
    for kind, path in re.findall(r'class="(on|off)" d="([^"]*)"', svg):
        found |= {int(place): kind for place in re.findall(r"M(\d+) 0", path)}
    width = min(place for place in found if place) if len(mask) > 1 else 1
    assert [found[width * place] for place in range(len(mask))] == ["on" if bit == "1" else "off" for bit in mask]
    assert "&lt;b&gt;" in svg and int(re.findall(r'width="(\d+)"', svg)[0]) <= 420


def test_rows_say_what_a_mask_is_called_and_what_it_changes() -> None:
    changes = [MaskChanges("111", 8, 1.0, 0.0, 0, 0, 0, []), MaskChanges("101", 8, 0.75, 0.25, 3, 1, 2, [])]
    table = strip_table("shapes", "validation", changes, {"101": ["random, 2", "random, 2", "top, 2"]}, "block")
    full, masked = table.rows
    assert (full["names"], full["drop"], masked["drop"], masked["skipped"]) == (
        "full model",
        "-",
        "+0.250",
        "skipped: 1",
    )
    assert masked["names"] == "random, 2; top, 2" and (masked["worse"], masked["better"], masked["reworded"]) == (
        3,
        1,
        2,
    )
    assert table.num_samples == 8 and table.left_out == ""
