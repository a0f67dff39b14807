"""What the end of a run says it has saved is what the engine saves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import lit_depth
from lit_depth.functional import MaskSet, prefix
from lit_depth.studies.shared.effort import Effort, block_forwards

MASKS = MaskSet.of([prefix(16, count) for count in (4, 9, 16)])


@pytest.fixture(scope="module")
def model():
    return lit_depth.load_bundled()[0]


def holder(model, granularity="block", phase="both"):
    options = {"granularity": granularity, "phase": phase, "skip_tokens": "all", "blocks": None}
    return SimpleNamespace(model=model, hparams=options | {"decode_without_prompt": False})


def test_forwards_are_one_per_distinct_active_prefix(model):
    rows = [tuple(mask) for mask in MASKS.bits.tolist()]
    distinct = sum(len({row[: i + 1] for row in rows if row[i]}) for i in range(16))
    assert block_forwards(holder(model), MASKS) == (29, distinct) and distinct == 16


def test_halves_share_what_stands_before_them(model):
    """Skips of the attention of block 0 and of the last MLP, and the full model: 32 halves, of which one is shared."""
    bits = [[False, *[True] * 31], [*[True] * 31, False], [True] * 32]
    masks = MaskSet.of(bits, granularity="sublayer")
    assert block_forwards(holder(model, granularity="sublayer"), masks) == (31 + 31 + 32, 31 + 32)


def test_masks_of_decode_read_a_prompt_once_with_all_blocks(model):
    assert block_forwards(holder(model, phase="decode"), MASKS) == (3 * 16, 16)


def test_masks_that_share_nothing_save_nothing(model):
    drops = holder(model)
    drops.hparams["skip_tokens"] = "image_drop"
    alone, together = block_forwards(drops, MASKS)
    assert alone == together


def test_a_run_that_measured_nothing_says_nothing(model):
    effort = Effort()
    effort.add_answers(holder(model), MASKS, 0, 1.0)
    assert effort.describe() == ""
    effort.add_answers(holder(model), MASKS, 30, 2.0)
    effort.add("timed requests", 4, 1.0)
    assert effort.describe() == (
        "30 answers in 2.0 s: 15 rows per second; 4 timed requests in 1.0 s: 4 timed requests per second; "
        "sharing saved 45% of the block forwards on prompts."
    )


def test_what_an_earlier_start_recorded_is_told_and_what_this_one_did_is_not() -> None:
    effort = Effort()
    effort.read(Path("new"), False)
    effort.read(Path("new"), True)
    assert effort.describe() == ""
    effort.read(Path("old"), True)
    assert effort.describe() == "What an earlier start had recorded was read, not measured again."
    effort.add("timed requests", 4, 1.0)
    assert effort.describe() == (
        "4 timed requests in 1.0 s: 4 timed requests per second; what an earlier start had recorded was read, not "
        "measured again."
    )
