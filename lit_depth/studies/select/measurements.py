"""What ``lit-depth select`` chooses by: what earlier runs measured, or quality on both splits and times on requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.results.reading import read_object
from lit_depth.studies.select.analysis import SHARE, Option, Times, order_by_importance, worth_timing
from lit_depth.studies.select.arguments import SelectArguments
from lit_depth.studies.shared.constant_answer import describe_baseline
from lit_depth.studies.shared.evaluate import evaluate
from lit_depth.studies.shared.identity import check_same_model, model_arguments
from lit_depth.studies.shared.importance_scores import measure_mean, read_importance, to_importance
from lit_depth.studies.shared.mask_grid import PlannedMask, needs_importance, plan_masks
from lit_depth.studies.shared.readings import describe_readings
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores, describe_masks
from lit_depth.studies.shared.time_masks import time_masks

# the fewest requests whose largest time bounds the percentile with 95% confidence: 1 - SHARE ** 59 >= 0.95
ENOUGH_REQUESTS = ceil(log(1 - 0.95) / log(SHARE))
# what is kept of a mask; the last three are not in files of earlier versions
_KEYS = (
    *("quality", "quality_ci", "drop", "drop_ci", "drop_simultaneous_ci", "drop_p_holm", "num_distinct_answers"),
    "agreement",
)


def quality_by_mask(
    full: Mapping[str, Any], strategies: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Policies and quality of every mask of a comparison.

    >>> shares = {"quality_ci": [0.5, 0.7], "drop_ci": [0.2, 0.4]}
    >>> full = {"mask_id": "11", "quality": 0.9, "drop": 0.0, **shares}
    >>> half = {"mask_id": "10", "quality": 0.6, "drop": 0.3, **shares}
    >>> found = quality_by_mask(full, [{"policy": name, "masks": [half]} for name in ("prefix", "uniform")])
    >>> {mask: (policies, entry["quality"]) for mask, (policies, entry) in found.items()}
    {'11': (['full'], 0.9), '10': (['prefix', 'uniform'], 0.6)}
    """
    found = {full["mask_id"]: (["full"], {key: full.get(key) for key in _KEYS})}
    for strategy in strategies:
        for entry in strategy["masks"]:
            names, _ = found.setdefault(entry["mask_id"], ([], {key: entry.get(key) for key in _KEYS}))
            if strategy["policy"] not in names:
                names.append(strategy["policy"])
    return found


class BySample(NamedTuple):
    """Scores of the masks on the questions that the choice looks at, and on others."""

    seen: Scores
    unseen: Scores


class Earlier(NamedTuple):
    """What earlier runs measured; None where no file was given."""

    importance: list[float] | None = None  # of each block
    options: list[Option] | None = None
    beside: dict[str, Any] | None = None  # what a result holds beside the masks
    times: dict[str, list[float]] | None = None  # in ms, by mask


def read_earlier(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    arguments: SelectArguments,
    new_tokens: int,
    clock: Mapping[str, Any],
) -> Earlier:
    """Read the files that were given; ``clock`` is what times depend on besides the model.

    Raises:
        ValueError: If a file cannot be read, or was measured with another model, task, device or kind of request.
    """
    earlier, same = Earlier(), model_arguments(trainer, model)
    if (path := arguments.importance) is not None:
        scores = read_importance(path, model, datamodule)
        earlier = earlier._replace(importance=to_importance(scores, model.num_blocks, path, arguments.keep))
    if (path := arguments.comparison) is not None:
        options, beside = read_comparison(path, model.num_blocks, datamodule.task.name)
        check_same_model(path, "comparison", model, {**same, "data.path": datamodule.path})
        earlier = earlier._replace(options=options, beside=beside)
    if (path := arguments.latency) is not None:
        times = read_latency(path, model.num_blocks, new_tokens, clock["device"])
        check_same_model(path, "latency", model, {**same, "threads": clock["threads"]})
        earlier = earlier._replace(times=times)
    return earlier


def read_comparison(path: str, num_blocks: int, task: str) -> tuple[list[Option], dict[str, Any]]:
    """Masks of ``m5_mask_strategy_comparison.json``, chosen by the quality that it reports, and what stands beside.

    That is its ``baseline``, and its ``readings`` and ``decisions`` if it has some.

    Raises:
        ValueError: If the file cannot be read, or is of another task or number of blocks.
    """
    from lit_depth.studies.shared.comparison_schema import validate_comparison  # pydantic, for this file alone

    try:
        content = validate_comparison(read_object(path))
    except ValueError as error:
        raise ValueError(
            f"comparison: expected the JSON file that `lit-depth compare` writes: {path}: {error}"
        ) from error
    for what, there, now in (("blocks", content["num_blocks"], num_blocks), ("task", content["task"], task)):
        if there != now:
            raise ValueError(f"comparison: {path} was measured with {what} {there}, this run has {now}")
    found = quality_by_mask(content["full"], content["strategies"])
    # one split only: what is chosen by these numbers looks a little better in them than it is
    options = [Option(mask, names, entry, None) for mask, (names, entry) in found.items()]
    beside: dict[str, Any] = {"baseline": content.get("baseline")}
    beside |= {key: content[key] for key in ("readings", "decisions", "undecided") if key in content}
    return options, beside


