"""``lit-depth answers``: predictions alone, for questions whose answers are withheld; no quality is claimed."""

from typing import Any, Literal

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule

RESULT = "answers.json"


@checked
def answers(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    policies: list[str] = ["prefix"],  # noqa: B006
    num_active_blocks: list[int] | None = None,
    active_block_indices: list[list[int]] | None = None,
    keep: list[int] | None = None,
    num_seeds: int = 1,
    submission: Literal["vqav2", "docvqa", "mmmu"] | None = None,
    confidence: float = 0.95,
    max_bad_samples: float = 0.01,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Answer questions under masks without scoring them: agreement with the full model, flips, files to submit.

    Args:
        trainer: Runs the loop.
        model: Holds the model.
        datamodule: Gives the questions, from the validation split; answers are not looked at, and need not be there.
        policies: Which blocks are active at each count: names of policies (but importance, which is not measured here),
            or paths of functions.
        num_active_blocks: Numbers of active blocks, each in 1..num_blocks; null = all.
        active_block_indices: Lists of active blocks instead of policies (takes precedence).
        keep: Blocks that stay active in every mask.
        num_seeds: Masks that the random policy draws at each count.
        submission: Format of a file for each mask: ``vqav2``, ``docvqa`` or ``mmmu``; null = that of the task, or none.
        confidence: Coverage of the intervals, between 0 and 1.
        max_bad_samples: Share of unreadable samples, 0 to 1, above which the run stops.
        output_dir: Results go to ``<output_dir>/answers/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``answers.json`` (empty on other processes than the first). Beside it stand
        ``records.parquet`` with every answer, and ``submission/<mask>.json`` where there is a format.

    Raises:
        ValueError: If an argument is out of range, or ids do not fit the format of a submission.
    """
    from lit_depth.results.store import write_json, write_parquet
    from lit_depth.studies.answers.analysis import describe
    from lit_depth.studies.answers.report import report
    from lit_depth.studies.answers.submission import format_of, submissions
    from lit_depth.studies.shared.checks import check_asks, check_one_task, check_shares, check_whole_blocks
    from lit_depth.studies.shared.evaluate import sweep_masks
    from lit_depth.studies.shared.importance_scores import records_of
    from lit_depth.studies.shared.mask_grid import check_plan, needs_importance, plan_indices, plan_masks
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.run_folder import open_run

    check_whole_blocks(model, "answers")
    check_one_task(datamodule, "answers takes its questions from one task")
    check_asks(datamodule, "answers")
    check_shares(confidence, max_bad_samples)
    num_blocks = model.num_blocks
    names, counts = check_plan(policies, num_active_blocks, num_blocks, num_seeds, list(keep or ()))
    if needs_importance(names) and active_block_indices is None:
        raise ValueError("answers does not measure importance: give its blocks as --active_block_indices")
    plan = (
        plan_masks(names, counts, num_blocks, None, num_seeds, list(keep or ()))
        if active_block_indices is None
        else plan_indices(active_block_indices, num_blocks)
    )
    datamodule = datamodule.without_answers()
    kind = submission or format_of(datamodule.task)
    arguments = {"masks": [[each.policy, each.id] for each in plan], "submission": kind, "confidence": confidence}
    opened = open_run(
        trainer, model, datamodule, ["validation"], arguments, output_dir, "answers", name, max_bad_samples, False
    )
    with opened as run:
        measured = sweep_masks(run, "validation", [each.mask for each in plan], "answers")
        if not trainer.is_global_zero:
            return {}
        result = describe(plan, measured, confidence)
        asked = run.datamodule.eval_dataset("validation").without_images()
        files = {} if kind is None else submissions(kind, measured.sweep.records, asked)
        for mask, content in files.items():
            write_json(run.folder / "submission" / f"{mask}.json", content)
        result |= {**run.model_entry, "submission": kind}
        write_parquet(run.folder / "records.parquet", records_of([measured], "task"))
        publish(run, report(result, [f"submission/{mask}.json" for mask in files]), RESULT, result)
    return result
