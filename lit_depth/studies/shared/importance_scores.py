"""Importance of blocks as commands use it: measured by skipping each block alone, or read from a file.

The file is ``{"0": 0.6, "1": 0.03, ...}``, as ``lit-depth importance`` writes it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.data import DepthDataModule
from lit_depth.data.task import Nouns
from lit_depth.data.tasks.next_token import document_of
from lit_depth.functional import leave_one_out
from lit_depth.functional.masks import Granularity
from lit_depth.module import DepthModule
from lit_depth.results.reading import read_object
from lit_depth.results.unit_names import list_counts, unit_name
from lit_depth.studies.shared.block_ranks import describe_blocks, describe_full, tied_at_cut
from lit_depth.studies.shared.constant_answer import describe_baseline
from lit_depth.studies.shared.decisions import decide_blocks
from lit_depth.studies.shared.evaluate import Measured, evaluate
from lit_depth.studies.shared.identity import check_same_model
from lit_depth.studies.shared.readings import describe_readings
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

RESULT = "importance.json"
COMPARISON = "m5_mask_strategy_comparison.json"
SCORES = "layer_importance_scores.json"
# keys of a comparison's ``importance`` entry, and what they hold of each block
IMPORTANCE_KEYS = {
    "scores": "drop",
    "intervals": "drop_ci",
    "simultaneous_intervals": "drop_simultaneous_ci",
    "p_holm": "p_holm",
    "tied_with": "tied_with",
}


def check_blocks(num_blocks: int, skip: Sequence[int]) -> list[int]:
    """Blocks to measure: all but those in ``skip``."""
    wrong = [block_idx for block_idx in skip if not 0 <= block_idx < num_blocks]
    if wrong:
        raise ValueError(f"skip: expected block indices in 0..{num_blocks - 1}, got {wrong}")
    blocks = [block_idx for block_idx in range(num_blocks) if block_idx not in skip]
    if not blocks or num_blocks < 2:
        raise ValueError(f"there is no block to measure: the model has {num_blocks}, skip names {sorted(set(skip))}")
    return blocks


def units_of(blocks: Sequence[int], granularity: Granularity) -> list[int]:
    """Indices in a mask of what is measured of these blocks.

    >>> units_of([0, 2], "block"), units_of([0, 2], "sublayer")
    ([0, 2], [0, 1, 4, 5])
    """
    if granularity == "block":
        return list(blocks)
    return [2 * block_idx + half for block_idx in blocks for half in (0, 1)]


def measure(run: Run, split: str, units: Sequence[int], lens: bool = False, acceptance: bool = False) -> Measured:
    """Evaluate the full model and every leave-one-out mask of ``units``, on the samples of one split."""
    masks = leave_one_out(run.model.num_units)[list(units)]
    return evaluate(run, split, masks, "importance", lens=lens, acceptance=acceptance)


def records_of(measured: Iterable[Measured], *columns: str) -> "pd.DataFrame":
    """Records of all measurements, with ``columns`` (``task``, ``split``) that tell them apart."""
    import pandas as pd

    frames = []
    for each in measured:
        names = {"task": each.task.name, "split": each.split}
        if each.sweep.records is not None:
            frames.append(each.sweep.records.assign(**{column: names[column] for column in columns}))
    return pd.concat(frames, ignore_index=True)


def describe_task(measured: Measured) -> dict[str, Any]:
    """Name and metric of a task, its largest score (None = none is), and whether checkpoints were trained on it."""
    task, scores = measured.task, measured.scores
    named = {
        "task": task.name,
        "metric": task.metric,
        "max_score": scores.max_scores[0] if scores.is_bounded else None,
        "in_training_mixture": task.in_training_mixture,
    }
    return {**named, **describe_nouns(measured.nouns), **_describe_texts(measured)}


def describe_nouns(nouns: Nouns) -> dict[str, Any]:
    """What samples and clusters are called, as results hold it; nothing of questions about images.

    >>> describe_nouns(Nouns("window", "document")), describe_nouns(Nouns())
    ({'nouns': {'sample': 'window', 'cluster': 'document'}}, {})
    """
    return {} if nouns == Nouns() else {"nouns": nouns._asdict()}


def _describe_texts(measured: Measured) -> dict[str, Any]:
    """Of log-probabilities of texts what the full model gives to each document; nothing of other scores."""
    records, full_id = measured.sweep.records, measured.scores.full_id
    if measured.scores.is_bounded or records is None:
        return {}
    records = records[records["mask"] == full_id]
    summed = records.assign(logprob=records["score"] * records["weight"], document=records["sample"].map(document_of))
    sums = summed.groupby("document")[["logprob", "weight"]].sum()
    documents = {
        str(name): {
            "num_tokens": int(row.weight),
            "logprob": row.logprob / row.weight,
            "perplexity": math.exp(-row.logprob / row.weight),
        }
        for name, row in sums.iterrows()
    }
    return {"texts": {"num_tokens": int(sums["weight"].sum()), "documents": documents}}


def describe_samples(measured: Measured, confidence: float) -> dict[str, Any]:
    """The samples of a split, the full model on them, and the best constant answer."""
    scores, bad_samples = measured.scores, measured.sweep.bad_samples
    return {
        "num_samples": len(scores.images),
        "num_images": len(set(scores.images)),
        "num_bad_samples": len(bad_samples),
        "bad_samples": bad_samples,
        "full": describe_full(scores, confidence),
        "baseline": describe_baseline(scores, confidence),
    }


def task_entry(measured: Measured, units: Sequence[int], confidence: float, granularity: Granularity) -> dict[str, Any]:
    """What is known of one task: its samples, the full model, every unit; of choices also how many are none."""
    return {
        **describe_task(measured),
        **describe_samples(measured, confidence),
        "blocks": describe_blocks(measured.scores, units, confidence, granularity),
        "decision": decide_blocks(measured.scores, units, confidence),
        **measured.sweep.told,
        **describe_readings(measured, confidence),
    }


def measure_mean(run: Run, confidence: float) -> tuple[list[float], dict[str, Any]]:
    """Accuracy drop of every block on the calibration split: the scores, and the result's ``importance`` entry.

    Of several tasks it is their mean, so that every task is evaluated under the same masks.
    """
    blocks = range(run.model.num_blocks)
    found = [measure(each, "calibration", blocks).scores for each in run.for_each_task()]
    scores = found[0] if len(found) == 1 else Scores.pooled(found)
    entries = describe_blocks(scores, blocks, confidence)
    drop = {str(entry["block"]): entry["quality"] for entry in entries}
    return [each["drop"] for each in drop.values()], {
        "source": "accuracy drop on the calibration split" + ("" if len(found) == 1 else ", mean over tasks"),
        "num_samples": len(scores.images),
        **{key: {block: each[name] for block, each in drop.items()} for key, name in IMPORTANCE_KEYS.items()},
    }


def plain_scores(blocks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Content of a ``{"0": 0.6, ...}`` file, from the entries of `describe_blocks`."""
    return {str(unit_name(entry, ".")): entry["quality"]["drop"] for entry in blocks}


