"""What is told of runs at equal cost."""

from __future__ import annotations

import numpy as np

from lit_depth.functional.statistics import separate_comparisons
from lit_depth.studies.overview.equal_cost import ANY_POLICY, CostPair
from lit_depth.studies.overview.equal_cost_views import equal_cost_section, equal_cost_sentences

LABELS = ("tiny, image tokens alone skip blocks", "tiny, all tokens skip blocks")


def pairs() -> list[CostPair]:
    rows = np.array([[0.5, 0.4] * 30, [0.1, -0.1] * 30])
    found = separate_comparisons(rows, [None, None], score_ranges=[None, None])
    opposite = separate_comparisons(-rows[:1], [None], score_ranges=[None])
    return [
        CostPair(*LABELS, "shapes", "flops", ANY_POLICY, 0.4, 60, found[0]),
        CostPair(*LABELS, "shapes", "time", ANY_POLICY, 0.62, 60, found[1]),
        CostPair(*LABELS, "charts", "time", ANY_POLICY, 1.3, 60, None),
        CostPair(*LABELS[::-1], "shapes", "flops", "prefix", 0.4, 60, opposite[0]),
    ]


def test_one_sentence_says_what_is_better_or_that_nothing_is():
    better, alike, unknown = equal_cost_sentences(pairs(), 0.95)
    assert better.startswith(
        "On shapes at equal FLOPs (mean over 0.40 to 1 of that of all blocks) quality is higher where image tokens "
        "alone skip blocks than where all tokens skip blocks: +0.450 [+0.4"
    )
    assert "at equal time (mean over 0.62 to 1 of that of all blocks) the two are not separable" in alike
    assert "On charts" in unknown and "no mask that costs less than all blocks" in unknown
    # the other way round it is the same
    (swapped,) = equal_cost_sentences([pairs()[3]._replace(what=ANY_POLICY)], 0.95)
    assert swapped.split(" [")[0] == better.split(" [")[0] and "[+" in swapped


def test_every_test_is_a_row():
    section = equal_cost_section(pairs(), 0.95, ["frontier_shapes"])
    assert section.table is not None and section.figures == ["frontier_shapes"]
    assert [row[6] for row in section.table.rows] == ["a is better", "not separable", "no cheaper mask", "b is better"]
