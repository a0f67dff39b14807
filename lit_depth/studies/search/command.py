"""``lit-depth search``: which blocks cost least when they are removed together; found on one split, told on another.

With masks of sublayers: which attentions and MLPs.
"""

from typing import Any, Literal

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import checked
from lit_depth.module import DepthModule
from lit_depth.studies.search.healing import Heal

RESULT = "search.json"


@checked
def search(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    strategy: Literal["beam", "pairwise"] = "beam",
    beam_width: int = 3,
    max_blocks_to_remove: int = 4,
    keep: list[int] | None = None,
    rank_by: Literal["accuracy", "reference_logprob"] = "accuracy",
    racing: bool = True,
    epsilon: float = 0.02,
    delta: float = 0.05,
    exhaustive: bool = False,
    baselines: bool = True,
    heal: Heal = "none",
    heal_candidates: int | None = None,
    heal_steps: int = 0,
    confidence: float = 0.95,
    max_bad_samples: float = 0.01,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Find the blocks that cost least when they are removed together, by beam search or from all pairs.

    Ablations are chosen on the calibration split; the best of each size are reported on the validation split, beside
    greedy search, the order of importance and contiguous spans, each with its drop and its interaction: the drop beyond
    the sum of the drops of its blocks alone.

    Args:
        trainer: Runs the loops.
        model: Holds the model.
        datamodule: Gives the calibration and the validation split.
        strategy: ``beam`` extends the best ablations of one size by one more block; ``pairwise`` evaluates all single
            blocks and all pairs, predicts every larger ablation from them, and evaluates those that it predicts to be
            best. How far predictions are off, on random ablations, is told first.
        beam_width: Ablations that are kept, and extended by one more block, at each number of removed blocks; of
            ``pairwise``, those that are evaluated of the predicted ones.
        max_blocks_to_remove: Largest number of removed blocks; with ``--model.granularity sublayer`` of their
            attentions and MLPs, each counted by itself and named ``3.attn``, ``3.mlp``.
        keep: Blocks that are never removed.
        rank_by: What ranks ablations: ``accuracy`` (the task's metric; of plain texts the geometric mean probability of
            a token), or ``reference_logprob``, as the mean probability of the reference answer's tokens, which is far
            less noisy. Of equal accuracies that probability decides.
        racing: Spend no more samples on an ablation that would hardly end as the best of its size; false = all
            samples for each.
        epsilon: Difference of the score, at least 0, that does not matter to racing: what it chooses among holds an
            ablation that all samples would rank at most so far below the best. Half of it saves far less.
        delta: Probability, between 0 and 1, that this fails for one of the sizes, and that one of the sets of tied
            ablations lacks the truly best.
        exhaustive: Evaluate every combination of up to that many blocks (at most 5,000) instead of a beam.
        baselines: Run the baselines.
        heal: Also rank the best masks of each size after healing: ``patch`` fits the weights of each to half of the
            calibration split, chooses the best by the other half, and tells how alike the orders before and after are.
            Block 0 is then kept. ``none`` = masks are ranked as they are.
        heal_candidates: Masks of each size that are healed; null = twice ``beam_width``, and at least 4, below which
            there is no rank correlation.
        heal_steps: Gauss-Newton steps of a patch, at most; 0 = every span of skipped blocks is fitted once, which takes
            less time; 4 = as ``lit-depth export --heal patch``.
        confidence: Coverage of all intervals, between 0 and 1.
        max_bad_samples: Share of unreadable samples, 0 to 1, above which the run stops.
        output_dir: Results go to ``<output_dir>/search/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``search.json`` (empty on other processes than the first).

    Raises:
        ValueError: If an argument is out of range, calibration and validation samples overlap, or masks cannot be
            healed.
    """
    import itertools
    from dataclasses import asdict

    from lit_depth.functional import ablation_masks, from_indices
    from lit_depth.results.store import write_parquet
    from lit_depth.results.unit_names import unit_names
    from lit_depth.results.verdicts import refusal
    from lit_depth.studies.search import analysis
    from lit_depth.studies.search.arguments import SearchArguments, check_task
    from lit_depth.studies.search.finders import run_baselines, run_pairwise, run_search
    from lit_depth.studies.search.healed_ranks import rank_after_healing
    from lit_depth.studies.search.healing import candidates, check_heal, heal_arguments
    from lit_depth.studies.search.level_decisions import decide_levels
    from lit_depth.studies.search.report import report
    from lit_depth.studies.search.score_cache import ScoreCache
    from lit_depth.studies.search.verdict import compare_finders
    from lit_depth.studies.shared.checks import check_shares
    from lit_depth.studies.shared.evaluate import evaluate
    from lit_depth.studies.shared.importance_scores import describe_samples, describe_task, records_of, units_of
    from lit_depth.studies.shared.publish import publish
    from lit_depth.studies.shared.readings import describe_readings
    from lit_depth.studies.shared.run_folder import open_run

    num_units, granularity = model.num_units, model.hparams["granularity"]
    from_indices(model.num_blocks, keep or [0])  # refuse what is no block
    healing = heal_arguments(heal, heal_candidates, heal_steps, beam_width)
    # a patch takes a block before the skipped ones
    kept = set(keep or ()) | ({0} if healing else set())
    arguments = SearchArguments(
        strategy=strategy,
        beam_width=beam_width,
        max_blocks_to_remove=max_blocks_to_remove,
        keep=units_of(sorted(kept), granularity),
        rank_by=rank_by,
        racing=racing and not exhaustive and strategy == "beam",
        epsilon=epsilon,
        delta=delta,
        exhaustive=exhaustive,
        baselines=baselines,
        confidence=confidence,
        num_units=num_units,
    )
    check_shares(confidence, max_bad_samples)
    check_task(datamodule)
    if healing:
        check_heal(trainer, model, datamodule)
    datamodule.check_disjoint("calibration", "validation")
    task, options = datamodule.task, asdict(arguments) | (asdict(healing) if healing else {})
    splits = ["calibration", "validation"]
    with (
        open_run(trainer, model, datamodule, splits, options, output_dir, "search", name, max_bad_samples) as run,
        model.staying_on_device(),
    ):
        cache = ScoreCache(run, "calibration", run.folder / "records" / task.name / "calibration")
        pairwise = run_pairwise(cache, arguments, datamodule.seed) if strategy == "pairwise" else None
        found = run_search(cache, arguments, datamodule.seed) if pairwise is None else pairwise.search
        forwards = {key: getattr(cache, key) for key in ("block_forwards", "sequential_block_forwards")}
        full, others = run_baselines(cache, found, arguments, datamodule.seed)
        reported = analysis.to_report(found, others, num_units, arguments)
        levels = candidates(found, healing.heal_candidates) if healing else []
        masks = list(dict.fromkeys(itertools.chain(reported, *levels)))
        measured = evaluate(run, "validation", ablation_masks(num_units, masks), "search")
        if not trainer.is_global_zero:
            return {}
        result: dict[str, Any] = {
            "command": "search",
            **run.model_entry,
            **describe_task(measured),
            **describe_readings(measured, confidence),
            "num_blocks": model.num_blocks,
            "units": unit_names(range(num_units), granularity),
            **options,
            "equal_scores_by": "reference_probability" if rank_by == "accuracy" else None,
            "calibration": {
                "num_samples": cache.num_samples - len(cache.bad_samples),
                "num_bad_samples": len(cache.bad_samples),
                "bad_samples": cache.bad_samples,
                "full": analysis.describe_ablation(full),
            },
            "report": {"split": "validation", **describe_samples(measured, confidence)},
            "levels": [analysis.describe_level(level, beam_width) for level in found.levels],
            "baselines": {kind: list(map(analysis.describe_ablation, each)) for kind, each in others.items()},
            "ablations": analysis.describe_ablations(reported, measured.scores, confidence),
            "totals": {
                "evaluations": found.evaluations,
                "saved": found.saved,
                **forwards,
                "evaluations_with_baselines": cache.evaluations,
            },
        }
        if pairwise:
            result["second_order"] = analysis.describe_pairwise(pairwise)
        result |= decide_levels(found, cache, measured.scores, rank_by, confidence)
        result["verdicts"] = compare_finders(result["ablations"], measured.scores, confidence)
        if healing:
            result["healing"] = rank_after_healing(run, cache, levels, measured.scores, healing, arguments)
        if refusal(result["report"]):
            result["levels"] = [level | {"tied": None, "settled": None} for level in result["levels"]]
            for level in result.get("healing", {}).get("levels", ()):
                level["tied_after"] = None
        write_parquet(run.folder / "records.parquet", records_of([measured], "task"))
        publish(run, report(result), RESULT, result)
    return result