def read_importance(path: str, model: DepthModule, datamodule: DepthDataModule) -> dict[str, Any]:
    """The content of a ``{"0": 0.6, ...}`` file; refuse one of another model, or of what this run reports on."""
    try:
        scores = read_object(path)
    except ValueError as error:
        raise ValueError(
            f'importance: expected a JSON file like {{"0": 0.6, "1": 0.03, ...}}: {path}: {error}'
        ) from error
    # what `lit-depth importance` writes beside it
    details = Path(path).with_name(RESULT)
    if details.is_file():
        try:
            run = read_object(details)
            split, measured = run["split"], {entry["task"] for entry in run["tasks"]}
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"importance: {details}, which says what the scores beside it were measured on, is damaged ({reason}): "
                f"measure again, or move {Path(path).name} elsewhere"
            ) from error
        shared = {task.name for task in datamodule.tasks} & measured
        if split == "validation" and shared:
            raise ValueError(
                f"importance: {path} was measured on the validation split of {min(shared)}, which compare reports on: "
                "masks chosen by it would look better than they are. Measure it with --split calibration"
            )
    check_same_model(path, "importance", model, {})
    return scores


def to_importance(scores: Mapping[str, float], num_blocks: int, source: str, keep: Sequence[int] = ()) -> list[float]:
    """Scores of a ``{"0": 0.6, ...}`` file as a list, checked.

    Blocks of ``keep`` may be missing, and count as most important: they stay active whatever their score.

    >>> to_importance({"1": 0.5, "0": 2}, 2, "file.json")
    [2.0, 0.5]
    >>> to_importance({"1": 0.5}, 2, "file.json", keep=[0])
    [0.5, 0.5]

    Raises:
        ValueError: If a block is missing, unknown, or has no finite number.
    """
    expected = {str(block_idx) for block_idx in range(num_blocks)}
    known = isinstance(scores, Mapping) and bool(scores) and not set(scores) - expected
    missing = sorted(int(b) for b in expected - set(scores) if int(b) not in keep) if known else []
    if not known or missing:
        given = sorted(scores, key=str)[:5] if isinstance(scores, Mapping) else type(scores).__name__
        raise ValueError(
            f"{source}: expected one score for each of the blocks 0..{num_blocks - 1}, got {given}"
            + (f"; without one, give --keep for blocks {missing}" if missing else "")
        )
    for block_idx, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{source}: expected a finite score, got {value!r} for block {block_idx}")
    return [float(scores.get(str(block_idx), max(scores.values()))) for block_idx in range(num_blocks)]


