"""Masks of policies at numbers of blocks: the package's, and functions of one's own."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional import prefix, random, top_k
from lit_depth.studies.shared.mask_grid import POLICIES, check_plan, needs_importance, plan_indices, plan_masks, policy

SCORES = [0.1, 0.9, 0.3, 0.5]


def ends(num_blocks: int, k: int) -> torch.Tensor:
    """The first block and the last ones."""
    mask = torch.zeros(num_blocks, dtype=torch.bool)
    mask[[0, *range(num_blocks - k + 1, num_blocks)]] = True
    return mask


def best(importance, k, keep=()):
    return top_k(importance, k, keep=keep)


def one_too_many(num_blocks, k):
    return prefix(num_blocks, min(k + 1, num_blocks))


def no_mask(num_blocks, k):
    return [1.0] * num_blocks


def floats(num_blocks, k):
    return torch.ones(num_blocks)


def nothing(num_blocks, k):
    return None


def too_short(num_blocks, k):
    return [True] * k


def last_two(num_blocks, seed):
    return [False] * (num_blocks - 2) + [True, True]


def needs_more(num_blocks, q):
    return [True] * num_blocks


def by_position(num_blocks, k, /):
    return prefix(num_blocks, k)


class Ends:
    pass


def own(name: str) -> str:
    return f"{__name__}.{name}"


def test_every_policy_gives_its_masks():
    plan = plan_masks(["prefix", "random", "importance"], [1, 2], 4, SCORES, num_seeds=3)
    assert [(each.policy, each.count, each.seed) for each in plan] == [
        ("prefix", 1, None),
        ("prefix", 2, None),
        *(("random", count, seed) for count in (1, 2) for seed in range(3)),
        ("importance", 1, None),
        ("importance", 2, None),
    ]
    assert [each.id for each in plan if each.policy == "importance"] == ["0100", "0101"]
    for each in plan:
        if each.policy == "random":
            assert torch.equal(each.mask, random(4, each.count, each.seed))


def test_a_function_of_ones_own_is_a_policy_and_gets_what_its_signature_names():
    plan = plan_masks([own("ends"), own("best")], [1, 3], 4, SCORES, num_seeds=3, keep=[])
    assert [(each.policy.rpartition(".")[2], each.id) for each in plan] == [
        ("ends", "1000"),
        ("ends", "1011"),
        ("best", "0100"),
        ("best", "0111"),
    ]
    assert needs_importance([own("best")]) and not needs_importance([own("ends"), "random"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_too_many", "policies: .*one_too_many: expected 2 active blocks, got 3"),
        ("no_mask", "policies: .*no_mask: expected mask as a Tensor or a list of bools"),
        ("floats", "policies: .*floats: expected a mask of dtype torch.bool, got torch.float32"),
        ("nothing", "policies: .*nothing: expected mask as a Tensor or a list of bools, got None"),
        ("too_short", "policies: .*too_short: expected a mask of 4 blocks, got 2"),
        ("Ends", "policies: .*Ends: expected mask as a Tensor or a list of bools"),
        ("absent", "expected the class path of a policy, got .*absent.*PYTHONPATH"),
        ("SCORES", "policies: expected a function of some of num_blocks, k, importance, keep, seed, got .*SCORES$"),
        ("needs_more", r"policies: expected a function of some of num_blocks, k, .*needs_more\(num_blocks, q\)$"),
        ("by_position", r"policies: expected a function of some of .*by_position\(num_blocks, k, /\)$"),
    ],
)
def test_what_gives_no_such_mask_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        plan_masks([own(name)], [2], 4, SCORES)


def test_a_policy_need_not_name_the_number_of_active_blocks():
    plan = plan_masks([own("last_two")], [2], 4, num_seeds=2)
    assert [(each.seed, each.id) for each in plan] == [(0, "0011"), (1, "0011")]


@pytest.mark.parametrize(("path", "reason"), [("broken_policy.x", "SyntaxError"), ("no_such_module.x", "No module")])
def test_a_path_that_leads_nowhere_says_why(path, reason, tmp_path, monkeypatch):
    (tmp_path / "broken_policy.py").write_text("def x(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"expected the class path of a policy, got '{path}': .*{reason}.*PYTHONPATH"):
        check_plan([path], None, 4, 1, [])


def test_names_and_counts_are_checked():
    assert check_plan(None, None, 4, 5, [0, 1]) == (list(POLICIES), [2, 3, 4])
    assert check_plan(["prefix", "prefix"], [3, 1, 3], 4, 1, []) == (["prefix"], [1, 3])
    for arguments in (([], None), (["nope"], None), (None, [0]), (None, [5]), (None, [])):
        with pytest.raises(ValueError):
            check_plan(*arguments, 4, 1, [])
    assert policy("prefix") is prefix


def test_lists_of_blocks_are_policies_of_their_own():
    assert [each.id for each in plan_indices([[0, 2], [1]], 3)] == ["101", "010"]
    with pytest.raises(ValueError, match="at least one list"):
        plan_indices([], 3)
