"""Are inclusion probabilities calibrated, and does the interval of the best of many cover? On models of known truth.

Calibration: 500 models of 8, 16 or 24 blocks, of which a quarter, the least important, is skipped. Drops of blocks are
exponential, half normal, half of them exactly 0, or some of them large; a sample of 64, 256 or 1024 questions, one, two
or four of them to an image, loses and gains answers that share the image's difficulty. From one such sample follow the
predicted probabilities; how often 200 fresh samples choose each block is the truth. Beside the package's way stand the
bootstrap by image, and normal noise of twice the variance (a flat prior). Bins hold unless the predicted mean lies more
than 5 points from the truth; the error is that of resampling models.

Coverage: the best of 4, 16 or 48 masks, all equal, spread, or one of them clearly best; the true mean of the one that
was chosen is to lie within the interval. Beside the package's interval stand the naive one (the paired interval
of the chosen mask, as if it had been the only one) and the simultaneous one of all masks.

Cost: one call for the singles of 16 blocks on 512 samples, a sweep's time being given by ``--sweep_seconds``. With
``--commands``, CPU seconds of whole commands on the bundled model, with and without what they tell of their decisions,
taken in the same run.

    python benchmarks/stability.py [--models 500] [--data_sets 400] [--commands] [--output FILE]
    python benchmarks/stability.py --models 0 --data_sets 0 --commands  # the cost alone, some three minutes
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from environment import RESULTS, SEED, environment
from numpy.typing import NDArray
from scipy import stats

from lit_depth.functional.statistics import paired_intervals
from lit_depth.functional.statistics.clusters import sum_clusters
from lit_depth.functional.statistics.stability import decision_stability, least, mean_covariance
from lit_depth.functional.statistics.winner import winner_interval

Floats = NDArray[np.float64]
OUTPUT = RESULTS / "stability.json"
WITHIN = 0.05
NUM_BINS, NUM_FRESH, NUM_DRAWS = 10, 200, 400
CONFIDENCE = 0.95


class Synthetic(NamedTuple):
    """A model whose truth is known: probabilities by block, and how its questions hang together."""

    losses: Floats  # [rows]
    gains: Floats  # [rows]
    num_samples: int
    per_image: int
    spread: float  # standard deviation of an image's log difficulty

    @property
    def images(self) -> NDArray[np.int64]:
        """Image of each sample."""
        return np.repeat(np.arange(self.num_samples // self.per_image), self.per_image)

    def draw(self, number: int, generator: np.random.Generator) -> NDArray[np.int8]:
        """Drops ``[number, rows, num_samples]``: 1 = an answer lost, -1 = one gained."""
        size = (number, 1, self.num_samples // self.per_image)
        # of mean 1, and never so hard that the probability leaves 0..1
        shape = 1 / max(self.spread, 1e-3) ** 2
        difficulty = np.repeat(np.minimum(generator.gamma(shape, 1 / shape, size), self._most), self.per_image, axis=2)
        lost = self.losses[:, None] * difficulty
        luck = generator.random((number, len(self.losses), self.num_samples), dtype=np.float32)
        return (luck < lost).astype(np.int8) - (luck > 1 - self.gains[:, None]).astype(np.int8)

    @property
    def _most(self) -> float:
        return 0.96 / max(float(self.losses.max()), 1e-9)

    def true_drops(self) -> Floats:
        """``[rows]``, the cut of the difficulty allowed for."""
        shape, most = 1 / max(self.spread, 1e-3) ** 2, self._most
        inside = stats.gamma.cdf(most, shape + 1, scale=1 / shape)
        mean = inside + most * stats.gamma.sf(most, shape, scale=1 / shape)
        return self.losses * mean - self.gains


def draw_model(generator: np.random.Generator) -> Synthetic:
    """One of the synthetic models of the calibration."""
    num_blocks, num_samples = int(generator.choice([8, 16, 24])), int(generator.choice([64, 256, 1024]))
    scale = 10 ** generator.uniform(-2.5, -0.8)
    exponential = generator.exponential(scale, num_blocks)
    large = generator.uniform(0.1, 0.6, num_blocks)
    drops = (
        exponential,
        np.where(generator.random(num_blocks) < 0.3, large, exponential),
        np.where(generator.random(num_blocks) < 0.5, 0.0, exponential),
        np.abs(generator.normal(0, scale, num_blocks)),
    )[generator.integers(4)]
    gains = generator.uniform(0, 0.03) * generator.random(num_blocks)
    per_image = int(generator.choice([1, 1, 2, 4]))
    return Synthetic(np.minimum(drops, 0.6) + gains, gains, num_samples, per_image, generator.uniform(0, 1.5))


def bootstrap(values: Floats, model: Synthetic, count: int, generator: np.random.Generator) -> Floats:
    """Inclusion by resampling images."""
    sums = sum_clusters(values, model.images)
    num_images = len(sums.sizes)
    drawn = generator.multinomial(num_images, np.full(num_images, 1 / num_images), NUM_DRAWS)
    return least(count)(drawn @ sums.values.T / len(model.images)).mean(axis=0)


def doubled(values: Floats, model: Synthetic, count: int, generator: np.random.Generator) -> Floats:
    """Inclusion by normal noise of twice the variance: that of a fresh sample about the truth, and of the truth."""
    sums = sum_clusters(values, model.images)
    noise = generator.standard_normal((NUM_DRAWS, len(values)))
    root = np.linalg.cholesky(2 * mean_covariance(sums))
    return least(count)(sums.means + noise @ root.T).mean(axis=0)


def package(values: Floats, model: Synthetic, count: int, generator: np.random.Generator) -> Floats:
    """Inclusion as the package tells it."""
    return decision_stability(values, least(count), model.images, seed=int(generator.integers(2**31))).inclusion


METHODS: dict[str, Callable[..., Floats]] = {"package": package, "bootstrap": bootstrap, "doubled": doubled}


def calibrate(num_models: int, seed: int) -> dict[str, Any]:
    """Bins of every method: predicted and true probability, and the standard error of their difference."""
    generator = np.random.default_rng(seed)
    predicted: dict[str, list[Floats]] = {name: [] for name in METHODS}
    truth: list[Floats] = []
    for _ in range(num_models):
        model = draw_model(generator)
        count = max(1, len(model.losses) // 4)
        values = model.draw(1, generator)[0].astype(np.float64)
        fresh = np.concatenate([model.draw(10, generator).mean(axis=2) for _ in range(NUM_FRESH // 10)])
        truth.append(least(count)(fresh).mean(axis=0))
        for name, method in METHODS.items():
            predicted[name].append(method(values, model, count, generator))
    return {name: describe_bins(found, truth, generator) for name, found in predicted.items()}


def describe_bins(predicted: list[Floats], truth: list[Floats], generator: np.random.Generator) -> dict[str, Any]:
    """Predicted and true probability by bin; errors by resampling models, whose blocks hang together."""
    num_models = len(predicted)
    table = np.zeros((num_models, NUM_BINS, 3))
    for row, (each, true) in zip(table, zip(predicted, truth)):
        places = np.minimum((each * NUM_BINS).astype(int), NUM_BINS - 1)
        for column, weights in enumerate((None, each, true)):
            row[:, column] = np.bincount(places, weights, NUM_BINS)
    weights = generator.multinomial(num_models, np.full(num_models, 1 / num_models), 500)
    again = np.einsum("dm,mbc->dbc", weights, table)
    bins = []
    for place, (number, total, true) in enumerate(table.sum(axis=0)):
        if not number:
            continue
        kept = again[again[:, place, 0] > 0, place]
        error = np.std((kept[:, 2] - kept[:, 1]) / kept[:, 0])
        off = (true - total) / number
        bins.append(
            {
                "bin": [place / NUM_BINS, (place + 1) / NUM_BINS],
                "num_blocks": int(number),
                "predicted": round(total / number, 4),
                "true": round(true / number, 4),
                "off": round(off, 4),
                "standard_error": round(float(error), 4),
                "holds": bool(abs(off) <= WITHIN),
            }
        )
    flat, true_flat = np.concatenate(predicted), np.concatenate(truth)
    return {"bins": bins, "root_mean_square_error": round(float(np.sqrt(np.mean((flat - true_flat) ** 2))), 4)}


def winner_model(num_masks: int, num_samples: int, per_image: int, discordance: float, shape: str) -> Synthetic:
    """Masks that are all equal, spread, or one of them clearly best."""
    gains = np.full(num_masks, 0.4 * discordance)
    losses = {
        "equal": np.full(num_masks, 0.6 * discordance),
        "spread": np.linspace(0.4, 2.0, num_masks) * discordance,
        "clear": np.where(np.arange(num_masks) == 0, 0.4, 4.0) * discordance,
    }[shape]
    return Synthetic(losses, gains, num_samples, per_image, 0.7)


def cover(num_data_sets: int, seed: int) -> list[dict[str, Any]]:
    """Coverage and width by cell."""
    cells = itertools.product((4, 16, 48), (64, 256, 1024), (1, 4), (0.02, 0.1), ("equal", "spread", "clear"))
    found = []
    for index, (num_masks, num_samples, per_image, discordance, shape) in enumerate(cells):
        generator = np.random.default_rng([seed, index])
        model = winner_model(num_masks, num_samples, per_image, discordance, shape)
        truth = -model.true_drops()
        inside: dict[str, int] = dict.fromkeys(("package", "naive", "simultaneous"), 0)
        widths, bias = dict.fromkeys(inside, 0.0), dict.fromkeys(("package", "naive"), 0.0)
        above = 0
        for _ in range(num_data_sets):
            values = -model.draw(1, generator)[0].astype(np.float64)
            winner = winner_interval(values, model.images, CONFIDENCE)
            true = truth[winner.row]
            level = 1 - (1 - CONFIDENCE) / num_masks
            together = paired_intervals(values[[winner.row]], model.images, level)[0]
            intervals = {"package": winner.corrected, "naive": winner.naive, "simultaneous": together}
            for name, each in intervals.items():
                inside[name] += bool(each.low <= true <= each.high)
                widths[name] += (each.high - each.low) / num_data_sets
            bias["package"] += (winner.corrected.estimate - true) / num_data_sets
            bias["naive"] += (winner.naive.estimate - true) / num_data_sets
            above += winner.corrected.estimate > true
        found.append(
            {
                **{"num_masks": num_masks, "num_samples": num_samples, "per_image": per_image},
                **{"discordance": discordance, "masks": shape, "num_data_sets": num_data_sets},
                "coverage": {name: number / num_data_sets for name, number in inside.items()},
                "coverage_ci": {name: binomial(number, num_data_sets) for name, number in inside.items()},
                "width": {name: round(width, 5) for name, width in widths.items()},
                "bias": {name: round(each, 5) for name, each in bias.items()},
                "estimate_above_truth": above / num_data_sets,
            }
        )
    return found


def binomial(hits: int, number: int) -> list[float]:
    """Clopper and Pearson's 95% limits."""
    interval = stats.binomtest(hits, number).proportion_ci(0.95)
    return [round(float(interval.low), 4), round(float(interval.high), 4)]


