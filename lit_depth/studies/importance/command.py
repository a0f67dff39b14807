"""``lit-depth importance``: what skipping each single block costs, with intervals and ranks that admit ties."""

from typing import Any, Literal

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule


@checked
def importance(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    skip: list[int] | None = None,
    split: Literal["train", "calibration", "validation"] = "calibration",
    num_samples: int | None = None,
    methods: list[str] | Literal["all"] | None = None,
    lens: bool = False,
    acceptance: bool = False,
    confidence: float = 0.95,
    plan: bool = False,
    max_bad_samples: float = 0.01,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Measure the importance of every block: the drop in quality when it alone is skipped.

    With ``--model.granularity sublayer``: of the attention and the MLP of every block.

    Args:
        trainer: Runs the loops.
        model: Holds the model.
        datamodule: Gives the task, or the tasks.
        skip: Blocks that are not measured, such as a first block that is known to be critical.
        split: Where to measure. Masks chosen by the result are to be judged on another one.
        num_samples: Questions per task; null = as many as --data says for that split.
        methods: Cheaper scores to report beside the drop: among `lit_depth.functional.importance.METHODS`, dotted paths
            of functions of one's own, or ``all``; null = none. Each is compared with the drop in order, in the least
            important blocks, in the quality of the masks it chooses (on the validation split) and in cost. For one
            task and whole blocks.
        lens: Also read the reference answers behind every block of the full model, by its own final norm and head (the
            logit lens): their rank, their log-probability, and by which block they are settled. Costs no further
            forward of the blocks.
        acceptance: Also read up to 16 tokens of the full model's own answer under every mask, to tell how many of them
            the mask would draft in speculative decoding. Takes up to a quarter of the time more.
        confidence: Coverage of all intervals, between 0 and 1.
        plan: Only tell how many samples show a drop of two points, how many there are, and the rows to compute; no
            weights are loaded.
        max_bad_samples: Share of unreadable samples, 0 to 1, above which the run stops.
        output_dir: Results go to ``<output_dir>/importance/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``importance.json`` (empty on other processes than the first). Beside it stands
        ``layer_importance_scores.json``, ``{"0": drop, ...}``, which ``compare --importance`` takes.
        Of sublayers its keys are ``"0.attn"``, ``"0.mlp"``, ..., and ``compare`` does not take it.
        Of a plan, what it tells.

    Raises:
        ValueError: If an argument is out of range; of methods also if ``split`` overlaps the validation split.
    """
    from lit_depth.functional import leave_one_out
    from lit_depth.results.store import write_parquet
    from lit_depth.studies.importance.analysis import describe
    from lit_depth.studies.importance.compare_methods import check_asked, compare_methods
    from lit_depth.studies.importance.lens_by_block import describe_lens
    from lit_depth.studies.importance.measure_proxies import measure_proxies
    from lit_depth.studies.importance.report import report
    from lit_depth.studies.shared.checks import check_acceptance, check_shares
    from lit_depth.studies.shared.importance_scores import RESULT, check_blocks, measure, records_of, units_of
    from lit_depth.studies.shared.power_plan import plan_run, with_full
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.run_folder import open_run

    granularity = model.hparams["granularity"]
    blocks = check_blocks(model.num_blocks, skip or ())
    units = units_of(blocks, granularity)
    check_shares(confidence, max_bad_samples)
    if num_samples is not None:
        datamodule = datamodule.take(split, num_samples)
    if plan:
        sweeps = [(split, with_full(model, leave_one_out(model.num_units)[list(units)]))]
        return plan_run("importance", model, datamodule, sweeps, confidence)
    asked = check_asked(methods, trainer, model, datamodule, split, blocks)
    splits = [split, "validation"] if asked else [split]
    arguments = {"blocks": blocks, "split": split, "confidence": confidence} | ({"methods": asked} if asked else {})
    arguments |= ({"lens": True} if lens else {}) | ({"acceptance": True} if acceptance else {})
    check_acceptance(acceptance, model, datamodule)
    opened = open_run(trainer, model, datamodule, splits, arguments, output_dir, "importance", name, max_bad_samples)
    with opened as run:
        # first, because it is short and may refuse the model
        proxies = measure_proxies(run, split, asked, blocks) if asked else {}
        measured = [measure(each, split, units, lens, acceptance) for each in run.for_each_task()]
        if not trainer.is_global_zero:
            return {}
        result = {
            "command": "importance",
            **run.model_entry,
            "num_blocks": model.num_blocks,
            "split": split,
            "confidence": confidence,
            **describe(measured, units, granularity, confidence),
        }
        if lens:
            for entry, each in zip(result["tasks"], measured):
                entry["lens"] = describe_lens(each, confidence)
        if asked:
            result["methods"] = compare_methods(run, proxies, measured[0].scores, blocks, confidence)
        write_parquet(run.folder / "records.parquet", records_of(measured, "task"))
        publish(run, report(result), RESULT, result)
    return result
