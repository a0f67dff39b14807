"""Plans, intervals, tests and answers of the comparison, against direct computations on simulated scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lit_depth.functional.masking import policies as policies
from lit_depth.functional.statistics import holm
from lit_depth.results.unit_names import list_counts
from lit_depth.studies.compare.analysis import _over_tasks as over_tasks
from lit_depth.studies.compare.analysis import compare_policies
from lit_depth.studies.compare.answers import answer_questions
from lit_depth.studies.compare.figures import limits as bar_ends
from lit_depth.studies.shared.block_ranks import describe_blocks
from lit_depth.studies.shared.comparison_schema import validate_comparison
from lit_depth.studies.shared.importance_scores import to_importance
from lit_depth.studies.shared.mask_grid import POLICIES, PlannedMask, plan_indices, plan_masks
from lit_depth.studies.shared.scores import Scores, describe_masks

NUM_BLOCKS = 6
COUNTS = [2, 3, 4, 6]
# what each block adds to the chance of a right answer: late blocks matter, so importance differs from prefix
WEIGHTS = np.array([0.05, 0.10, 0.0, 0.30, 0.15, 0.40])
FULL = "1" * NUM_BLOCKS


def bits(mask: str) -> np.ndarray:
    return np.array([bit == "1" for bit in mask])


def every_mask() -> list[str]:
    return ["".join(mask) for mask in itertools.product("01", repeat=NUM_BLOCKS) if "1" in mask]


def simulate(
    weights: Sequence[float] | np.ndarray,
    num_samples: int = 120,
    per_image: int = 2,
    seed: int = 0,
    shared: bool = True,
) -> Scores:
    """0/1 scores of every mask: a sample is right if its difficulty is below the sum of the active blocks' weights.

    ``shared`` difficulties make the masks nested (no noise between masks); otherwise every mask draws its own.
    """
    generator = np.random.default_rng(seed)
    masks = every_mask()
    shape = (1 if shared else len(masks), num_samples)
    difficulty = generator.random(shape)
    chance = np.array([np.asarray(weights)[bits(mask)].sum() for mask in masks])
    quality = (difficulty < chance[:, None]).astype(float)
    logprob = -generator.random((len(masks), num_samples))
    return Scores(masks, quality, logprob, [f"image{index // per_image}" for index in range(num_samples)])


def marginal_scores(per_image: int = 2, num_runs: int = 6) -> list[Scores]:
    """Runs in which early blocks matter a little more, so that p-values lie around 0.05."""
    weights = [0.21, 0.19, 0.17, 0.16, 0.14, 0.13]
    return [simulate(weights, per_image=per_image, seed=seed, shared=False) for seed in range(num_runs)]


def repeat(scores: Scores, times: int) -> Scores:
    """Every sample several times, as if its image had been asked the same question again."""
    quality, logprob = (np.repeat(rows, times, axis=1) for rows in (scores.quality, scores.reference_logprob))
    return Scores(scores.mask_ids, quality, logprob, np.repeat(scores.images, times).tolist())


def flat(result: Any) -> list[float]:
    """All numbers of a result in order."""
    if isinstance(result, (dict, list)):
        return [n for value in (result.values() if isinstance(result, dict) else result) for n in flat(value)]
    return [float(result)] if isinstance(result, (int, float)) else []


def means(scores: Scores) -> dict[str, float]:
    return dict(zip(scores.mask_ids, scores.quality.mean(axis=1)))


def by_group(plan: Sequence[PlannedMask]) -> dict[tuple[str, int], list[str]]:
    groups: dict[tuple[str, int], list[str]] = {}
    for planned in plan:
        groups.setdefault((planned.policy, planned.count), []).append(planned.id)
    return groups


def full_plan(names: Sequence[str] = POLICIES, counts: Sequence[int] = tuple(COUNTS)) -> list[PlannedMask]:
    return plan_masks(names, counts, NUM_BLOCKS, WEIGHTS.tolist(), num_seeds=3)


def study(scores: Scores, plan: Sequence[PlannedMask], latency: Mapping[str, Any] | None = None) -> dict[str, Any]:
    full, strategies = describe_masks(plan, scores, latency or {}, 0.95)
    comparisons = compare_policies(plan, scores, 0.95)
    answers = answer_questions(comparisons, strategies)
    return {"full": full, "strategies": strategies, "comparisons": comparisons, "answers": answers}


@pytest.mark.parametrize("top", [1.0, 10.0])
def test_no_bar_leaves_the_scores_that_there_are(top: float) -> None:
    few = simulate(WEIGHTS, num_samples=6, per_image=1)
    scores = few._replace(quality=top * few.quality, max_scores=(top,))
    result = study(scores, full_plan())
    known: Any = result | {"max_score": top}
    bars = [(bar_ends(each, known), each["drop_simultaneous_ci"]) for each in result["strategies"]]
    full = result["full"]["quality"]
    assert all(0 <= low <= high <= top for (low, high), drop in bars if drop is not None)
    # the bound binds; a result of an earlier version, which does not know it, is drawn as it was
    assert any(high == top < full - drop[0] for (_, high), drop in bars if drop is not None)
    assert max(bar_ends(each, result)[1] for each in result["strategies"]) > top  # type: ignore[arg-type]


def test_the_largest_mean_over_tasks_is_the_mean_of_the_largest() -> None:
    def task(name: str, top: float | None) -> dict[str, Any]:
        return {
            "task": name,
            "metric": "a",
            "max_score": top,
            "num_samples": 1,
            "num_bad_samples": 0,
            "bad_samples": {},
        }

    assert over_tasks([task("a", 1.0), task("b", 10.0)])["max_score"] == 5.5
    assert over_tasks([task("a", None), task("b", None)])["max_score"] is None


# plans


@pytest.mark.parametrize("keep", [(), (0, 4)])
@pytest.mark.parametrize("name", POLICIES)
def test_plan_has_masks_of_the_count_asked_for(name: str, keep: tuple[int, ...]) -> None:
    plan = plan_masks([name], COUNTS, NUM_BLOCKS, WEIGHTS.tolist(), num_seeds=4, keep=keep)
    seeds = [0, 1, 2, 3] if name == "random" else [None]
    assert [(p.policy, p.count, p.seed) for p in plan] == [(name, count, seed) for count in COUNTS for seed in seeds]
    for planned in plan:
        assert planned.id == "".join("01"[int(bit)] for bit in planned.mask)
        assert planned.id.count("1") == planned.count
        assert all(planned.mask[block_idx] for block_idx in keep)


def test_importance_keeps_the_best_blocks_and_random_repeats() -> None:
    plan = plan_masks(["importance", "random"], COUNTS, NUM_BLOCKS, WEIGHTS.tolist(), num_seeds=5)
    for planned in plan:
        if planned.policy == "importance":
            assert set(np.flatnonzero(bits(planned.id))) == set(np.argsort(-WEIGHTS)[: planned.count])
    again = plan_masks(["random"], COUNTS[::-1], NUM_BLOCKS, num_seeds=5)
    drawn = {(p.count, p.seed): p.id for p in plan if p.policy == "random"}
    assert drawn == {(p.count, p.seed): p.id for p in again}
    assert len({drawn[3, seed] for seed in range(5)}) > 1


def test_plan_of_indices() -> None:
    plan = plan_indices([[5, 0], [1]], NUM_BLOCKS)
    assert [(p.policy, p.id, p.count, p.seed) for p in plan] == [
        ("blocks 0 5", "100001", 2, None),
        ("blocks 1", "010000", 1, None),
    ]
    with pytest.raises(ValueError, match="between 0 and 5, got 6"):
        plan_indices([[6]], NUM_BLOCKS)
    with pytest.raises(ValueError, match="at least one list"):
        plan_indices([], NUM_BLOCKS)


def test_a_mask_given_twice_is_reported_twice() -> None:
    plan = plan_indices([[0, 5], [1], [5, 0]], NUM_BLOCKS)
    assert [(p.policy, p.id) for p in plan] == [
        ("blocks 0 5", "100001"),
        ("blocks 1", "010000"),
        ("blocks 0 5 (2)", "100001"),
    ]


# strategies


def summaries(value: float, p99: float | None) -> dict[str, Any]:
    summary = {"P50": value, "P95": value, "P99": p99, "mean": value, "std": 0.0, "min": value, "max": value}
    return {stage: dict(summary) for stage in ("vision", "prefill", "decode_per_token", "total")}


def test_strategies_are_means_over_masks_and_samples() -> None:
    scores, plan = simulate(WEIGHTS), full_plan()
    quality, full_quality = means(scores), means(scores)[FULL]
    result = study(scores, plan)
    groups = by_group(plan)
    assert [(s["policy"], s["num_active_blocks"]) for s in result["strategies"]] == list(groups)
    for strategy in result["strategies"]:
        ids = groups[strategy["policy"], strategy["num_active_blocks"]]
        mean = np.mean([quality[mask] for mask in ids])
        assert strategy["quality"] == pytest.approx(mean)
        assert strategy["drop"] == pytest.approx(full_quality - mean)
        rows = [scores.reference_logprob[scores.mask_ids.index(mask)] for mask in ids]
        assert strategy["reference_logprob"] == pytest.approx(np.mean(rows))
        assert len(strategy["masks"]) == (3 if strategy["policy"] == "random" else 1)
        for mask, entry in zip(ids, strategy["masks"]):
            assert (entry["mask_id"], entry["latency_ms"]) == (mask, None)
            assert entry["quality"] == pytest.approx(quality[mask])
            assert entry["drop"] == pytest.approx(full_quality - quality[mask])
            assert entry["active_block_indices"] == np.flatnonzero(bits(mask)).tolist()
        for owner in (strategy, *strategy["masks"]):
            assert owner["quality_ci"][0] <= owner["quality"] <= owner["quality_ci"][1]
            if set(ids) == {FULL}:  # by definition
                assert (owner["drop_ci"], owner["drop_simultaneous_ci"], owner["drop_p_holm"]) == ([0, 0], None, None)
            elif owner["quality"] == full_quality:  # 60 images that all tie are not proof (rule of three)
                share = stats.binomtest(0, 60, alternative="less").proportion_ci(0.95).high
                assert owner["drop_ci"] == pytest.approx([-share, share])
    assert (result["full"]["mask_id"], result["full"]["drop"]) == (FULL, 0)


def test_latency_is_averaged_over_the_masks_of_a_strategy() -> None:
    scores, plan = simulate(WEIGHTS), full_plan(["prefix", "random"], [2, 3])
    value = {planned.id: 1.0 + index for index, planned in enumerate(plan)}
    latency = {mask: summaries(number, None if mask == plan[0].id else number) for mask, number in value.items()}
    for strategy in study(scores, plan, latency)["strategies"]:
        ids = by_group(plan)[strategy["policy"], strategy["num_active_blocks"]]
        for stage in strategy["latency_ms"].values():
            assert stage["P50"] == pytest.approx(np.mean([value[mask] for mask in ids]))
            assert stage["P99"] is None if plan[0].id in ids else stage["P99"] == pytest.approx(stage["P50"])


def test_the_result_has_the_declared_shape() -> None:
    scores, plan = simulate(WEIGHTS), full_plan()
    latency = {mask: summaries(float(mask.count("1")), None) for mask in scores.mask_ids}
    entries = describe_blocks(scores, range(NUM_BLOCKS), 0.95)
    importance = [entry["quality"]["drop"] for entry in entries]
    intervals = {str(entry["block"]): entry["quality"]["drop_ci"] for entry in entries}
    head = {"command": "compare", "task": "simulated", "metric": "ExactMatch", "num_blocks": NUM_BLOCKS}
    head |= {"num_samples": len(scores.images), "num_bad_samples": 0, "confidence": 0.95}
    by_block = {str(block_idx): score for block_idx, score in enumerate(importance)}
    head["importance"] = {"source": "simulated", "num_samples": 120, "scores": by_block, "intervals": intervals}
    validate_comparison({**head, **study(scores, plan, latency)})
    assert to_importance(by_block, NUM_BLOCKS, "scores") == importance


# tests of pairs


def test_pairs_are_compared_where_their_masks_differ() -> None:
    plan = full_plan()
    groups = by_group(plan)
    result = study(simulate(WEIGHTS), plan)["comparisons"]
    expected = []
    for a, b in itertools.combinations(POLICIES, 2):
        counts = [count for count in COUNTS if set(groups[a, count]) != set(groups[b, count])]
        expected += [(a, b, count) for count in counts] + [(a, b, None)]
    assert [(c["a"], c["b"], c["num_active_blocks"]) for c in result] == expected
    assert NUM_BLOCKS not in {c["num_active_blocks"] for c in result}


def test_equal_masks_are_not_compared() -> None:
    plan = [*plan_masks(["prefix"], [2, 3], NUM_BLOCKS), *plan_indices([[0, 1], [0, 1, 2]], NUM_BLOCKS)]
    assert compare_policies(plan, simulate(WEIGHTS), 0.95) == []
    assert compare_policies(plan[:1] + plan[3:], simulate(WEIGHTS), 0.95) == []  # no count in common


def test_index_lists_of_equal_size_are_compared_with_each_other() -> None:
    plan = plan_indices([[0, 1], [4, 5]], NUM_BLOCKS)
    assert [p.policy for p in plan] == ["blocks 0 1", "blocks 4 5"]
    (at_count, overall) = compare_policies(plan, simulate(WEIGHTS), 0.95)
    assert (at_count["a"], at_count["b"], at_count["num_active_blocks"]) == ("blocks 0 1", "blocks 4 5", 2)
    # one count: the overall entry is the same test
    assert overall["p_holm"] == overall["p_value"] == at_count["p_holm"]


@pytest.mark.parametrize("scores", [simulate(WEIGHTS), *marginal_scores()])
def test_at_one_count_the_mean_is_that_count_and_the_answer_never_depends_on_depth(scores: Scores) -> None:
    result = study(scores, full_plan(counts=[3]))
    pairs = itertools.groupby(result["comparisons"], key=lambda entry: (entry["a"], entry["b"]))
    for _, (at_count, overall) in pairs:
        assert at_count == {**overall, "num_active_blocks": 3}
    assert len(result["comparisons"]) >= 6
    assert "depends on depth" not in {answer["answer"] for answer in result["answers"].values() if answer}


def test_differences_p_values_and_verdicts() -> None:
    seen = [
        c for scores in (simulate(WEIGHTS, per_image=1), *marginal_scores(per_image=1)) for c in check_pairs(scores)
    ]
    assert {c["verdict"] for c in seen} == {"a", "b", "tie"}
    assert any(c["p_value"] < 0.05 <= c["p_holm"] for c in seen)  # the correction decided something


def check_pairs(scores: Scores) -> list[dict[str, Any]]:
    plan = full_plan()
    groups, row = by_group(plan), dict(zip(scores.mask_ids, scores.quality))
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    comparisons = compare_policies(plan, scores, 0.95)
    for c in comparisons:
        pairs.setdefault((c["a"], c["b"]), []).append(c)
    overall_p = [entries[-1]["p_value"] for entries in pairs.values()]
    for entries, adjusted in zip(pairs.values(), holm(overall_p)):
        assert entries[-1]["p_holm"] == pytest.approx(adjusted)  # a family of their own: over all pairs
    for (a, b), entries in pairs.items():
        *at_count, overall = entries
        per_sample = []
        for c in at_count:
            first, second = ([row[mask] for mask in groups[name, c["num_active_blocks"]]] for name in (a, b))
            per_sample.append(np.mean(first, axis=0) - np.mean(second, axis=0))
            if "random" not in (a, b):  # single masks, 0/1 scores, no clusters: the test is McNemar's
                won, lost = int((per_sample[-1] > 0).sum()), int((per_sample[-1] < 0).sum())
                exact = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
                assert c["p_value"] == pytest.approx(exact)
        for c, values in zip(entries, [*per_sample, np.mean(per_sample, axis=0)]):
            assert c["difference"] == pytest.approx(values.mean(), abs=1e-12)
            assert c["ci"][0] <= c["difference"] + 1e-9 and c["difference"] <= c["ci"][1] + 1e-9
        assert overall["num_active_blocks"] is None
        # Holm by its definition: the i-th smallest of m is adjusted to max over j <= i of (m - j) p_j
        order = sorted(range(len(at_count)), key=lambda i: at_count[i]["p_value"])
        running = 0.0
        for rank, index in enumerate(order):
            running = max(running, (len(at_count) - rank) * at_count[index]["p_value"])
            assert at_count[index]["p_holm"] == pytest.approx(min(1.0, running))
        for c in entries:
            settled = "a" if c["difference"] > 0 else "b"
            assert c["verdict"] == (settled if c["p_holm"] < 0.05 else "tie")
            # text, table and figure follow one rule
            for limits, p in ((c["ci"], c["p_value"]), (c["simultaneous_ci"], c["p_holm"])):
                assert (limits[0] > 0 or limits[1] < 0) == (p < 0.05)
            assert c["simultaneous_ci"][0] <= c["ci"][0] and c["ci"][1] <= c["simultaneous_ci"][1]
    return comparisons


def test_samples_of_one_image_are_flipped_together() -> None:
    scores = simulate(WEIGHTS, num_samples=20, per_image=2, seed=3)
    plan = full_plan(["prefix", "random"], [3])
    groups, row = by_group(plan), dict(zip(scores.mask_ids, scores.quality))
    means_of = [np.mean([row[mask] for mask in groups[name, 3]], axis=0) for name in ("prefix", "random")]
    sums = (means_of[0] - means_of[1]).reshape(-1, 2).sum(axis=1)
    totals = np.abs(np.array(list(itertools.product([-1, 1], repeat=len(sums)))) @ sums)
    exact = np.mean(totals >= abs(sums.sum()) - 1e-9)
    assert compare_policies(plan, scores, 0.95)[0]["p_value"] == pytest.approx(exact)


@pytest.mark.parametrize("times", [2, 5])
def test_asking_about_an_image_again_adds_no_certainty(times: int) -> None:
    """The image is the cluster: repeated samples change neither an estimate, an interval nor a p-value."""
    plan = full_plan(["prefix", "random"])
    for scores in (simulate(WEIGHTS, num_samples=40), marginal_scores(num_runs=1)[0]):
        once, again = study(scores, plan), study(repeat(scores, times), plan)
        assert flat(once) == pytest.approx(flat(again), abs=1e-9)
        once, again = (describe_blocks(each, range(NUM_BLOCKS), 0.95) for each in (scores, repeat(scores, times)))
        assert flat(once) == pytest.approx(flat(again), abs=1e-9)


def test_swapping_two_policies_mirrors_the_result() -> None:
    scores = simulate(WEIGHTS)
    forward = compare_policies(full_plan(["prefix", "random"]), scores, 0.95)
    backward = compare_policies(full_plan(["random", "prefix"]), scores, 0.95)
    mirrored = {"a": "b", "b": "a", "tie": "tie"}
    for one, other in zip(forward, backward):
        assert (one["a"], one["b"]) == (other["b"], other["a"])
        assert one["difference"] == pytest.approx(-other["difference"])
        assert one["ci"] == pytest.approx([-other["ci"][1], -other["ci"][0]], abs=1e-9)
        assert (one["p_value"], mirrored[one["verdict"]]) == (other["p_value"], other["verdict"])
    # and the answer does not depend on who stands first
    answers = [answer_questions(c, study(scores, full_plan())["strategies"]) for c in (forward, backward)]
    first, second = (answer["random_worse_than_prefix"] for answer in answers)
    assert first["difference"] == pytest.approx(second["difference"])
    assert first["ci"] == pytest.approx(second["ci"], abs=1e-9)
    assert (first["answer"], first["better_at"]) == (second["answer"], second["better_at"])


# answers


@pytest.mark.parametrize(("weights", "expected"), [(WEIGHTS, "yes"), (WEIGHTS[::-1], "no"), (WEIGHTS * 0, "not shown")])
def test_importance_against_prefix(weights: np.ndarray, expected: str) -> None:
    """The importance masks come from WEIGHTS; the truth is WEIGHTS, their reverse, or that no block matters."""
    scores, plan = simulate(weights), full_plan()
    result = study(scores, plan)
    answer, quality, groups = result["answers"]["importance_beats_prefix"], means(scores), by_group(plan)
    assert answer["answer"] == expected
    compared = [count for count in COUNTS if groups["importance", count] != groups["prefix", count]]
    gains = {k: quality[groups["importance", k][0]] - quality[groups["prefix", k][0]] for k in compared}
    assert answer["difference"] == pytest.approx(np.mean(list(gains.values())))
    assert f"{answer['difference']:+.3f} [{answer['ci'][0]:+.3f}, {answer['ci'][1]:+.3f}]" in answer["text"]
    assert f"averaged over {list_counts(compared)} active blocks" in answer["text"]
    settled = {
        c["num_active_blocks"]
        for c in result["comparisons"]
        if {c["a"], c["b"]} == {"importance", "prefix"} and c["num_active_blocks"] and c["p_holm"] < 0.05
    }
    assert answer["better_at"] == [k for k in compared if k in settled and gains[k] > 0]
    assert answer["worse_at"] == [k for k in compared if k in settled and gains[k] < 0]
    assert len(answer["better_at"]) + len(answer["worse_at"]) + answer["num_tied"] == len(compared)
    assert {"yes": answer["better_at"], "no": answer["worse_at"], "not shown": True}[expected]
    # one rule: the answer, its interval and its p-value are those of the comparisons that the table shows
    (overall,) = (
        c
        for c in result["comparisons"]
        if {c["a"], c["b"]} == {"importance", "prefix"} and c["num_active_blocks"] is None
    )
    assert answer["p_holm"] == overall["p_holm"]
    assert sorted(map(abs, answer["ci"])) == pytest.approx(sorted(map(abs, overall["simultaneous_ci"])))
    assert (answer["answer"] in ("yes", "no")) == (answer["ci"][0] > 0 or answer["ci"][1] < 0)


@pytest.mark.parametrize(("weights", "expected"), [(np.sort(WEIGHTS)[::-1], "yes"), (np.sort(WEIGHTS), "no")])
def test_random_against_prefix_is_averaged_over_seeds(weights: np.ndarray, expected: str) -> None:
    scores, plan = simulate(weights, num_samples=200), full_plan()
    answer, quality, groups = study(scores, plan)["answers"]["random_worse_than_prefix"], means(scores), by_group(plan)
    gains = [quality[groups["prefix", k][0]] - np.mean([quality[m] for m in groups["random", k]]) for k in (2, 3, 4)]
    assert answer["difference"] == pytest.approx(np.mean(gains))
    assert answer["answer"] == expected
    assert "random (mean of its seeds)" in answer["text"]


@pytest.mark.parametrize("truth", ["late blocks", "early blocks", "only the count", "marginal"])
def test_choice_and_scalar_rest_on_the_same_tests(truth: str) -> None:
    runs = {
        "late blocks": [simulate(WEIGHTS)],
        "early blocks": [simulate(WEIGHTS[::-1])],
        "only the count": [simulate(np.full(NUM_BLOCKS, 1 / NUM_BLOCKS))],
        "marginal": marginal_scores(),
    }
    for scores in runs[truth]:
        check_choice_and_scalar(scores)


def check_choice_and_scalar(scores: Scores) -> None:
    plan = full_plan()
    result = study(scores, plan)
    choice, scalar = (result["answers"][key] for key in ("choice_of_blocks_matters", "depth_is_a_scalar"))
    frame = pd.DataFrame(result["strategies"])

    at_count = [c for c in result["comparisons"] if c["num_active_blocks"] is not None]
    ranked = sorted(at_count, key=lambda c: c["p_value"])
    running, significant, adjusted = 0.0, set(), []
    for rank, c in enumerate(ranked):
        running = max(running, min(1.0, (len(ranked) - rank) * c["p_value"]))
        adjusted.append(running)
        significant |= {c["num_active_blocks"]} if running < 0.05 else set()
    assert choice["significant_at"] == scalar["counterexamples_at"] == sorted(significant)
    assert choice["smallest_p_holm"] == pytest.approx(adjusted[0])
    assert (choice["answer"], scalar["answer"]) == (("yes", "no") if significant else ("not shown", "not shown"))

    compared = sorted({c["num_active_blocks"] for c in at_count})
    assert list(choice["range"]) == [str(count) for count in compared]
    for count in compared:
        quality = frame.loc[frame["num_active_blocks"] == count, "quality"]
        assert choice["range"][str(count)] == pytest.approx(np.ptp(quality.to_numpy()))
    assert f"largest {max(choice['range'].values()):.3f} at" in choice["text"]
    assert f"median {np.median(list(choice['range'].values())):.3f}" in choice["text"]

    # R squared of a regression of quality on the count as a factor, where masks differ at all
    frame = frame[frame["num_active_blocks"].isin(compared)]
    design = pd.get_dummies(frame["num_active_blocks"]).to_numpy(float)
    target = frame["quality"].to_numpy()
    rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert scalar["variance_explained"] == pytest.approx(1 - rest.var() / target.var(), abs=1e-9)


def test_blocks_that_only_count_are_a_scalar_that_is_not_refuted() -> None:
    scores = simulate(np.full(NUM_BLOCKS, 1 / NUM_BLOCKS))
    answers = study(scores, full_plan())["answers"]
    assert {answer["answer"] for answer in answers.values()} == {"not shown"}
    assert answers["depth_is_a_scalar"]["variance_explained"] == pytest.approx(1.0)
    assert set(answers["choice_of_blocks_matters"]["range"].values()) == {0.0}


def test_quality_that_never_varies_explains_nothing() -> None:
    answer = study(simulate(WEIGHTS * 0), full_plan())["answers"]["depth_is_a_scalar"]
    assert answer["answer"] == "not shown"
    assert answer["variance_explained"] is None and "%" not in answer["text"]


def test_noise_alone_is_rarely_taken_for_a_difference() -> None:
    """All masks of one size equally good, each with its own noise: at most 5% of runs may say more than "not shown"."""
    runs, wrong = 25, {"importance_beats_prefix": 0, "random_worse_than_prefix": 0, "choice_of_blocks_matters": 0}
    plan = full_plan(["prefix", "importance", "random"], [2, 3, 4])
    for seed in range(runs):
        scores = simulate(np.full(NUM_BLOCKS, 1 / NUM_BLOCKS), num_samples=60, seed=seed, shared=False)
        answers = study(scores, plan)["answers"]
        for question in wrong:
            wrong[question] += answers[question]["answer"] != "not shown"
    limit = stats.binom.ppf(0.995, runs, 0.05)
    assert all(count <= limit for count in wrong.values()), wrong


@pytest.mark.parametrize("names", [["prefix"], ["suffix", "uniform"], ["importance", "random"]])
def test_what_was_not_run_is_not_answered(names: list[str]) -> None:
    answers = study(simulate(WEIGHTS), full_plan(names))["answers"]
    for question in ("importance_beats_prefix", "random_worse_than_prefix"):
        assert answers[question] is None
    for question in ("choice_of_blocks_matters", "depth_is_a_scalar"):
        assert (answers[question] is None) == (len(names) == 1)