def summarize(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage over all cells, and over those where the naive mean is biased by a tenth of its width or more."""
    biased = [each for each in cells if each["bias"]["naive"] >= 0.1 * each["width"]["naive"]]
    found = {}
    for name, chosen in (("all", cells), ("naive is biased", biased)):
        number = sum(each["num_data_sets"] for each in chosen)
        hits = {m: sum(round(c["coverage"][m] * c["num_data_sets"]) for c in chosen) for m in cells[0]["coverage"]}
        found[name] = {
            "cells": len(chosen),
            "coverage": {method: round(each / number, 4) for method, each in hits.items()},
            "coverage_ci": {method: binomial(each, number) for method, each in hits.items()},
            # a cell falls short where even the upper limit of its coverage does
            "cells_surely_below_0.94": sum(cell["coverage_ci"]["package"][1] < 0.94 for cell in chosen),
        }
    return found


def cost(sweep_seconds: float) -> dict[str, Any]:
    """Seconds of both functions for 16 blocks on 512 samples, and the ratio to a sweep."""
    model = Synthetic(np.linspace(0.01, 0.2, 16), np.full(16, 0.01), 512, 1, 0.5)
    values = model.draw(1, np.random.default_rng(SEED))[0].astype(np.float64)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        decision_stability(values, least(4), model.images)
        winner_interval(-values, model.images)
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds))
    return {"seconds": seconds, "sweep_seconds": sweep_seconds, "ratio": 1 + median / sweep_seconds}


SIZES = ["--data.num_samples", "128", "--data.calibration_samples", "128"]
COMMANDS = {
    "importance": ["--num_samples", "128"],
    "consistency": SIZES,
    "compare": [*SIZES, "--num_requests", "0", "--num_active_blocks", "8", "12", "14", "15"],
    "search": [*SIZES, "--max_blocks_to_remove", "2"],
    "select": [*SIZES, "--num_active_blocks", "8", "12", "16", "--num_requests", "5"],
}


def cost_of_commands() -> dict[str, Any]:
    """CPU seconds of each command in a process of its own, and those in its decisions; the ratio is with to without."""
    found = {}
    for name, options in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            given = [sys.executable, __file__, "--run", name, *options, "--output_dir", folder]
            told = subprocess.run(given, check=True, capture_output=True, text=True).stdout
        total, decisions = map(float, told.splitlines()[-1].split())
        ratio = total / (total - decisions)
        found[name] = {"cpu_seconds": total, "of_decisions": decisions, "ratio": round(ratio, 4)}
        print(name, found[name], flush=True)
    return found


def run_command(arguments: list[str]) -> None:
    """Run a command and print its CPU seconds after the imports of the package, and those of its decisions."""
    from lit_depth.studies.shared import decisions  # first: whoever imports its functions later gets those that count

    spent = {"inside": 0.0, "depth": 0}

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            start = time.process_time()
            spent["depth"] += 1
            try:
                return function(*given, **options)
            finally:
                spent["depth"] -= 1
                spent["inside"] += 0 if spent["depth"] else time.process_time() - start

        return call

    for name in ("decide_blocks", "decide_masks", "pay_for_blocks", "pay_for_masks"):
        setattr(decisions, name, counted(getattr(decisions, name)))
    from lit_depth.cli import main as run
    from lit_depth.studies.search import level_decisions

    level_decisions.decide_levels = counted(level_decisions.decide_levels)
    start = time.process_time()
    run(arguments)
    print(time.process_time() - start, spent["inside"])


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run_command(sys.argv[2:])
        return

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--data_sets", type=int, default=400)
    parser.add_argument("--sweep_seconds", type=float, default=None, help="seconds of the sweep to compare with")
    parser.add_argument("--commands", action="store_true", help="measure the cost in whole commands")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(1), "confidence": CONFIDENCE}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text(encoding="utf-8")) | result
    if arguments.models:
        result |= {"num_models": arguments.models, "calibration": calibrate(arguments.models, SEED)}
    if arguments.data_sets:
        cells = cover(arguments.data_sets, SEED)
        result |= {"coverage": summarize(cells), "coverage_by_cell": cells}
    if arguments.sweep_seconds:
        result["cost"] = cost(arguments.sweep_seconds)
    if arguments.commands:
        result["cost_of_commands"] = cost_of_commands()
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in ("calibration", "cost"):
        if name in result:
            print(json.dumps(result[name], indent=None))
    print(json.dumps(result.get("coverage"), indent=1))


if __name__ == "__main__":
    main()
