from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_depth.functional import from_indices, leave_one_out, prefix, random, suffix, threshold, top_k, uniform
from lit_depth.functional.masking.policies import POLICIES


def by_random(num_blocks: int, k: int, **kwargs):
    return random(num_blocks, k, seed=7, **kwargs)


def by_importance(num_blocks: int, k: int, **kwargs):
    return top_k([float(block_idx % 3) for block_idx in range(num_blocks)], k, **kwargs)


COUNTED = [prefix, suffix, uniform, by_random, by_importance]


def test_what_commands_call_a_policy():
    """In the order of their tables; all of them are the default of ``compare``."""
    assert list(POLICIES) == ["prefix", "importance", "random", "suffix", "uniform"]


def indices(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("policy", COUNTED)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_blocks=st.integers(1, 40))
def test_exactly_k_blocks_and_all_of_keep(policy, data, num_blocks):
    k = data.draw(st.integers(1, num_blocks))
    keep = data.draw(st.lists(st.integers(0, num_blocks - 1), unique=True, max_size=k))
    mask = policy(num_blocks, k, keep=keep)
    assert mask.dtype == torch.bool and mask.shape == (num_blocks,)
    assert int(mask.sum()) == k
    assert set(keep) <= set(indices(mask))


@pytest.mark.parametrize("policy", COUNTED)
@pytest.mark.parametrize(
    "k,keep,message",
    [
        (0, (), "between 1 and 4, got 0"),
        (5, (), "between 1 and 4, got 5"),
        (-1, (), "between 1 and 4, got -1"),
        (True, (), "got True"),
        (1, (0, 3), "k of at least 2, .* got 1"),
        (2, (4,), "between 0 and 3, got 4"),
        (2, (-1,), "between 0 and 3, got -1"),
        (2, (1, 1), r"distinct block indices, got \[1, 1\]"),
    ],
)
def test_bad_arguments(policy, k, keep, message):
    with pytest.raises(ValueError, match=message):
        policy(4, k, keep=keep)


@given(num_blocks=st.integers(2, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_uniform_spans_both_ends_in_steps_that_differ_by_at_most_one(num_blocks, data):
    k = data.draw(st.integers(2, num_blocks))
    chosen = indices(uniform(num_blocks, k))
    assert chosen[0] == 0 and chosen[-1] == num_blocks - 1
    steps = {after - before for before, after in zip(chosen, chosen[1:])}
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(
    "num_blocks,k,expected", [(16, 1, [0]), (16, 2, [0, 15]), (16, 4, [0, 5, 10, 15]), (4, 3, [0, 2, 3])]
)
def test_uniform_examples(num_blocks, k, expected):
    assert indices(uniform(num_blocks, k)) == expected


def test_prefix_and_suffix_around_keep():
    assert indices(prefix(5, 2)) == [0, 1]
    assert indices(suffix(5, 2)) == [3, 4]
    assert indices(prefix(5, 3, keep=[0])) == [0, 1, 2]
    assert indices(suffix(5, 3, keep=[0])) == [0, 3, 4]
    assert indices(uniform(5, 3, keep=[0])) == [0, 1, 4]


def test_random_depends_on_the_seed_only():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [random(24, 12, seed) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(mask, random(24, 12, seed)) for seed, mask in enumerate(first))
    assert len({tuple(indices(mask)) for mask in first}) == 8


def test_a_negative_seed_is_none():
    with pytest.raises(ValueError, match="seed from 0 to"):
        random(3, 2, seed=-1)


def test_top_k_breaks_ties_by_the_lower_index():
    assert indices(top_k([1.0, 2.0, 1.0, 1.0], 2)) == [0, 1]
    assert indices(top_k(torch.zeros(6), 3)) == [0, 1, 2]
    assert indices(top_k([0.0, 5.0, 1.0], 1, keep=[0])) == [0]


def test_importance_forms_agree():
    scores = [0.5, -0.1, 0.3, 0.9, *[0.0] * 8]
    forms = [
        scores,
        torch.tensor(scores),
        {str(i): score for i, score in enumerate(scores)},
        # "10" sorts before "2" as text
        dict(sorted((str(i), score) for i, score in enumerate(scores))),
        dict(enumerate(scores)),
    ]
    for form in forms:
        assert indices(top_k(form, 3)) == [0, 2, 3]
        assert indices(threshold(form, 0.4)) == [0, 3]


@pytest.mark.parametrize(
    "importance,message",
    [
        ({"0": 1.0, "2": 1.0}, r"blocks 0\.\.1"),
        ([1.0, float("nan")], "finite"),
        ([], "finite importance per block"),
        (torch.ones(2, 2), "shape"),
    ],
)
def test_bad_importance(importance, message):
    with pytest.raises(ValueError, match=message):
        top_k(importance, 1)


def test_threshold():
    scores = [1.0, 0.5, 0.49, -1.0]
    assert indices(threshold(scores, 0.5)) == [0, 1]
    assert indices(threshold(scores, 1.0)) == [0]
    assert indices(threshold(scores, 0.0)) == [0, 1, 2]
    assert indices(threshold(scores, 1.0, keep=[3])) == [0, 3]
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        threshold(scores, 1.5)
    with pytest.raises(ValueError, match="positive importance, got at most -0.5"):
        threshold([-1.0, -0.5], 0.5)


def test_from_indices():
    assert indices(from_indices(4, [2, 0])) == [0, 2]
    assert indices(from_indices(4, [2], keep=[2, 3])) == [2, 3]
    for bad, message in (([4], "got 4"), ([1, 1], "distinct"), ([], "at least one active block")):
        with pytest.raises(ValueError, match=message):
            from_indices(4, bad)


def test_leave_one_out():
    masks = leave_one_out(5)
    assert masks.shape == (5, 5) and masks.dtype == torch.bool
    assert torch.equal(~masks, torch.eye(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 2 blocks"):
        leave_one_out(1)
