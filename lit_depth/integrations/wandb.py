"""Results of the studies in Weights & Biases. The only module that imports wandb: import it where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_depth.results.figures import has_latency
from lit_depth.results.schema import Comparison, Latency, Strategy
from lit_depth.results.units import unit_name
from lit_depth.results.verdicts import WITHHELD, differs, refusal

RESULT = "m5_mask_strategy_comparison.json"
COLUMNS = (
    "policy",
    "num_active_blocks",
    "num_masks",
    "quality",
    "quality_ci_low",
    "quality_ci_high",
    "drop",
    "drop_ci_low",
    "drop_ci_high",
    "drop_simultaneous_ci_low",
    "drop_simultaneous_ci_high",
    "drop_p_holm",
    "reference_logprob",
    "vision_P50_ms",
    "prefill_P50_ms",
    "decode_per_token_P50_ms",
    "total_P50_ms",
)
IMPORTANCE_COLUMNS = (
    "block",
    "drop",
    "drop_ci_low",
    "drop_ci_high",
    "drop_simultaneous_ci_low",
    "drop_simultaneous_ci_high",
    "p_holm",
    "verdict",
    "reference_logprob_drop",
    "reference_logprob_drop_ci_low",
    "reference_logprob_drop_ci_high",
    "reference_logprob_drop_simultaneous_ci_low",
    "reference_logprob_drop_simultaneous_ci_high",
    "reference_logprob_p_holm",
    "reference_logprob_verdict",
    "rank",
    "reference_logprob_rank",
)
CONSISTENCY_COLUMNS = ("a", "b", "measure", "spearman", "noise_free_low", "noise_free_high", "p_value", "verdict")
SEARCH_COLUMNS = (
    "removed",
    "num_removed",
    "found_by",
    "quality",
    "drop",
    "drop_ci_low",
    "drop_ci_high",
    "drop_simultaneous_ci_low",
    "drop_simultaneous_ci_high",
    "drop_p_holm",
    "interaction",
    "interaction_ci_low",
    "interaction_ci_high",
    "interaction_simultaneous_ci_low",
    "interaction_simultaneous_ci_high",
    "interaction_p_holm",
)
_STEP = "num_active_blocks"
_QUALITY_FIGURES = ("m5_quality_vs_blocks",)
_LATENCY_FIGURES = ("m5_latency_vs_blocks", "m5_quality_latency_tradeoff")


@rank_zero_only
def log_comparison(logger: WandbLogger, comparison: Comparison, folder: str | Path) -> None:
    """Log a comparison of policies to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``quality/<policy>`` | curve of quality against ``num_active_blocks``, one history row per number of blocks |
    | ``latency_ms/total/<policy>`` | curve of the median total time per request in milliseconds, where measured |
    | ``charts/quality_vs_blocks``, ``charts/latency_vs_blocks``, ``charts/quality_latency_tradeoff`` | all policies \
in one chart; the last has latency in milliseconds on its x axis |
    | ``compare/strategies`` | table with one row per policy and number of blocks, see :data:`COLUMNS` |
    | ``figures/m5_...`` | the PNG figures in ``folder`` |
    | summary ``answers/<question>``, ``answers/<question>_text`` | the four answers |
    | summary ``full/quality``, ``full/num_distinct_answers``, ``full/latency_ms/total`` | the model with all its \
