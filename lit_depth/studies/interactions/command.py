"""``lit-depth interactions``: what every pair of blocks costs beyond its two blocks alone."""

from typing import Any, Literal

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule

RESULT = "interactions.json"


@checked
def interactions(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    skip: list[int] | None = None,
    split: Literal["train", "calibration", "validation"] = "calibration",
    num_samples: int | None = 48,
    num_held_out: int = 24,
    max_blocks_to_remove: int = 6,
    seed: int = 0,
    confidence: float = 0.95,
    max_bad_samples: float = 0.01,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Measure every pair of blocks: what skipping both costs beyond the sum of their own drops.

    All singles, all pairs and some random masks of three and more skipped blocks are answered in one pass. A model of
    second order through the singles and pairs predicts every other mask; how far off it is on the random ones is told
    before its best masks. With ``--model.granularity sublayer``: of the attentions and MLPs.

    Args:
        trainer: Runs the loops.
        model: Holds the model.
        datamodule: Gives the task.
        skip: Blocks that stay active in every mask, such as a first block that is known to be critical.
        split: Where to measure. Masks chosen by the result are to be judged on another one.
        num_samples: Questions; null = as many as --data says for that split. The default takes about a minute on two
            cores with the bundled checkpoint; up to four times as many make intervals half as wide.
        num_held_out: Random masks that the second-order model is tried on, in sizes that take turns; 0 = none, and then
            nothing is predicted.
        max_blocks_to_remove: Largest number of skipped blocks of these masks and of the predicted ones, at least 3.
        seed: Seed of the random masks.
        confidence: Coverage of all intervals, between 0 and 1.
        max_bad_samples: Share of unreadable samples, 0 to 1, above which the run stops.
        output_dir: Results go to ``<output_dir>/interactions/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``interactions.json`` (empty on other processes than the first).

    Raises:
        ValueError: If an argument is out of range, there are several tasks, or fewer than two blocks may be skipped or
            so many that there are more than 5,000 singles and pairs.
    """
    from lit_depth.functional import ablation_masks
    from lit_depth.functional.search.second_order import held_out_ablations, singles_and_pairs
    from lit_depth.results.store import write_parquet
    from lit_depth.results.unit_names import unit_names
    from lit_depth.studies.interactions.analysis import check_arguments, describe, describe_passes
    from lit_depth.studies.interactions.report import report
    from lit_depth.studies.shared.checks import check_one_task, check_shares
    from lit_depth.studies.shared.evaluate import evaluate
    from lit_depth.studies.shared.importance_scores import (
        check_blocks,
        describe_samples,
        describe_task,
        records_of,
        units_of,
    )
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.readings import describe_readings
    from lit_depth.studies.shared.run_folder import open_run

    granularity = model.hparams["granularity"]
    blocks = check_blocks(model.num_blocks, skip or ())
    units, num_units = units_of(blocks, granularity), model.num_units
    check_shares(confidence, max_bad_samples)
    check_one_task(datamodule, "interactions takes one task at a time")
    check_arguments(units, num_units, num_held_out, max_blocks_to_remove, seed)
    if num_samples is not None:
        datamodule = datamodule.take(split, num_samples)
    arguments = {
        "blocks": blocks,
        "split": split,
        "num_held_out": num_held_out,
        "max_blocks_to_remove": max_blocks_to_remove,
        "seed": seed,
        "confidence": confidence,
    }
    held_out = held_out_ablations(num_units, units, num_held_out, max_blocks_to_remove, seed)
    _, *combined = singles_and_pairs(units)
    masks = ablation_masks(num_units, [*combined, *held_out])
    opened = open_run(trainer, model, datamodule, [split], arguments, output_dir, "interactions", name, max_bad_samples)
    with opened as run:
        measured = evaluate(run, split, masks, "interactions")
        if not trainer.is_global_zero:
            return {}
        result = {
            "command": "interactions",
            **run.model_entry,
            **describe_task(measured),
            **describe_samples(measured, confidence),
            **describe_readings(measured, confidence),
            "num_blocks": model.num_blocks,
            "granularity": granularity,
            "units": unit_names(range(num_units), granularity),
            **arguments,
            "passes": describe_passes(model, combined, held_out),
            **describe(measured.scores, units, held_out, max_blocks_to_remove, confidence, granularity),
        }
        write_parquet(run.folder / "records.parquet", records_of([measured], "task"))
        publish(run, report(result), RESULT, result)
    return result
