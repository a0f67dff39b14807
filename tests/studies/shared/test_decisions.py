"""Decisions of blocks and masks on made-up scores whose best choice is known."""

from __future__ import annotations

import numpy as np

from lit_depth.studies.shared.decisions import decide_blocks, decide_mask, decide_masks, pay_for_blocks, pay_for_masks
from lit_depth.studies.shared.scores import Scores


def made_up(losses, num_samples=300, seed=0):
    """Scores of the full model, always right, and of each block skipped, wrong with its own probability."""
    wrong = np.random.default_rng(seed).random((len(losses), num_samples)) < np.array(losses)[:, None]
    full = "1" * len(losses)
    names = [full, *(full[:place] + "0" + full[place + 1 :] for place in range(len(losses)))]
    quality = np.concatenate([np.ones((1, num_samples)), 1.0 - wrong])
    return Scores(names, quality, np.log(quality + 0.1), [f"image {sample}" for sample in range(num_samples)])


def test_the_least_important_quarter_is_skipped_and_stands_firm():
    found = decide_blocks(made_up([0.5, 0.02, 0.4, 0.5, 0.03, 0.6, 0.7, 0.5]), range(8), 0.95)
    assert found["skipped"] == [1, 4]
    assert list(found["inclusion"]) == list(map(str, range(8)))
    assert found["inclusion"]["1"] == found["inclusion"]["4"] == found["repeated"] == 1.0
    assert found["samples_needed"] == found["num_samples"] == 300
    assert found["best"]["num_options"] == 8
    low, high = found["best"]["corrected_drop_ci"]
    assert low <= found["best"]["drop"] <= found["best"]["corrected_drop"] <= high


def test_of_equal_blocks_the_higher_index_goes():
    assert decide_blocks(made_up([0.0] * 4, 40), range(4), 0.95)["skipped"] == [3]


def test_the_best_mask_is_chosen_and_one_mask_is_no_choice():
    scores = made_up([0.3, 0.05, 0.3])
    found = decide_mask(scores, scores.mask_ids[1:], 0.95)
    assert found["skipped"] == [1] and found["best"]["mask_id"] == "101"
    assert decide_mask(scores, ["101", "101"], 0.95) is None
    whole = decide_mask(scores, scores.mask_ids, 0.95)
    assert whole["skipped"] == [] and whole["best"]["drop"] == 0.0  # nothing is as good as the full model


def test_each_group_is_decided_and_told_on_samples_that_it_did_not_see():
    seen, unseen = made_up([0.3, 0.05, 0.3, 0.2], seed=5), made_up([0.3, 0.05, 0.3, 0.2], seed=6)
    found = decide_masks({"a": seen.mask_ids[1:], "b": seen.mask_ids[1:2]}, seen, 0.95, unseen)
    (entry,) = found["decisions"]
    assert (entry["name"], entry["best"]["mask_id"], found["undecided"]) == ("a", "1011", {"b": "one mask"})
    (row,) = unseen.compare(unseen.rows(["1111"]) - unseen.rows(["1011"]), 0.95)
    assert entry["best"]["reported_drop"] == row.interval.estimate
    assert entry["best"]["reported_drop_ci"] == [row.interval.low, row.interval.high]
    few = unseen._replace(mask_ids=unseen.mask_ids[:2], quality=unseen.quality[:2])
    for elsewhere in (None, few):  # nothing is told where the mask was not measured
        (entry,) = decide_masks({"a": seen.mask_ids[1:]}, seen, 0.95, elsewhere)["decisions"]
        assert "reported_drop" not in entry["best"]


def test_masks_chosen_on_another_task_cost_the_mean_over_the_groups():
    """Of two groups one has another best mask on either task, the other the same."""
    scores = {"a": made_up([0.0, 0.5, 0.0, 0.5], seed=3), "b": made_up([0.4, 0.1, 0.0, 0.5], seed=4)}
    names = scores["a"].mask_ids[1:]
    groups = [names[:2], names[2:], names[:1]]
    found = {(each["chosen"], each["paid"]): each for each in pay_for_masks(scores, groups, 0.95)}
    assert set(found) == {("a", "b"), ("b", "a")}
    assert abs(found["a", "b"]["regret"] - 0.3 / 2) < 0.05 and abs(found["b", "a"]["regret"] - 0.5 / 2) < 0.05
    assert all((each["num_shared"], each["num_choices"]) == (1, 2) and each["p_holm"] < 0.05 for each in found.values())
    assert pay_for_masks({"a": scores["a"]}, groups, 0.95) == [] == pay_for_masks(scores, [names[:1]], 0.95)


def test_several_tasks_as_one_count_alike():
    tasks = [made_up([0.1, 0.5, 0.5, 0.5], 40, 1), made_up([0.5, 0.05, 0.5, 0.5], 400, 2)]
    found = decide_blocks(Scores.pooled(tasks), range(4), 0.95)
    assert found["skipped"] in ([0], [1])  # means of .3 and .275: not decided by the larger task alone
    assert 0.03 < found["inclusion"]["0"] < 0.97


def test_another_task_s_choice_costs_what_it_truly_loses():
    scores = {"a": made_up([0.0, 0.5, 0.5, 0.4], seed=3), "b": made_up([0.5, 0.1, 0.6, 0.6], seed=4)}
    found = {(each["chosen"], each["paid"]): each for each in pay_for_blocks(scores, range(4), 0.95)}
    assert set(found) == {("a", "b"), ("b", "a")}
    assert abs(found["a", "b"]["regret"] - 0.4) < 0.1 and abs(found["b", "a"]["regret"] - 0.5) < 0.1
    assert all(each["p_holm"] < 0.05 and each["num_shared"] == 0 for each in found.values())
    assert pay_for_blocks({"a": scores["a"]}, range(4), 0.95) == []
