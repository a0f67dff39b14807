"""The four answers on scores made by hand: what they say follows from the tests that the table shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lit_depth.functional.masking.policies import from_indices
from lit_depth.functional.statistics import holm
from lit_depth.results.verdicts import refusal
from lit_depth.studies.compare.analysis import compare_policies
from lit_depth.studies.compare.answers import answer_questions, variance_explained, withhold
from lit_depth.studies.shared.block_ranks import describe_blocks, tied_at_cut
from lit_depth.studies.shared.comparison_schema import validate_comparison
from lit_depth.studies.shared.constant_answer import ConstantAnswer, FoundAnswer, describe_baseline
from lit_depth.studies.shared.importance_scores import name_ties, tie_sentences
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.scores import Scores, describe_masks

NUM_BLOCKS, NUM_SAMPLES = 8, 64
# active blocks of two policies at three counts, all different
MASKS = {
    "importance": {2: [6, 7], 4: [4, 5, 6, 7], 6: [2, 3, 4, 5, 6, 7]},
    "prefix": {2: [0, 1], 4: [0, 1, 2, 3], 6: [0, 1, 2, 3, 4, 5]},
}
KEYS = ("importance_beats_prefix", "random_worse_than_prefix", "choice_of_blocks_matters", "depth_is_a_scalar")


def plan(counts: Sequence[int] = (2, 4, 6), names: Sequence[str] = ("importance", "prefix")) -> list[PlannedMask]:
    return [PlannedMask(name, from_indices(NUM_BLOCKS, MASKS[name][count])) for name in names for count in counts]


def scores_with(gains: Mapping[int, int], counts: Sequence[int] = (2, 4, 6)) -> Scores:
    """Prefix is right on the first half of the samples; importance on so many more, or fewer, at each count."""
    ids = {planned.id: planned for planned in plan(counts)} | {"1" * NUM_BLOCKS: None}
    quality = np.zeros((len(ids), NUM_SAMPLES))
    for row, planned in enumerate(ids.values()):
        right = NUM_SAMPLES // 2
        if planned is None:
            right = NUM_SAMPLES
        elif planned.policy == "importance":
            right += gains.get(planned.count, 0)
        quality[row, :right] = 1.0
    return Scores(list(ids), quality, quality - 1, [str(index) for index in range(NUM_SAMPLES)])


def study(scores: Scores, planned: list[PlannedMask]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    comparisons = compare_policies(planned, scores, 0.95)
    _, strategies = describe_masks(planned, scores, {}, 0.95)
    return comparisons, answer_questions(comparisons, strategies)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({2: 12, 4: 12, 6: 12}, "yes"),
        ({2: -12, 4: -12, 6: -12}, "no"),
        ({2: 12, 4: 0, 6: 12}, "yes"),  # nowhere worse: better in the mean
        ({2: 16, 4: 0, 6: -16}, "depends on depth"),  # both directions, and no mean
        ({2: 30, 4: 30, 6: -12}, "depends on depth"),  # better in the mean, but worse at 6
        ({2: 12, 4: -4, 6: -4}, "depends on depth"),  # better at 2 only, nothing in the mean
        ({2: -12, 4: 4, 6: 4}, "depends on depth"),
        ({2: 3, 4: 3, 6: -3}, "not shown"),
        ({}, "not shown"),
    ],
)
def test_the_answer_follows_from_the_directions_of_the_tests(gains: dict[int, int], expected: str) -> None:
    comparisons, answers = study(scores_with(gains), plan())
    answer = answers["importance_beats_prefix"]
    assert answer["answer"] == expected
    # the tests by hand: McNemar's of so many discordant samples is 2 / 2^n, corrected over three counts
    at = {count: min(1.0, 2.0 ** (1 - abs(gains.get(count, 0)))) for count in (2, 4, 6)}
    adjusted = dict(zip(at, holm(list(at.values()))))
    assert answer["better_at"] == [k for k in at if adjusted[k] < 0.05 and gains.get(k, 0) > 0]
    assert answer["worse_at"] == [k for k in at if adjusted[k] < 0.05 and gains.get(k, 0) < 0]
    assert "averaged over 2, 4 and 6 active blocks" in answer["text"]
    assert answers["random_worse_than_prefix"] is None
    # the interval in the text is the one of the p-value in the text
    (overall,) = (c for c in comparisons if c["num_active_blocks"] is None)
    assert (answer["p_holm"], answer["ci"]) == (overall["p_holm"], overall["simultaneous_ci"])
    assert (answer["ci"][0] > 0 or answer["ci"][1] < 0) == (answer["p_holm"] < 0.05)


def test_the_answer_does_not_depend_on_which_policy_stands_first() -> None:
    for gains in ({2: 12, 4: 12, 6: 12}, {2: 16, 6: -16}, {2: -12}):
        scores = scores_with(gains)
        first, second = (study(scores, plan(names=names))[1] for names in (list(MASKS), list(MASKS)[::-1]))
        assert first["importance_beats_prefix"]["answer"] == second["importance_beats_prefix"]["answer"]
        assert first["importance_beats_prefix"]["ci"] == pytest.approx(second["importance_beats_prefix"]["ci"])


def test_questions_that_were_not_asked_have_no_answer() -> None:
    scores = scores_with({2: 12})
    answers = study(scores, plan(names=["prefix"]))[1]
    assert answers == dict.fromkeys(KEYS)
    # two policies that share no number of blocks leave the pairs to be told, but nothing of equal size
    apart = [plan([2], ["prefix"])[0], plan([4], ["importance"])[0]]
    answers = study(scores, apart)[1]
    assert answers["choice_of_blocks_matters"] is None and answers["depth_is_a_scalar"] is None
    assert answers["importance_beats_prefix"]["answer"] == "not shown"


def test_r_squared_is_told_of_more_than_two_points_only() -> None:
    def explained(points: list[tuple[int, float]]) -> float | None:
        return variance_explained(pd.DataFrame(points, columns=["num_active_blocks", "quality"]))

    assert explained([(4, 0.2), (4, 0.4)]) is None  # two points, whatever they are
    assert explained([(4, 0.2), (8, 0.4)]) is None
    assert explained([(4, 0.2), (8, 0.4), (12, 0.9)]) is None  # one policy: always 1
    assert explained([(4, 0.2), (4, 0.4), (4, 0.9)]) is None  # one count: always 0
    assert explained([(4, 0.5), (4, 0.5), (8, 0.5)]) is None  # nothing to explain
    # by hand: sums of squares 0.06 in all, 0.02 within counts
    assert explained([(4, 0.2), (4, 0.4), (8, 0.5), (8, 0.5)]) == pytest.approx(1 - 0.02 / 0.06)
    answer = study(scores_with({2: 12}, [2]), plan([2]))[1]["depth_is_a_scalar"]
    assert answer["variance_explained"] is None and "%" not in answer["text"]


# withheld


def result_with(full: float, constant: float, gains: Mapping[int, int]) -> dict[str, Any]:
    scores = scores_with(gains)
    row = scores.mask_ids.index("1" * NUM_BLOCKS)
    scores.quality[row] = np.arange(NUM_SAMPLES) < full * NUM_SAMPLES
    flat = (np.arange(NUM_SAMPLES)[::-1] < constant * NUM_SAMPLES).astype(float)
    scores = scores._replace(constant=ConstantAnswer((FoundAnswer("yes", "calibration", 64, 5),), flat))
    planned = plan()
    entry, strategies = describe_masks(planned, scores, {}, 0.95)
    baseline = describe_baseline(scores, 0.95)
    comparisons = compare_policies(planned, scores, 0.95)
    answers = answer_questions(comparisons, strategies)
    head = {"command": "compare", "task": "made", "metric": "ExactMatch", "num_blocks": NUM_BLOCKS}
    head |= {"num_samples": NUM_SAMPLES, "num_bad_samples": 0, "confidence": 0.95, "latency_requests": None}
    head["importance"] = {"source": "made", "num_samples": 0, "scores": {}, "intervals": None, "ties": []}
    result = {**head, "full": entry, "baseline": baseline, "strategies": strategies}
    return result | {"comparisons": comparisons, "answers": answers}


def test_everything_that_claims_is_withheld_and_every_number_stays() -> None:
    result = result_with(0.5, 0.5, {2: 12, 4: 12, 6: -12})
    reason = refusal(result, "made")
    assert reason is not None and reason.startswith("No verdict on made: the full model (0.500)")
    comparisons, answers = withhold(result["comparisons"], result["answers"], reason)
    for before, after in zip(result["comparisons"], comparisons):
        assert after == {**before, "verdict": "withheld"}
    for key in KEYS:
        if result["answers"][key] is None:
            assert answers[key] is None
            continue
        assert (answers[key]["answer"], answers[key]["text"]) == ("withheld", reason)
        claims = {"better_at", "worse_at", "num_tied", "significant_at", "counterexamples_at"}
        kept = result["answers"][key].keys() - claims - {"answer", "text"}
        assert kept and {name: answers[key][name] for name in kept} == {
            name: result["answers"][key][name] for name in kept
        }
        assert not claims & answers[key].keys()
    validate_comparison(result | {"comparisons": comparisons, "answers": answers})


def test_a_model_that_beats_the_constant_keeps_its_answers() -> None:
    result = result_with(1.0, 0.3, {2: 12, 4: 12, 6: 12})
    assert refusal(result) is None and result["answers"]["importance_beats_prefix"]["answer"] == "yes"
    validate_comparison(result)


# drops are one family


@pytest.mark.parametrize("seed", range(6))
def test_the_drop_of_a_mask_has_a_simultaneous_interval_that_agrees_with_its_p_value(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = scores_with({})
    scores.quality[:] = generator.random(scores.quality.shape) < generator.uniform(0.55, 0.8, (len(scores.quality), 1))
    full, strategies = describe_masks(plan(), scores, {}, 0.95)
    assert full["drop_simultaneous_ci"] is None and full["drop_p_holm"] is None  # nothing is tested
    for strategy in strategies:
        (mask,) = strategy["masks"]  # the same mask, the same numbers
        assert mask["drop_simultaneous_ci"] == strategy["drop_simultaneous_ci"]
        low, high = strategy["drop_simultaneous_ci"]
        assert (low > 0 or high < 0) == (strategy["drop_p_holm"] < 0.05)
        assert low <= strategy["drop_ci"][0] and strategy["drop_ci"][1] <= high
    by_hand = [s["drop_p_holm"] for s in strategies]
    assert max(by_hand) <= 1 and len(by_hand) == 6


# ties


def test_ties_across_the_cut_are_named_and_others_are_not() -> None:
    # 0 above all, 1 = 2 = 3, and 4 below
    tied = {0: [], 1: [2, 3], 2: [1, 3], 3: [1, 2], 4: []}
    importance = [0.9, 0.3, 0.2, 0.1, -0.5]
    cuts = {1: [0], 2: [0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0, 1, 2, 3, 4]}
    assert {count: tied_at_cut(importance, tied, kept) for count, kept in cuts.items()} == {
        1: [],
        2: [1, 2, 3],
        3: [1, 2, 3],
        4: [],
        5: [],
    }
    ties = name_ties(cuts, importance, tied, keep=[])
    assert ties == [
        {"num_active_blocks": 2, "blocks": [1, 2, 3], "kept": [1]},
        {"num_active_blocks": 3, "blocks": [1, 2, 3], "kept": [1, 2]},
    ]
    # a block that is always kept was not chosen
    assert name_ties({2: [0, 1]}, importance, tied, keep=[1]) == []
    assert tie_sentences({"ties": ties[:1]}) == ["At 2 blocks the order of blocks 1 to 3 is noise; 1 was kept."]
    assert tie_sentences({"ties": []}) == []
    assert "not known: scores.json stands alone" in tie_sentences({"ties": None, "source": "scores.json"})[0]


def test_tied_blocks_are_those_whose_ranks_are_open() -> None:
    """A block is above, below or tied with each other block: its ranks leave room for exactly the ties."""
    generator = np.random.default_rng(1)
    full = np.ones(80)
    rows = [full * (generator.random(80) >= cost) for cost in (0.8, 0.4, 0.35, 0.0)]
    ids = ["1111", "0111", "1011", "1101", "1110"]
    quality = np.stack([full, *rows])
    scores = Scores(ids, quality, quality - 1, [str(index) for index in range(80)])
    entries = describe_blocks(scores, range(4), 0.95)
    for entry in entries:
        low, high = entry["quality"]["rank_ci"]
        assert high - low == len(entry["quality"]["tied_with"])
        for other in entry["quality"]["tied_with"]:
            assert entry["block"] in entries[other]["quality"]["tied_with"]
    assert [entry["quality"]["tied_with"] for entry in entries] == [[], [2], [1], []]