def read_ties(path: str) -> dict[int, list[int]] | None:
    """Which blocks of a ``{"0": 0.6, ...}`` file are tied, by the result beside it; None if alone or changed."""
    try:
        scores, folder = read_object(path), Path(path).parent
        if (folder / RESULT).is_file():
            run = read_object(folder / RESULT)
            blocks = run["macro"] or run["tasks"][0]["blocks"]
            found = {str(entry["block"]): entry["quality"]["tied_with"] for entry in blocks}
            measured = plain_scores(blocks)
        else:
            entry = read_object(folder / COMPARISON)["importance"]
            found, measured = entry["tied_with"], entry["scores"]
        ties = {int(block): [int(other) for other in others] for block, others in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return ties if measured == scores else None


def name_ties(
    masks: Mapping[int, Sequence[int]],
    scores: Sequence[float] | None,
    tied_with: Mapping[Any, Sequence[int]] | None,
    keep: Sequence[int],
) -> list[dict[str, Any]] | None:
    """Where the importance policy decided among blocks that the samples cannot tell apart.

    One `lit_depth.studies.shared.comparison_schema.Tie` for each number of active blocks in ``masks`` (to the blocks)
    with ties across the cut. None where scores were used whose ties are not known.
    """
    if scores is None:
        return []
    if tied_with is None:
        return None
    # blocks of ``keep`` are active whatever their score; JSON has made the keys texts
    ties = {int(block): others for block, others in tied_with.items() if int(block) not in keep}
    free = {block: [other for other in others if other not in keep] for block, others in ties.items()}
    found = []
    for count, kept in masks.items():
        blocks = tied_at_cut(scores, free, kept)
        if blocks:
            found.append({"num_active_blocks": count, "blocks": blocks, "kept": [b for b in blocks if b in set(kept)]})
    return found


def tie_sentences(entry: Mapping[str, Any]) -> list[str]:
    """What the importance policy decided by chance: one sentence per number of active blocks.

    >>> tie_sentences({"ties": [{"num_active_blocks": 8, "blocks": [3, 5, 7], "kept": [5, 7]}]})
    ['At 8 blocks the order of blocks 3, 5 and 7 is noise; 5 and 7 were kept.']
    """
    if entry.get("ties") is None:
        return [f"Which blocks are tied in importance is not known: {entry['source']} stands alone, without tests."]
    sentences = []
    for tie in entry["ties"]:
        count, were = tie["num_active_blocks"], "were" if len(tie["kept"]) > 1 else "was"
        sentences.append(
            f"At {count} block{'s' if count > 1 else ''} the order of blocks {list_counts(tie['blocks'])} is noise; "
            f"{list_counts(tie['kept'])} {were} kept."
        )
    return sentences
