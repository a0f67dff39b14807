"""A plan tells what a run computes without computing it."""

from __future__ import annotations

import json

import pytest

from lit_depth.functional.statistics.power import samples_needed
from tests.helpers.commands import run

SMALL = ["--num_samples", 12, "--calibration_samples", 8]


@pytest.mark.parametrize(
    ("command", "rows", "forwards"),
    [
        (["compare", "--policies", "prefix", "importance", "--num_active_blocks", "8", "16"], None, None),
        (["compare", "--policies", "prefix", "--num_active_blocks", "8", "12", "16"], 3 * 12, 16 * 12),
        (["importance"], 17 * 12, 136 * 12),
    ],
)
def test_rows_and_forwards_are_counted_and_nothing_is_written(tmp_path, capsys, command, rows, forwards):
    assert run([*command, *SMALL, "--plan", "--json", "--output_dir", tmp_path]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not list(tmp_path.iterdir())
    if rows is None:  # leave-one-out on the calibration split comes first
        assert set(told["num_samples"]) == {"calibration", "validation"} and told["rows"] > 17 * 8
    else:
        assert (told["rows"], told["block_forwards"]) == (rows, forwards)
    alone = [each["alone"] for each in told["differences"]]
    assert alone == [samples_needed(0.02, each["discordance"]) for each in told["differences"]]
    assert all(each["corrected"] >= each["alone"] for each in told["differences"])
