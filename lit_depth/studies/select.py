"""``lit-depth select``: the best mask under a latency budget, chosen, re-measured, and reported on other questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional import mask_id, top_k
from lit_depth.functional.selection import (
    TOLERANCES,
    Candidate,
    Line,
    depth_under_budget,
    fit_line,
    pareto_frontier,
    percentile_bound,
    request_mask,
    select_for_budget,
)
from lit_depth.module import DepthModule
from lit_depth.results.report import Section, write_report
from lit_depth.results.schema import validate_comparison
from lit_depth.results.selection_figures import write_selection_figure
from lit_depth.results.store import write_json
from lit_depth.results.tables import format_table
from lit_depth.studies.comparison import Scores, describe_masks
from lit_depth.studies.importance import measure_mean, read_importance, to_importance
from lit_depth.studies.plan import PlannedMask, check_plan, plan_masks
from lit_depth.studies.run import (
    check_same_model,
    check_shares,
    check_whole_blocks,
    evaluate,
    log_to,
    model_identity,
    open_run,
)
from lit_depth.studies.timing import clock_settings, time_masks

RESULT = "selection.json"
SHARE = 0.95  # of the requests that have to stay within the budget
ENOUGH = math.ceil(math.log(0.05) / math.log(SHARE))  # requests for a 95% bound of that percentile
POLICIES = ("importance", "prefix", "uniform")
HEADERS = ("blocks", "policy", "time P50", "budget from", "chosen by", "expected", "interval", "frontier")


class _Option(NamedTuple):
    """A mask that may be chosen, and how good it is (``quality``, ``quality_ci``, ``drop``, ``drop_ci``)."""

    mask_id: str
    policies: list[str]
    chosen_by: dict[str, Any] | None  # on the questions that the choice looks at
    expected: dict[str, Any] | None  # on others, where there are others


def select(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    budget_ms: float | None,
    complexity: str | None,
    comparison: str | None,
    latency: str | None,
    importance: str | None,
    estimate_depth: bool,
    policies: Sequence[str] | None,
    num_active_blocks: Sequence[int] | None,
    keep: Sequence[int] | None,
    num_seeds: int,
    num_requests: int,
    num_checks: int,
    margin: float,
    new_tokens: int | None,
    confidence: float,
    max_bad_samples: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Select; arguments and result as for `lit_depth.DepthTrainer.select`."""
    check_whole_blocks(model, "select")
    num_blocks, keep = model.num_blocks, list(keep or ())
    names, counts = check_plan(policies or POLICIES, num_active_blocks, num_blocks, num_seeds, keep)
    check_shares(confidence, max_bad_samples)
    for argument, value in (("num_requests", num_requests), ("num_checks", num_checks), ("new_tokens", new_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be at least 0 and below 1, got {margin}")
    if budget_ms is not None and not 0 < budget_ms < float("inf"):
        raise ValueError(f"budget_ms must be positive and finite, got {budget_ms}")
    if comparison is not None and (policies or num_active_blocks or keep):
        raise ValueError("comparison brings its own masks: give no policies, num_active_blocks or keep with it")
    if estimate_depth and (complexity or policies or num_active_blocks):
        raise ValueError("estimate_depth knows no quality: give no complexity, policies or num_active_blocks with it")
    if complexity is not None and budget_ms is None:
        raise ValueError("complexity needs --budget_ms")
    if len(datamodule.tasks) > 1:
        raise ValueError(f"select takes its requests from one task, got {[task.name for task in datamodule.tasks]}")
    if estimate_depth and (importance is None or budget_ms is None or comparison is not None):
        raise ValueError("estimate_depth needs --importance FILE and --budget_ms, and no --comparison")
    datamodule.check_disjoint("calibration", "validation")
    scores = None
    if importance is not None:
        scores = to_importance(read_importance(importance, datamodule), num_blocks, importance, keep)
    model.use_task(datamodule.task.max_new_tokens)
    new_tokens = new_tokens or model.max_new_tokens
    device = trainer.strategy.root_device
    clock = clock_settings(device)
    same = model_identity(trainer, model)
    given = None if comparison is None else _read_comparison(comparison, model, datamodule)
    if comparison is not None:
        check_same_model(comparison, "comparison", {**same, "data.path": datamodule.path})
    timed = None if latency is None else _read_latency(latency, num_blocks, new_tokens, device)
    if latency is not None:
        check_same_model(latency, "latency", {**same, "threads": clock["threads"]})
    # a budget is no part of the run's identity: another one is answered from the same measurements
    arguments = {
        "comparison": comparison,
        "latency": latency,
        "importance": scores,
        "estimate_depth": estimate_depth,
        "policies": names,
        "num_active_blocks": counts,
        "keep": keep,
        "num_seeds": num_seeds,
        "new_tokens": new_tokens,
        **clock,
        "confidence": confidence,
    }
    splits = ["calibration", "validation"]
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "select", name) as (folder, identity):
        if estimate_depth:
            assert scores is not None
            options = _by_importance(scores, num_blocks, keep)
        elif given is not None:
            options = given
        else:
            if scores is None and "importance" in names:
                scores, _ = measure_mean(trainer, model, datamodule, folder, confidence, max_bad_samples)
            plan = plan_masks(names, counts, num_blocks, scores, num_seeds, keep)
            options = _measure_quality(trainer, model, datamodule, plan, folder, confidence, max_bad_samples)
        if not trainer.is_global_zero:
            return {}

        def measure(masks: Sequence[str], split: str, requests: int) -> dict[str, list[float]]:
            records = time_masks(
                trainer,
                model,
                datamodule,
                split,
                masks,
                folder / "latency" / f"{split}.jsonl",
                num_requests=requests,
                batch_size=1,
                new_tokens=new_tokens,
                threads=clock["threads"],
            )
            return {str(mask): rows["total"].astype(float).tolist() for mask, rows in records.groupby("mask")}

        if timed is None:
            timed = measure(_to_time(options, num_blocks, estimate_depth), "calibration", num_requests)
        bounds = {mask: percentile_bound(times, SHARE) / (1 - margin) for mask, times in timed.items()}
        line = None
        if len({mask.count("1") for mask in bounds}) > 1:
            line = fit_line([mask.count("1") for mask in bounds], list(bounds.values()))
        if estimate_depth and line is None:
            raise ValueError(
                "estimate_depth draws a line through the times of two numbers of active blocks or more: "
                + ("keep fewer blocks" if latency is None else f"{latency} has one")
            )
        candidates = [
            {
                "mask_id": option.mask_id,
                "policies": option.policies,
                "num_active_blocks": option.mask_id.count("1"),
                "active_block_indices": [index for index, bit in enumerate(option.mask_id) if bit == "1"],
                "latency_ms": {
                    "num_requests": len(timed.get(option.mask_id, ())),
                    "P50": float(np.median(timed[option.mask_id])) if option.mask_id in timed else None,
                    "bound": _bound(option.mask_id, bounds, line),
                },
                "chosen_by": option.chosen_by,
                "expected": option.expected,
            }
            for option in (options if estimate_depth else _best_of_each_count(options))
        ]
        frontier = [] if estimate_depth else _frontier(candidates)
        result = {
            "command": "select",
            "task": datamodule.task.name,
            "metric": datamodule.task.metric,
            "num_blocks": num_blocks,
            "new_tokens": new_tokens,
            "device": identity["device"],
            "confidence": confidence,
            "share_within_budget": SHARE,
            "margin": margin,
            "budget_ms": budget_ms,
            "complexity": complexity,
            "quality": "not measured" if estimate_depth else (comparison or "measured"),
            "line": None if line is None else line._asdict(),
            "candidates": candidates,
            "frontier": frontier,
            "selected": None,
            "rejected": [],
            "requests": {},
        }
        if budget_ms is not None:
            again = partial(measure, split="validation", requests=num_checks)
            _choose(result, budget_ms, complexity, again, len(keep))
        _write(folder, result, identity)
    log_to(trainer, "log_selection", result, folder)
    print(_summary(result, folder))
    return result


def _measure_quality(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    plan: Sequence[PlannedMask],
    folder: Path,
    confidence: float,
    max_bad_samples: float,
) -> list[_Option]:
    """Quality of the planned masks on the calibration split, to choose by, and on the validation split, to report."""
    masks = [torch.ones(model.num_blocks, dtype=torch.bool), *(planned.mask for planned in plan)]
    found = {}
    for split in ("calibration", "validation"):
        text = f"masks, {datamodule.task.name}, {split} split"
        scores, _ = evaluate(trainer, model, datamodule, split, masks, folder, text, max_bad_samples)
        found[split] = _entries(plan, scores, model.num_blocks, confidence)
    chosen_by, expected = found["calibration"], found["validation"]
    return [_Option(mask, names, entry, expected[mask][1]) for mask, (names, entry) in chosen_by.items()]


def _entries(
    plan: Sequence[PlannedMask], scores: Scores, num_blocks: int, confidence: float
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    full, strategies = describe_masks(plan, scores, {}, num_blocks, confidence)
    return _of_strategies(full, strategies)


def _of_strategies(
    full: Mapping[str, Any], strategies: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Policies and quality of every mask of a comparison."""
    keys = ("quality", "quality_ci", "drop", "drop_ci")
    found: dict[str, tuple[list[str], dict[str, Any]]] = {full["mask_id"]: (["full"], {key: full[key] for key in keys})}
    for strategy in strategies:
        for entry in strategy["masks"]:
            names, _ = found.setdefault(entry["mask_id"], ([], {key: entry[key] for key in keys}))
            if strategy["policy"] not in names:
                names.append(strategy["policy"])
    return found


def _read_comparison(path: str, model: DepthModule, datamodule: DepthDataModule) -> list[_Option]:
    """Masks of ``m5_mask_strategy_comparison.json``; refuse one of another task or number of blocks."""
    try:
        content = validate_comparison(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"comparison: expected the JSON file that `lit-depth compare` writes: {path}: {error}"
        ) from error
    for what, there, now in (
        ("blocks", content["num_blocks"], model.num_blocks),
        ("task", content["task"], datamodule.task.name),
    ):
        if there != now:
            raise ValueError(f"comparison: {path} was measured with {what} {there}, this run has {now}")
    found = _of_strategies(content["full"], content["strategies"])
    # one split only: what is chosen by these numbers looks a little better in them than it is
    return [_Option(mask, names, entry, None) for mask, (names, entry) in found.items()]


def _read_latency(path: str, num_blocks: int, new_tokens: int, device: torch.device) -> dict[str, list[float]]:
    """Total times in milliseconds by mask of the ``latency.json`` that ``lit-depth latency`` writes."""
    try:
        samples = json.loads(Path(path).read_text(encoding="utf-8"))["all_samples"]
        rows = [
            (set(row["active_block_indices"]), row["num_total_blocks"], float(row["T_total"]), row["num_output_tokens"])
            for row in samples
        ]
        details = Path(path).with_name("latency_details.json")
        run = json.loads(details.read_text(encoding="utf-8")) if details.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"latency: expected the latency.json that `lit-depth latency` writes: {path}: {error}"
        ) from error
    now = {"batch_size": 1, "device": clock_settings(device)["device"]}
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


def _by_importance(importance: Sequence[float], num_blocks: int, keep: Sequence[int]) -> list[_Option]:
    """The most important blocks at every number of blocks; nothing is known of their quality."""
    return [
        _Option(mask_id(top_k(importance, count, keep=keep)), ["importance"], None, None)
        for count in range(max(1, len(keep)), num_blocks + 1)
    ]


def _best_of_each_count(options: Sequence[_Option]) -> list[_Option]:
    """Of equally many blocks the best mask: which of them run hardly matters to the clock."""
    best: dict[int, _Option] = {}
    for option in options:
        count = option.mask_id.count("1")
        assert option.chosen_by is not None
        if count not in best or option.chosen_by["quality"] > best[count].chosen_by["quality"]:  # type: ignore[index]
            best[count] = option
    return [best[count] for count in sorted(best)]


def _to_time(options: Sequence[_Option], num_blocks: int, for_line: bool) -> list[str]:
    if not for_line:
        return [option.mask_id for option in _best_of_each_count(options)]
    by_count = {option.mask_id.count("1"): option.mask_id for option in options}
    counts = sorted(by_count)
    chosen = [by_count[counts[round(share * (len(counts) - 1))]] for share in (0, 0.25, 0.5, 0.75, 1)]
    return list(dict.fromkeys(chosen))


def _bound(mask: str, bounds: Mapping[str, float], line: Any) -> float:
    """What 95% of the requests under this mask stay within: its own times, those of its depth, or the line."""
    same = [bound for other, bound in bounds.items() if other.count("1") == mask.count("1")]
    if mask in bounds or same:
        return bounds.get(mask, max(same))
    if line is None:
        raise ValueError(f"there are no times of {mask.count('1')} active blocks, and too few others to draw a line")
    return line.time_ms(mask.count("1"))


def _frontier(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    points = [(entry["latency_ms"]["bound"], entry["chosen_by"]["quality"], entry["mask_id"]) for entry in candidates]
    return [mask for _, _, mask in pareto_frontier(points)]


def _choose(
    result: dict[str, Any],
    budget_ms: float,
    complexity: str | None,
    measure: Callable[[Sequence[str]], Mapping[str, list[float]]],
    num_kept: int,
) -> None:
    """Fill in ``selected``, ``rejected`` and ``requests``: a choice that does not stay within the budget is dropped."""
    by_id = {entry["mask_id"]: entry for entry in result["candidates"]}
    rejected: list[dict[str, Any]] = result["rejected"]

    def pick(complexity: str | None) -> str:
        left = [entry for mask, entry in by_id.items() if all(mask != each["mask_id"] for each in rejected)]
        if result["quality"] == "not measured":
            line = Line(**result["line"])
            smallest = min((each["num_active_blocks"] for each in rejected), default=result["num_blocks"] + 1)
            depth = min(depth_under_budget(line, budget_ms, result["num_blocks"]), smallest - 1)
            if depth < max(1, num_kept):
                raise ValueError(
                    f"budget_ms: {budget_ms} ms is too little for {max(1, num_kept)} blocks, which take "
                    f"{line.time_ms(max(1, num_kept)):.3f} ms by the fitted line"
                )
            return next(entry["mask_id"] for entry in left if entry["num_active_blocks"] == depth)
        candidates = [Candidate.from_result(entry) for entry in left]
        try:
            if complexity is None:
                return select_for_budget(candidates, budget_ms).mask_id
            return request_mask(candidates, complexity, budget_ms).mask_id
        except ValueError as error:
            tried = f"; measured again, {len(rejected)} masks took longer than before" if rejected else ""
            raise ValueError(f"budget_ms: {error}{tried}") from error

    while result["selected"] is None:
        mask = pick(complexity)
        times = measure([mask])[mask]
        check = {
            "num_requests": len(times),
            "share_within_budget": float(np.mean([time <= budget_ms for time in times])),
            "P50": float(np.median(times)),
            "P95": float(np.percentile(times, 95)),
            "bound": percentile_bound(times, SHARE),
        }
        # not the share itself, which is above its true value half of the time
        if check["bound"] <= budget_ms:
            result["selected"] = {**by_id[mask], "measured_again": check}
        else:
            rejected.append({**by_id[mask], "measured_again": check})
    if result["quality"] != "not measured":
        result["requests"] = {each: pick(each) for each in TOLERANCES}
    else:
        full = max(by_id, key=lambda mask: mask.count("1"))
        ratio = budget_ms / by_id[full]["latency_ms"]["bound"]
        result["depth_by_plain_ratio"] = min(result["num_blocks"], int(result["num_blocks"] * ratio))


def _write(folder: Path, result: dict[str, Any], identity: dict[str, Any]) -> None:
    figures = [write_selection_figure(result, folder / "figures")] if result["frontier"] else []
    sections = [
        Section("Choice", text="\n\n".join(_conclusion(result))),
        Section("Candidates", headers=HEADERS, rows=_rows(result), figures=figures),
        Section("Arguments", code=json.dumps(identity, indent=2, default=str)),
    ]
    write_report(folder, f"Masks under a latency budget, {result['task']}", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for entry in result["candidates"]:
        times, chosen_by, expected = entry["latency_ms"], entry["chosen_by"], entry["expected"]
        shown = expected or chosen_by
        rows.append(
            [
                entry["num_active_blocks"],
                ", ".join(entry["policies"]),
                None if times["P50"] is None else f"{times['P50']:.2f}",
                f"{times['bound']:.2f}",
                chosen_by["quality"] if chosen_by else None,
                expected["quality"] if expected else None,
                f"[{shown['quality_ci'][0]:.3f}, {shown['quality_ci'][1]:.3f}]" if shown else None,
                "yes" if entry["mask_id"] in result["frontier"] else "",
            ]
        )
    return rows


def _conclusion(result: dict[str, Any]) -> list[str]:
    lines = [
        f"Requests of batch size 1 with {result['new_tokens']} new tokens on {result['device']}; times in ms. "
        f"'budget from' is the smallest budget that {SHARE:.0%} of the requests stay within (upper 95% bound of the "
        f"percentile) with {result['margin']:.0%} of it kept free."
    ]
    few = [entry["latency_ms"]["num_requests"] for entry in result["candidates"]]
    few = [count for count in few if 0 < count < ENOUGH]
    if few:
        lines.append(
            f"From {min(few)} requests it is their largest time, which is no 95% bound: that takes {ENOUGH} requests."
        )
    if result["line"]:
        line = result["line"]
        lines.append(f"It is {line['intercept']:.2f} + {line['slope']:.2f} per block (R squared {line['r2']:.3f}).")
    selected = result["selected"]
    if selected is None:
        return [*lines, "No --budget_ms was given, so no mask is chosen: see the frontier."]
    again = selected["measured_again"]
    blocks = " ".join(map(str, selected["active_block_indices"]))
    lines.append(
        f"Budget {result['budget_ms']:g} ms: {selected['num_active_blocks']} of {result['num_blocks']} blocks "
        f"({blocks}). Measured again on {again['num_requests']} other requests: "
        f"{again['share_within_budget']:.1%} within the budget, P50 {again['P50']:.2f}, P95 {again['P95']:.2f} "
        f"(at most {again['bound']:.2f})."
        + (f" {len(result['rejected'])} better choices took longer when measured again." if result["rejected"] else "")
    )
    shown = selected["expected"] or selected["chosen_by"]
    if shown:
        (low, high), (least, most) = shown["quality_ci"], shown["drop_ci"]
        where = (
            "on the validation split, which the choice did not see"
            if selected["expected"]
            else "on the very questions that the choice looked at, so a little too good"
        )
        lines.append(
            f"Expected {result['metric']} {shown['quality']:.3f} [{low:.3f}, {high:.3f}], drop from the full model "
            f"{shown['drop']:+.3f} [{least:+.3f}, {most:+.3f}], {where}."
        )
    else:
        lines.append(
            f"No quality was measured: the depth is estimated from the line; budget over full time would have promised "
            f"{result['depth_by_plain_ratio']} blocks."
        )
    by_id = {entry["mask_id"]: entry for entry in result["candidates"]}
    for complexity, mask in result["requests"].items():
        indices = " ".join(map(str, by_id[mask]["active_block_indices"]))
        lines.append(
            f"A {complexity} request (drop up to {TOLERANCES[complexity]:g}) within this budget: blocks {indices}."
        )
    return lines


def _summary(result: dict[str, Any], folder: Path) -> str:
    paths = [folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    lines = ["", *_conclusion(result), "", format_table(_rows(result), HEADERS), ""]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