def read_latency(path: str, num_blocks: int, new_tokens: int, device: str) -> dict[str, list[float]]:
    """Total times in milliseconds by mask of the ``latency.json`` that ``lit-depth latency`` writes.

    ``latency_details.json`` beside it, where there is one, tells the batch size and the device.

    Raises:
        ValueError: If the file cannot be read or holds no request, or is of other requests or another device.
    """
    try:
        samples = read_object(path)["all_samples"]
        rows = [
            (set(row["active_block_indices"]), row["num_total_blocks"], float(row["T_total"]), row["num_output_tokens"])
            for row in samples
        ]
        details = Path(path).with_name("latency_details.json")
        run = read_object(details) if details.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"latency: expected the latency.json that `lit-depth latency` writes: {path}: {error}"
        ) from error
    now = {"batch_size": 1, "device": device, "decoding": "dynamic"}
    for key, value in now.items():
        if run.get(key, value) != value:
            raise ValueError(f"latency: {path} was measured with {key} {run[key]}, this run has {value}")
    times: dict[str, list[float]] = {}
    for active, total_blocks, total, output in rows:
        if total_blocks != num_blocks or output != new_tokens:
            raise ValueError(
                f"latency: {path} has requests of {output} new tokens and {total_blocks} blocks, "
                f"this run has {new_tokens} and {num_blocks}"
            )
        times.setdefault("".join("1" if index in active else "0" for index in range(num_blocks)), []).append(total)
    if not times:
        raise ValueError(f"latency: {path} holds no request")
    return times


def find_options(
    run: Run,
    arguments: SelectArguments,
    earlier: Earlier,
    names: Sequence[str],
    counts: Sequence[int],
) -> tuple[list[Option], dict[str, Any], BySample | None]:
    """The masks to choose among, the result's ``baseline`` and ``readings``, and scores where they are measured now.

    The masks follow from importance alone, come from an earlier comparison, or from policies that are measured now.
    """
    scores, keep, num_blocks = earlier.importance, arguments.keep, run.model.num_blocks
    if arguments.estimate_depth:
        assert scores is not None
        return order_by_importance(scores, num_blocks, keep), {"baseline": None}, None
    if earlier.options is not None and earlier.beside is not None:
        return earlier.options, earlier.beside, None
    if scores is None and needs_importance(names):
        scores, _ = measure_mean(run, arguments.confidence)
    plan = plan_masks(names, counts, num_blocks, scores, arguments.num_seeds, keep)
    return _measure_quality(run, plan, arguments.confidence, arguments.adapts)


def _measure_quality(
    run: Run,
    plan: Sequence[PlannedMask],
    confidence: float,
    adapts: bool,
) -> tuple[list[Option], dict[str, Any], BySample]:
    """Quality of the planned masks on the calibration split, to choose by, and on the validation split, to report.

    Where it ``adapts``, it is reported of those masks alone that may be chosen.
    """
    # both in one run, so that a mask's quality is reported on questions that its choice did not see
    seen = evaluate(run, "calibration", [planned.mask for planned in plan], "masks")
    chosen_by = quality_by_mask(*describe_masks(plan, seen.scores, {}, confidence))
    options = [Option(mask, names, entry, None) for mask, (names, entry) in chosen_by.items()]
    shown = {option.mask_id for option in (worth_timing(options) if adapts else options)}
    reported = [planned for planned in plan if planned.id in shown]
    unseen = evaluate(run, "validation", [planned.mask for planned in reported], "masks")
    expected = quality_by_mask(*describe_masks(reported, unseen.scores, {}, confidence))
    options = [option._replace(expected=expected.get(option.mask_id, ([], None))[1]) for option in options]
    baseline = describe_baseline(unseen.scores, confidence)
    beside = {"baseline": baseline, **describe_readings(unseen, confidence)}
    return options, beside, BySample(seen.scores, unseen.scores)


@dataclass(frozen=True)
class Clock:
    """Times requests of batch size 1 under masks; what the run's folder holds already is not timed again."""

    run: Run
    new_tokens: int
    threads: int

    def time(self, masks: Sequence[str], split: str, num_requests: int) -> Mapping[str, list[float]]:
        """Total time in milliseconds of each request to a split, by mask."""
        records = time_masks(
            self.run,
            split,
            masks,
            self.run.folder / "latency" / f"{split}.jsonl",
            threads=self.threads,
            num_requests=num_requests,
            new_tokens=self.new_tokens,
        )
        return {str(mask): rows["total"].astype(float).tolist() for mask, rows in records.groupby("mask")}

    def time_all(self, masks: Sequence[str], arguments: SelectArguments, earlier: Times | None) -> Times:
        """Times of the masks on the calibration split, or those of an earlier run."""
        if earlier is not None:
            return earlier
        return self.time(masks, "calibration", arguments.num_requests or ENOUGH_REQUESTS)


def describe_timing(options: Sequence[Option], times: Times, adapts: bool) -> dict[str, Any]:
    """The result's ``timing``; ``options`` are all masks that there were to choose among."""
    depths = {option.mask_id.count("1") for option in options} - {mask.count("1") for mask in times}
    return {
        "adaptive": adapts,
        "num_requests": sum(map(len, times.values())),
        "num_masks": len(times),
        "depths_not_timed": sorted(depths),
    }
