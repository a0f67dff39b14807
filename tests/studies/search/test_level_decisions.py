"""Decisions of a search on made-up scores whose best ablation is known, with racing and without."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lit_depth.functional import MaskScores, MaskSet, beam_search
from lit_depth.functional.statistics import paired_intervals
from lit_depth.studies.search.level_decisions import decide_levels
from lit_depth.studies.shared.scores import Scores

LOSSES = np.array([0.02, 0.25, 0.03, 0.5, 0.6, 0.5])
NUM_SAMPLES = 300


class Recorded:
    """A cache of made-up scores: a block that is skipped spoils an answer with a probability of its own."""

    def __init__(self, seed, clusters=None):
        self.num_units, self.num_samples = len(LOSSES), NUM_SAMPLES
        self.clusters = clusters or [str(sample) for sample in range(NUM_SAMPLES)]
        self.spoils = np.random.default_rng(seed).random((len(LOSSES), NUM_SAMPLES)) < LOSSES[:, None]
        self.seen: dict[str, np.ndarray] = {}

    def of(self, names):
        return np.array([1.0 - self.spoils[[bit == "0" for bit in name]].any(axis=0) for name in names])

    def __call__(self, masks, positions):
        names = MaskSet.of(masks).ids
        for name in names:
            self.seen.setdefault(name, np.zeros(NUM_SAMPLES, bool))[list(positions)] = True
        right = self.of(names)[:, list(positions)]
        return MaskScores(right, np.log(np.maximum(right, 0.1)))

    def recorded(self, names):
        nothing = np.zeros(NUM_SAMPLES, bool)
        seen = np.array([self.seen.get(name, nothing) | (set(name) == {"1"}) for name in names])
        right = np.where(seen, self.of(names), np.nan)
        return MaskScores(right, np.log(np.maximum(right, 0.1)))


def searched(racing, rank_by="accuracy", clusters=None):
    cache, elsewhere = Recorded(0, clusters), Recorded(1)
    options = {"beam_width": 2, "max_removed": 2, "rank_by": rank_by, "racing": racing, "clusters": cache.clusters}
    found = beam_search(cache, len(LOSSES), NUM_SAMPLES, **options)
    ids = list(dict.fromkeys(["111111", *cache.seen]))
    right = elsewhere.of(ids)
    reported = Scores(ids, right, np.log(np.maximum(right, 0.1)), elsewhere.clusters)
    return found, decide_levels(found, cache, reported, rank_by, 0.95), reported, cache


@pytest.mark.parametrize("racing", [False, True])
def test_every_level_is_decided_as_the_search_did(racing):
    found, told, reported, cache = searched(racing)
    assert told["undecided"] == {}
    for level, entry in zip(found.levels, told["decisions"]):
        assert entry["skipped"] == list(level.best.removed) and entry["num_samples"] == NUM_SAMPLES
        assert entry["num_candidates"] == entry["best"]["num_options"] == len(level.ablations)
        assert entry["num_dropped_early"] == sum(each.dropped_on is not None for each in level.ablations)
        full, chosen = reported.rows(["111111", entry["best"]["mask_id"]])
        (row,) = paired_intervals([full - chosen])
        assert entry["best"]["reported_drop_ci"] == [row.low, row.high]
    one, two = told["decisions"]
    assert (one["num_dropped_early"] > 0) == racing
    # blocks 0 and 2 hardly differ: one alone is a matter of luck, both together are not
    assert one["inclusion"]["0"] + one["inclusion"]["2"] > 0.95 and one["agreement"] < 0.95
    assert two["skipped"] == [0, 2] and two["inclusion"]["0"] > 0.95 and two["samples_needed"] == NUM_SAMPLES
    low, high = two["best"]["corrected_drop_ci"]
    assert low <= two["best"]["corrected_drop"] <= high and two["best"]["drop"] <= two["best"]["corrected_drop"] + 1e-9


def test_equal_accuracies_are_ordered_as_the_search_orders_them():
    """No block costs an answer: the reference probability alone decides, in the search and in fresh samples."""
    costs = np.array([0.3, 0.2, 0.25, 0.05, 0.3, 0.2])

    class Tied(Recorded):
        def scores(self, names, places):
            cost = np.array([[bit == "0" for bit in name] for name in names]) @ costs
            noise = np.random.default_rng(5).random(NUM_SAMPLES)[places] / 10
            right = np.ones((len(names), len(places)))
            return MaskScores(right, np.log(0.9 - cost[:, None] + noise))

        def __call__(self, masks, positions):
            return self.scores(MaskSet.of(masks).ids, list(positions))

        def recorded(self, names):
            return self.scores(names, np.arange(NUM_SAMPLES))

    cache = Tied(0)
    found = beam_search(cache, len(LOSSES), NUM_SAMPLES, beam_width=2, max_removed=1, racing=False)
    ids = MaskSet.of(np.vstack([np.ones(6, bool), ~np.eye(6, dtype=bool)])).ids
    reported = Scores(ids, *cache.recorded(ids), cache.clusters)
    (told,) = decide_levels(found, cache, reported, "accuracy", 0.95)["decisions"]
    assert told["skipped"] == [3] and max(told["inclusion"], key=told["inclusion"].get) == "3"
    assert told["inclusion"]["3"] > 2 * told["inclusion"]["0"]


def test_the_score_that_ranked_is_the_one_that_is_told():
    _, told, reported, _ = searched(False, "reference_logprob")
    best = told["decisions"][0]["best"]
    full, chosen = np.exp(reported.rows(["111111", best["mask_id"]], "reference_logprob"))
    assert best["reported_drop"] == pytest.approx(np.mean(full - chosen))


def test_one_cluster_and_one_candidate_are_no_decision():
    found, _, reported, cache = searched(False)
    cache.clusters = ["one"] * NUM_SAMPLES
    told = decide_levels(found, cache, reported, "accuracy", 0.95)
    reason = "calibration samples of one cluster"
    assert told == {"decisions": [], "undecided": {"1 removed": reason, "2 removed": reason}}
    level = found.levels[0]
    alone = SimpleNamespace(levels=[level._replace(ablations=level.ablations[:1])])
    assert decide_levels(alone, Recorded(0), reported, "accuracy", 0.95)["undecided"] == {"1 removed": "one mask"}
