"""Paired tests between models, on the samples that both of their runs recorded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional.statistics import FamilyRow, separate_comparisons
from lit_depth.results.model_names import KNOBS, SKIP_TOKENS
from lit_depth.results.run_records import REPORTED, scored_records
from lit_depth.studies.overview.folders import Stored

if TYPE_CHECKING:
    import pandas as pd

ALL_BLOCKS = "all blocks"
_LEAST = 2  # clusters


class RunScores(NamedTuple):
    """Scores of a run: by task a split and its records, and which masks each policy has at each count."""

    label: str
    model: str
    metrics: Mapping[str, str]
    prints: Mapping[str, str]  # fingerprints of the samples, by task and split
    frames: Mapping[str, pd.DataFrame]
    policies: Mapping[str, Mapping[int, Sequence[str]]]
    skip_tokens: str = "all"  # which tokens skip blocks


class ModelPair(NamedTuple):
    """Two models on one task, under all blocks or under the masks of a policy, and what was found.

    ``found`` is of the scores of ``a`` less those of ``b``.
    """

    a: str
    b: str
    task: str
    split: str
    what: str
    num_samples: int
    num_clusters: int
    quality_a: float
    quality_b: float
    same_samples: bool
    found: FamilyRow


class _Differences(NamedTuple):
    pair: tuple[str, str, str, str, str]
    scores: tuple[NDArray[np.float64], NDArray[np.float64]]
    clusters: list[str]
    same_samples: bool


def read_scores(run: Stored, label: str) -> RunScores:
    """What a run recorded.

    Raises:
        ValueError: If a file of records is damaged.
    """
    arguments, model = run.arguments, run.manifest.get("model") or {}
    metrics = dict(zip(arguments.get("data.tasks") or (), arguments.get("data.metrics") or ()))
    prefix = "data fingerprint, "
    prints = {key.removeprefix(prefix): str(text) for key, text in arguments.items() if key.startswith(prefix)}
    identity = f"{model.get('weights')} {model.get('modules')} {arguments.get('model.quantization')}"
    identity += "".join(f" {arguments.get(name)}" for name in KNOBS)
    frames = scored_records(run.folder, arguments)
    policies: dict[str, dict[int, Sequence[str]]] = {}
    for name, masks in run.report.masks.items() if run.command == "compare" else ():
        policy, _, count = name.rpartition(", ")
        policies.setdefault(policy, {})[int(count)] = masks
    return RunScores(label, identity, metrics, prints, frames, policies, arguments.get(SKIP_TOKENS, "all"))


def compare_models(runs: Sequence[RunScores], confidence: float) -> list[ModelPair]:
    """Every pair of models on every task that both ran with one metric: all tests together are one family (Holm).

    Samples are matched by id, and clustered by image. All blocks are compared, and where both models have as many
    blocks also each policy, by its mean over the numbers of blocks that both have. Runs of one model are not compared.

    Args:
        runs: Each pair of models is compared once on each task: by the first runs that allow it.
        confidence: Of the intervals.
    """
    found: dict[tuple[str, ...], _Differences] = {}
    for a, b in itertools.combinations(runs, 2):
        if a.model == b.model:
            continue
        for each in _differences(a, b):
            task, what = each.pair[2], each.pair[4]
            found.setdefault((*sorted((a.model, b.model)), task, what), each)
    rows = list(found.values())
    tests = separate_comparisons(
        [first - second for each in rows for first, second in [each.scores]],
        [each.clusters for each in rows],
        confidence,
        score_ranges=[1.0 if _is_share(each.scores) else None for each in rows],
    )
    return [
        ModelPair(
            *each.pair,
            num_samples=len(each.clusters),
            num_clusters=len(set(each.clusters)),
            quality_a=float(each.scores[0].mean()),
            quality_b=float(each.scores[1].mean()),
            same_samples=each.same_samples,
            found=test,
        )
        for each, test in zip(rows, tests, strict=True)
    ]


def _differences(a: RunScores, b: RunScores) -> list[_Differences]:
    found = []
    for task in (name for name in a.frames if name in b.frames and a.metrics.get(name) == b.metrics.get(name)):
        both = a.frames[task], b.frames[task]
        # texts are scored by token, and tokens are each model's own
        if any("weight" in frame for frame in both):
            continue
        split = shared_split(both)
        if split is not None:
            tables = [score_table(frame[frame["role"] == split]) for frame in both]
            shared = tables[0].columns.intersection(tables[1].columns)
            images = images_of(both[0], split, shared)
            if len(set(images)) < _LEAST:
                continue
            own = [table[shared] for table in tables]
            key = f"{task}, {split}"
            same = a.prints.get(key) is not None and a.prints.get(key) == b.prints.get(key)
            for what, masks in _masks(a, b, own):
                first, second = (table.loc[list(each)].to_numpy(float).mean(axis=0) for table, each in zip(own, masks))
                found.append(_Differences((a.label, b.label, task, split, what), (first, second), images, same))
    return found


def shared_split(frames: Sequence[pd.DataFrame]) -> str | None:
    """The split that all have records of: the one that is reported on, if they have it."""
    shared = set.intersection(*(set(frame["role"]) for frame in frames))
    return min(shared, key=lambda role: (role != REPORTED, role), default=None)


def score_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores by mask and sample, of samples that every mask answered."""
    return frame.pivot(index="mask", columns="sample", values="score").dropna(axis=1)


def images_of(frame: pd.DataFrame, split: str, samples: Any) -> list[str]:
    """Image of each sample, or the sample itself where images are not told."""
    own = frame[frame["role"] == split].drop_duplicates("sample").set_index("sample")
    clusters = own["image"].reindex(samples) if "image" in own else samples
    return [str(cluster) for cluster in clusters]


def _masks(
    a: RunScores, b: RunScores, tables: Sequence[pd.DataFrame]
) -> list[tuple[str, tuple[Sequence[str], Sequence[str]]]]:
    """What is compared, and the masks of either model that stand for it; a mask may come several times."""
    full = ["1" * len(table.index[0]) for table in tables]
    found: list[tuple[str, tuple[Sequence[str], Sequence[str]]]] = []
    if all(mask in table.index for mask, table in zip(full, tables)):
        found.append((ALL_BLOCKS, ([full[0]], [full[1]])))
    if len(full[0]) != len(full[1]):
        return found
    for policy in (name for name in a.policies if name in b.policies):
        counts = [count for count in a.policies[policy] if count in b.policies[policy] and count < len(full[0])]
        sides = [[mask for count in counts for mask in run.policies[policy][count]] for run in (a, b)]
        equal = all(len(a.policies[policy][count]) == len(b.policies[policy][count]) for count in counts)
        known = all(mask in table.index for side, table in zip(sides, tables) for mask in side)
        if counts and equal and known:
            found.append((f"{policy}, mean over {len(counts)} depths", (sides[0], sides[1])))
    return found


def _is_share(scores: Sequence[NDArray[np.float64]]) -> bool:
    return all(bool(((each >= 0) & (each <= 1)).all()) for each in scores)
