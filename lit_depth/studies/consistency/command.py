"""``lit-depth consistency``: do two splits, or two tasks, rank the blocks alike?"""

from typing import Any, Literal

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule

RESULT = "consistency.json"


@checked
def consistency(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    splits: list[Literal["train", "calibration", "validation"]] = ["calibration", "validation"],  # noqa: B006
    skip: list[int] | None = None,
    num_samples: int | None = None,
    threshold: float = 0.9,
    confidence: float = 0.95,
    max_bad_samples: float = 0.01,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Do two splits, or two tasks, rank the blocks alike? Rank correlation of their importance, noise allowed for.

    Args:
        trainer: Runs the loops.
        model: Holds the model.
        datamodule: Gives the task, or the tasks.
        splits: Two splits to compare within each task, or one on which every pair of tasks is compared.
        skip: Blocks that are not measured, such as a first block that is known to be critical.
        num_samples: Questions per task and split; null = as many as --data says.
        threshold: Rank correlation that counts as consistent, between -1 and 1.
        confidence: Coverage of all intervals, between 0 and 1.
        max_bad_samples: Share of unreadable samples, 0 to 1, above which the run stops.
        output_dir: Results go to ``<output_dir>/consistency/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``consistency.json`` (empty on other processes than the first).

    Raises:
        ValueError: If an argument is out of range, or the two splits overlap.
    """
    from lit_depth.results.store import write_parquet
    from lit_depth.studies.consistency.analysis import check_comparable, describe
    from lit_depth.studies.consistency.report import report
    from lit_depth.studies.shared.checks import check_shares
    from lit_depth.studies.shared.importance_scores import check_blocks, measure, records_of, units_of
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.run_folder import open_run

    granularity = model.hparams["granularity"]
    blocks = check_blocks(model.num_blocks, skip or ())
    units = units_of(blocks, granularity)
    check_shares(confidence, max_bad_samples)
    splits = list(splits)
    check_comparable(splits, len(datamodule.tasks), len(units), granularity, threshold)
    if num_samples is not None:
        for split in splits:
            datamodule = datamodule.take(split, num_samples)
    arguments = {"blocks": blocks, "splits": splits, "threshold": threshold, "confidence": confidence}
    opened = open_run(trainer, model, datamodule, splits, arguments, output_dir, "consistency", name, max_bad_samples)
    with opened as run:
        measured = []
        for each in run.for_each_task():
            if len(splits) == 2:
                each.datamodule.check_disjoint(*splits)
            measured += [measure(each, split, units) for split in splits]
        if not trainer.is_global_zero:
            return {}
        result = {
            "command": "consistency",
            **run.model_entry,
            "num_blocks": model.num_blocks,
            "splits": splits,
            "threshold": threshold,
            "confidence": confidence,
            **describe(measured, splits, units, granularity, threshold, confidence),
        }
        write_parquet(run.folder / "records.parquet", records_of(measured, "task", "split"))
        publish(run, report(result), RESULT, result)
    return result