blocks |
    | summary ``baseline/answer``, ``baseline/quality``, ``baseline/beaten`` | the best constant answer |
    | summary ``latency/num_requests`` | requests that every time rests on |
    | summary ``withheld`` | why there are no verdicts; empty where there are |
    | ``figures/m5_quality_vs_blocks_<task>``, summary ``full/quality/<task>`` | each of several tasks |

    The JSON file itself becomes the artifact ``m5_mask_strategy_comparison`` of type ``comparison``. Nothing is
    averaged or rounded here: every number is one of the JSON's.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        comparison: A valid comparison result.
        folder: Folder of the result: the JSON file, and the figures in ``figures/`` (those that exist are logged).

    Raises:
        ValueError: If the folder has no ``m5_mask_strategy_comparison.json``.
    """
    folder = Path(folder)
    result = folder / RESULT
    if not result.is_file():
        raise ValueError(f"expected the result {RESULT} in {folder}, found no such file")
    run = logger.experiment
    policies = _by_policy(comparison)
    # hidden: as an axis it needs no panel of its own
    run.define_metric(_STEP, hidden=True)
    for policy in policies:
        # exact names, because the logger has claimed "*" for trainer/global_step
        run.define_metric(f"quality/{policy}", step_metric=_STEP)
        run.define_metric(f"latency_ms/total/{policy}", step_metric=_STEP)
    for row in _curve_rows(comparison):
        run.log(row)
    table = wandb.Table(columns=list(COLUMNS), data=[_table_row(strategy) for strategy in comparison["strategies"]])
    run.log({"compare/strategies": table, **_charts(policies, comparison), **_images(comparison, folder / "figures")})
    run.summary.update(_summary(comparison))
    for task in comparison.get("tasks", ()):  # type: ignore[attr-defined]
        figure = folder / "figures" / f"m5_quality_vs_blocks_{task['task']}.png"
        if figure.is_file():
            run.log({f"figures/{figure.stem}": wandb.Image(str(figure))})
        run.summary[f"full/quality/{task['task']}"] = task["full"]["quality"]
        run.summary.update(_baseline(task, f"/{task['task']}"))
    artifact = wandb.Artifact(
        result.stem, type="comparison", metadata={key: comparison[key] for key in ("task", "metric", "num_samples")}
    )
    artifact.add_file(str(result))
    run.log_artifact(artifact)


@rank_zero_only
def log_importance(logger: WandbLogger, result: dict[str, Any], folder: str | Path) -> None:
    """Log block importance to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``importance/<task>`` | one row per block or half, see :data:`IMPORTANCE_COLUMNS`; ``macro`` = mean over tasks |
    | ``charts/importance/<task>`` | the drop in quality as a bar per block or half |
    | ``figures/block_importance...`` | the PNG figures in ``folder`` |
    | summary ``full/quality/<task>``, ``full/num_distinct_answers/<task>`` | the model with all its blocks |
    | summary ``baseline/answer/<task>``, ``.../quality/...``, ``.../beaten/...`` | the best constant answer |
    | summary ``withheld`` | why there are no findings; empty where there are |

    The JSON file becomes the artifact ``importance`` of type ``importance``.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        result: Content of ``importance.json``.
        folder: Folder of the result.
    """
    folder, run = Path(folder), logger.experiment
    groups = {task["task"]: (task["blocks"], refusal(task) is not None) for task in result["tasks"]}
    if result["macro"]:
        groups["macro"] = result["macro"], refusal(result) is not None
    row: dict[str, Any] = {}
    for name, (blocks, refused) in groups.items():
        data = [_importance_row(entry, result["confidence"], refused) for entry in blocks]
        table = wandb.Table(columns=list(IMPORTANCE_COLUMNS), data=data)
        row[f"importance/{name}"] = table
        row[f"charts/importance/{name}"] = wandb.plot.bar(table, "block", "drop", title=f"Importance, {name}")
    figures = sorted((folder / "figures").glob("block_importance*.png"))
    run.log(row | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
    parts = [(task["task"], task) for task in result["tasks"]]
    if "methods" in result:
        parts.append(("the masks of the methods", result["methods"]["validation"]))
    run.summary.update(_withheld(parts))
    for task in result["tasks"]:
        name = task["task"]
        run.summary.update({f"full/quality/{name}": task["full"]["quality"], **_baseline(task, f"/{name}")})
    artifact = wandb.Artifact("importance", type="importance", metadata={"split": result["split"]})
    artifact.add_file(str(folder / "importance.json"))
    run.log_artifact(artifact)


@rank_zero_only
def log_consistency(logger: WandbLogger, result: dict[str, Any], folder: str | Path) -> None:
    """Log the agreement of block importance between splits or tasks to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``consistency/pairs`` | one row per pair and measure, see :data:`CONSISTENCY_COLUMNS` |
    | ``figures/consistency...`` | the PNG figures in ``folder`` |
    | summary ``spearman/<a> - <b>``, ``verdict/<a> - <b>`` | of the drops in quality |
    | summary ``withheld``, ``baseline/...`` | as for importance |

    The JSON file becomes the artifact ``consistency`` of type ``consistency``.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        result: Content of ``consistency.json``.
        folder: Folder of the result.
    """
    folder, run = Path(folder), logger.experiment
    rows = []
    for pair in result["pairs"]:
        for measure in ("quality", "reference_logprob"):
            entry = pair[measure]
            limits = entry["ci"] or (None, None)
            rows.append([pair["a"], pair["b"], measure, entry["spearman"], *limits, entry["p_value"], entry["verdict"]])
    figures = sorted((folder / "figures").glob("consistency*.png"))
    table = wandb.Table(columns=list(CONSISTENCY_COLUMNS), data=rows)
    run.log({"consistency/pairs": table, **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}})
    run.summary.update(_withheld([(each["name"], each) for each in result["measurements"]]))
    for each in result["measurements"]:
        run.summary.update(_baseline(each, f"/{each['name']}"))
    for pair in result["pairs"]:
        names, entry = f"{pair['a']} - {pair['b']}", pair["quality"]
        run.summary.update({f"spearman/{names}": entry["spearman"], f"verdict/{names}": entry["verdict"]})
    artifact = wandb.Artifact("consistency", type="consistency", metadata={"splits": result["splits"]})
    artifact.add_file(str(folder / "consistency.json"))
    run.log_artifact(artifact)


@rank_zero_only
def log_latency(logger: WandbLogger, result: dict[str, Any], folder: str | Path) -> None:
    """Log latency against active blocks to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``latency/configurations`` | one row per mask: medians of all stages in milliseconds, share of the full model |
    | ``figures/latency_vs_blocks`` | the figure in ``folder`` |
    | summary ``latency/<stage>_ms_per_block``, ``latency/<stage>_ms_fixed`` | the fitted lines |
    | summary ``latency/num_requests`` | requests that every time rests on |

    The two JSON files become the artifact ``latency`` of type ``latency``.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        result: Content of ``latency_details.json``.
        folder: Folder of the result.
    """
    folder, run = Path(folder), logger.experiment
    stages = list(result["configurations"][0]["latency_ms"])
    rows = []
    for entry in result["configurations"]:
        times = [entry["latency_ms"][stage] for stage in stages]
        medians = [None if time is None else time["P50"] for time in times]
        head = [", ".join(entry["policies"]), entry["num_active_blocks"], entry["mask_id"]]
        rows.append([*head, *medians, entry["of_full"]["total"]["ratio"]])
    columns: list[str | int] = ["policies", _STEP, "mask_id", *(f"{stage}_P50_ms" for stage in stages), "of_full"]
    figures = sorted((folder / "figures").glob("latency*.png"))
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
    run.log({"latency/configurations": wandb.Table(columns=columns, data=rows), **images})
    run.summary["latency/num_requests"] = result["num_requests"]
    for stage, line in result["fits"].items():
        run.summary.update(
            {f"latency/{stage}_ms_per_block": line["slope"], f"latency/{stage}_ms_fixed": line["intercept"]}
        )
    artifact = wandb.Artifact("latency", type="latency", metadata={"device": result["device"]})
    for name in ("latency.json", "latency_details.json"):
        artifact.add_file(str(folder / name))
    run.log_artifact(artifact)


@rank_zero_only
def log_selection(logger: WandbLogger, result: dict[str, Any], folder: str | Path) -> None:
    """Log the masks under a latency budget to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``select/candidates`` | one row per mask: the budget it needs in milliseconds, and its expected quality |
    | ``figures/quality_vs_budget`` | the figure in ``folder`` |
    | summary ``select/mask_id``, ``select/budget_ms``, ``select/share_within_budget``, ``select/quality`` | choice |
    | summary ``withheld``, ``baseline/...`` | as for a comparison; where a verdict is withheld, there is no choice |

    The JSON file becomes the artifact ``selection`` of type ``selection``.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        result: Content of ``selection.json``.
        folder: Folder of the result.
    """
    folder, run = Path(folder), logger.experiment
    rows = []
    for entry in result["candidates"]:
        quality = (entry["expected"] or entry["chosen_by"] or {}).get("quality")
        rows.append([entry["mask_id"], entry["num_active_blocks"], entry["latency_ms"]["bound"], quality])
    columns: list[str | int] = ["mask_id", _STEP, "budget_ms", "quality"]
    figures = sorted((folder / "figures").glob("quality_vs_budget.png"))
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
    run.log({"select/candidates": wandb.Table(columns=columns, data=rows), **images})
    run.summary.update({**_withheld([(result["task"], result)]), **_baseline(result)})
    if (selected := result["selected"]) is not None:
        quality = (selected["expected"] or selected["chosen_by"] or {}).get("quality")
        run.summary.update(
            {
                "select/mask_id": selected["mask_id"],
                "select/budget_ms": result["budget_ms"],
                "select/share_within_budget": selected["measured_again"]["share_within_budget"],
                "select/quality": quality,
            }
        )
    artifact = wandb.Artifact("selection", type="selection", metadata={"device": result["device"]})
    artifact.add_file(str(folder / "selection.json"))
    run.log_artifact(artifact)


@rank_zero_only
def log_tokens(logger: WandbLogger, result: dict[str, Any], folder: str | Path) -> None:
    """Log the impact of hidden tokens to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``tokens/by_block`` | one row per kind of token (or span, hidden as a whole), block and variant: mean distances |
    | ``tokens/prompts`` | one row per prompt: its text, its number of tokens, what the model generates |
    | ``figures/tokens_by_layer`` | the figure in ``folder`` |

    The tables and pages become the artifact ``tokens`` of type ``tokens``.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        result: Content of ``tokens.json``.
        folder: Folder of the result.
    """
    folder, run = Path(folder), logger.experiment
    rows = [
        [kind, group == "spans", variant, block_idx, *distances]
        for group in ("averages", "spans")
        for kind, variants in result[group].items()
        for variant in ("Full", "Attn")
        for block_idx, distances in enumerate(
            zip(variants[variant]["l2_distance"], variants[variant]["cosine_distance"])
        )
    ]
    columns: list[str | int] = ["kind", "as_a_whole", "variant", "block", "l2_distance", "cosine_distance"]
    keys: list[str | int] = ["name", "text", "image", "num_tokens", "num_vision_tokens", "generated_text"]
    prompts = [[entry[key] for key in keys] for entry in result["prompts"]]
    figures = sorted((folder / "figures").glob("tokens_by_layer.png"))
    run.log(
        {
            "tokens/by_block": wandb.Table(columns=columns, data=rows),
            "tokens/prompts": wandb.Table(columns=keys, data=prompts),
            **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures},
        }
    )
    artifact = wandb.Artifact("tokens", type="tokens", metadata={"num_output_tokens": result["num_output_tokens"]})
    pages = [entry["page"] for entry in result["prompts"]]
    for name in ("tokens.json", "masking_results.csv", "masking_results.parquet", *pages):
        artifact.add_file(str(folder / name))
    run.log_artifact(artifact)


@rank_zero_only
def log_search(logger: WandbLogger, result: dict[str, Any], folder: str | Path) -> None:
    """Log a search over ablations to a logger's run, online or offline.

    | key | what |
    |---|---|
    | ``search/ablations`` | one row per ablation that was reported, see :data:`SEARCH_COLUMNS` |
    | ``figures/search_tree``, ``figures/drop_vs_removed`` | the figures in ``folder`` |
    | summary ``search/removed_<k>``, ``search/drop_<k>`` | the best k blocks to remove, and their drop (report split) |
    | summary ``withheld``, ``baseline/...`` | as for a comparison |
    | summary ``search/evaluations``, ``search/saved`` | cells (mask, sample) asked for, and saved by racing |

    The JSON file becomes the artifact ``search`` of type ``search``.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        result: Content of ``search.json``.
        folder: Folder of the result.
    """
    folder, run = Path(folder), logger.experiment
    rows = []
    for entry in result["ablations"]:
        removed, size = " ".join(result["units"][unit] for unit in entry["removed"]), len(entry["removed"])
        numbers = [
            number
            for key in ("drop", "interaction")
            for number in (
                entry[key],
                *(entry[f"{key}_ci"] or (None, None)),
                *(entry[f"{key}_simultaneous_ci"] or (None, None)),
                entry[f"{key}_p_holm"],
            )
        ]
        rows.append([removed, size, ", ".join(entry["found_by"]), entry["quality"], *numbers])
        if "search" in entry["found_by"]:
            run.summary.update({f"search/removed_{size}": removed, f"search/drop_{size}": entry["drop"]})
    figures = [folder / "figures" / f"{name}.png" for name in ("search_tree", "drop_vs_removed")]
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.is_file()}
    run.log({"search/ablations": wandb.Table(columns=list(SEARCH_COLUMNS), data=rows), **images})
    run.summary.update({**_withheld([(result["task"], result["report"])]), **_baseline(result["report"])})
    run.summary.update({f"search/{key}": result["totals"][key] for key in ("evaluations", "saved")})
    artifact = wandb.Artifact("search", type="search", metadata={"rank_by": result["rank_by"]})
    artifact.add_file(str(folder / "search.json"))
    run.log_artifact(artifact)


def _importance_row(entry: dict[str, Any], confidence: float, refused: bool) -> list[Any]:
    row: list[Any] = [unit_name(entry)]
    for measure in ("quality", "reference_logprob"):
        drop = entry[measure]
        verdict = WITHHELD if refused else "differs" if differs(drop["p_holm"], confidence) else "tie"
        row += [drop["drop"], *drop["drop_ci"], *drop["drop_simultaneous_ci"], drop["p_holm"], verdict]
    return [*row, *(None if refused else entry[measure].get("rank") for measure in ("quality", "reference_logprob"))]


def _by_policy(comparison: Comparison) -> dict[str, list[Strategy]]:
    """Strategies of each policy by number of blocks."""
    grouped: dict[str, list[Strategy]] = {strategy["policy"]: [] for strategy in comparison["strategies"]}
    for strategy in sorted(comparison["strategies"], key=lambda strategy: strategy["num_active_blocks"]):
        grouped[strategy["policy"]].append(strategy)
    return grouped


def _curve_rows(comparison: Comparison) -> list[dict[str, float]]:
    """One history row per number of active blocks, with a point of every curve that has one there."""
    rows: dict[int, dict[str, float]] = {}
    for strategy in sorted(comparison["strategies"], key=lambda strategy: strategy["num_active_blocks"]):
        count = strategy["num_active_blocks"]
        row = rows.setdefault(count, {_STEP: count})
        row[f"quality/{strategy['policy']}"] = strategy["quality"]
        if strategy["latency_ms"] is not None:
            row[f"latency_ms/total/{strategy['policy']}"] = strategy["latency_ms"]["total"]["P50"]
    return list(rows.values())


def _table_row(strategy: Strategy) -> list[Any]:
    return [
        strategy["policy"],
        strategy["num_active_blocks"],
        len(strategy["masks"]),
        strategy["quality"],
        *strategy["quality_ci"],
        strategy["drop"],
        *strategy["drop_ci"],
        *(strategy.get("drop_simultaneous_ci") or (None, None)),
        strategy.get("drop_p_holm"),
        strategy["reference_logprob"],
        *_medians(strategy["latency_ms"]),
    ]


def _medians(latency: Latency | None) -> Sequence[float | None]:
    if latency is None:
        return [None] * 4
    return [latency[stage]["P50"] for stage in ("vision", "prefill", "decode_per_token", "total")]


def _charts(policies: dict[str, list[Strategy]], comparison: Comparison) -> dict[str, Any]:
    """The figures as native charts, one line per policy."""
    names = list(policies)
    blocks = [[strategy["num_active_blocks"] for strategy in strategies] for strategies in policies.values()]
    quality = [[strategy["quality"] for strategy in strategies] for strategies in policies.values()]
    metric, axis = comparison["metric"], f"active blocks (of {comparison['num_blocks']})"
    charts = {
        "charts/quality_vs_blocks": wandb.plot.line_series(
            blocks, quality, keys=names, title=f"Quality ({metric}) against active blocks", xname=axis
        )
    }
    if has_latency(comparison):
        totals = [[_medians(strategy["latency_ms"])[-1] for strategy in strategies] for strategies in policies.values()]
        charts["charts/latency_vs_blocks"] = wandb.plot.line_series(
            blocks, totals, keys=names, title="Median total time per request (ms) against active blocks", xname=axis
        )
        charts["charts/quality_latency_tradeoff"] = wandb.plot.line_series(
            totals, quality, keys=names, title=f"Quality ({metric}) against time", xname="median total time (ms)"
        )
    return charts


def _images(comparison: Comparison, folder: Path) -> dict[str, wandb.Image]:
    # by name, not by listing: an earlier run with latency may have left its figures
    names = [*_QUALITY_FIGURES, *(_LATENCY_FIGURES if has_latency(comparison) else ())]
    return {f"figures/{name}": wandb.Image(str(path)) for name in names if (path := folder / f"{name}.png").is_file()}


def _summary(comparison: Comparison) -> dict[str, Any]:
    full = comparison["full"]
    summary: dict[str, Any] = {"full/quality": full["quality"]}
    if full["latency_ms"] is not None:
        summary["full/latency_ms/total"] = full["latency_ms"]["total"]["P50"]
        summary["latency/num_requests"] = comparison.get("latency_requests")
    for question, answer in comparison["answers"].items():
        if answer is not None:
            summary |= {f"answers/{question}": answer["answer"], f"answers/{question}_text": answer["text"]}  # type: ignore[index]
    return {**_withheld([(comparison["task"], comparison)]), **summary, **_baseline(comparison)}


def _withheld(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """First key of a summary: why there are no verdicts, of each part (with its name) of a result."""
    return {"withheld": " ".join(reason for name, entry in measured if (reason := refusal(entry, name)))}


def _baseline(entry: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    """The best constant answer, and the number of distinct answers of the full model."""
    baseline = entry.get("baseline")
    if baseline is None:
        return {}
    found = {f"baseline/{key}{suffix}": baseline[key] for key in ("answer", "quality", "beaten")}
    return found | {f"full/num_distinct_answers{suffix}": entry["full"].get("num_distinct_answers")}
