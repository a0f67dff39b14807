"""Ablations: their masks, the baselines of a search, and interactions."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.functional import (
    ablation_masks,
    contiguous_spans,
    importance_order,
    interaction,
    top_k,
)
from lit_depth.functional.search import racing as racing


@given(st.integers(2, 9), st.data())
def test_contiguous_spans_equal_filtered_combinations(num_units: int, data: st.DataObject) -> None:
    keep = sorted(data.draw(st.sets(st.integers(0, num_units - 1), max_size=num_units - 1)))
    length = data.draw(st.integers(1, min(num_units - len(keep), num_units - 1)))
    expected = [
        c
        for c in itertools.combinations(range(num_units), length)
        if c[-1] - c[0] == length - 1 and not set(c) & set(keep)
    ]
    if expected:
        assert contiguous_spans(num_units, length, keep=keep) == expected
    else:
        with pytest.raises(ValueError, match="neighbouring units that may be removed"):
            contiguous_spans(num_units, length, keep=keep)


@given(st.lists(st.integers(0, 3).map(float), min_size=2, max_size=8), st.data())
def test_importance_order_is_nested_and_leaves_what_top_k_keeps(importance: list[float], data: st.DataObject) -> None:
    num_units = len(importance)
    keep = sorted(data.draw(st.sets(st.integers(0, num_units - 1), max_size=num_units - 1)))
    most = min(num_units - len(keep), num_units - 1)
    order = importance_order(importance, most, keep=keep)
    assert [len(removed) for removed in order] == list(range(1, most + 1))
    for removed, larger in zip(((), *order), order):
        (unit,) = set(larger) - set(removed)
        assert set(removed) < set(larger) and unit not in keep
        others = [i for i in range(num_units) if i not in removed and i not in keep]
        assert importance[unit] == min(importance[i] for i in others)
        assert not set(larger) & set(top_k(importance, num_units - len(larger), keep=keep).nonzero().flatten().tolist())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=8))
def test_equally_important_units_go_by_the_second_score(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(pair[place]) for pair in pairs] for place in (0, 1))
    together = [10 * a + b for a, b in pairs]  # the first decides, then the second
    most = len(pairs) - 1
    assert importance_order(first, most, second=second) == importance_order(together, most)
    assert importance_order(torch.tensor(first), most, second=second) == importance_order(together, most)


def test_interaction_is_what_adding_drops_leaves_out() -> None:
    assert interaction(0.5, [0.1, 0.1]) == pytest.approx(0.3)
    assert interaction(0.1, [0.1, 0.1]) == pytest.approx(-0.1)
    assert interaction(0.7, [0.7]) == 0.0


def test_ablation_masks_are_false_where_removed() -> None:
    masks = ablation_masks(4, [(), (0, 3), (2,)])
    assert masks.dtype == torch.bool
    assert masks.tolist() == [[True] * 4, [False, True, True, False], [True, True, False, True]]


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: ablation_masks(3, []), "at least one ablation"),
        (lambda: ablation_masks(3, [(0, 1, 2)]), r"leaves a unit of 3, got \[0, 1, 2\]"),
        (lambda: ablation_masks(3, [(3,)]), "between 0 and 2, got 3"),
        (lambda: contiguous_spans(4, 4), "between 1 and 3 of 4 units"),
        (lambda: contiguous_spans(5, 2, keep=[1, 3]), r"2 neighbouring units that may be removed, got keep=\[1, 3\]"),
        (lambda: importance_order([0.1, 0.2], 2), "between 1 and 1 of 2 units"),
        (lambda: importance_order([0.1, 0.2], 1, second=[0.1]), r"two finite numbers for each of 2 units, got \[0.1\]"),
        (lambda: importance_order([0.1, 0.2], 1, second=[0.1, float("nan")]), "two finite numbers for each of 2"),
    ],
)
def test_baselines_refuse(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
