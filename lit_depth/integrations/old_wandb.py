"""Results of the studies in Weights & Biases. The only module that imports wandb: import it where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_depth.results.verdicts import refusal

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
