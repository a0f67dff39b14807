"""How often the package's intervals cover, and how wide they are, on simulated data sets.

Differences: n samples, of which a share (the discordance) differs between two masks, as losses or gains. With clusters,
four samples share an image: each takes the image's own draw with probability 0.8, else a draw of its own. Graded
scores are two different ones of 0, 0.3, 0.6, 0.9, 1. The table of the law has three losses to one gain; all losses, and
as many gains as losses, stand beside it. Every interval is `paired_intervals`' own, sign-flip test included.

- Coverage holds in a cell unless the one-sided 99% upper bound of the simulated coverage lies below 0.945. Cells of
  2,000 data sets that cover less than 0.955 are simulated with 10,000.
- Width holds if the mean width is at most 1.25 times the reference: from 5 expected differing samples on the narrowest
  interval that covers of Student's t, BCa and t together, Bonett and Price's, t with half a pseudo loss and gain, and
  Tango's; below, Clopper and Pearson's for the number of differing units among the independent ones.

Also: single scores, clusters of unequal size, values of unknown range, means over tasks, rare losses without any gain,
and families. Of independent binary differences coverage and width are computed too, by enumeration.

    python benchmarks/coverage.py [--quick] [--only PART ...] [--processes 2] [--output FILE] [--docs FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from environment import RESULTS, SEED, environment
from numpy.typing import NDArray
from scipy import stats

from lit_depth.functional.statistics import mean_intervals, paired_comparisons, paired_intervals

Floats = NDArray[np.float64]
Limits = tuple[Floats, Floats]
REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = RESULTS / "coverage.json"
DOCS = REPOSITORY / "docs" / "statistics.md"
MARKS = "<!-- coverage: made by benchmarks/coverage.py -->", "<!-- end of coverage -->"
NUM_SAMPLES = (16, 64, 256, 1024)
DISCORDANCE = (0.0, 0.005, 0.015, 0.05, 0.3)
MEANS = (0.0, 0.005, 0.05, 0.3, 0.5, 0.95, 1.0)
SHARES = {"3 losses to 1 gain": 0.75, "as many gains": 0.5, "losses only": 1.0}
GRADES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
STEPS = np.array([a - b for a, b in itertools.permutations(GRADES, 2) if a > b])
PER_IMAGE, COMMON = 4, 0.8
LOWEST, WIDEST = 0.945, 1.25
NUM_RESAMPLES = 2000
UNEQUAL, TASKS = "unequal clusters of 1 to 10", "two tasks, one of a quarter of the samples"
UNEVEN = {
    "tasks of 10 and 1000": (10, 1000),
    "tasks of 20 and 1000": (20, 1000),
    "tasks of 10, 100 and 400": (10, 100, 400),
}
RATIOS = {"1:0": 1.0, "9:1": 0.9, "3:1": 0.75, "1:1": 0.5}
EXACT_SAMPLES, EXACT_RATES = (16, 64, 100, 256, 512, 1024), (0.002, 0.005, 0.01, 0.015, 0.02, 0.035, 0.05)
RARE, FAMILY = "losses only, 2 to 4 expected", "family of 16 rows"


# what is drawn


def draw_clusters(generator: np.random.Generator, draw: Callable[..., Floats], sets: int, n: int) -> Floats:
    """Samples ``[sets, n]``, images of four one after another."""
    shape = sets, n // PER_IMAGE
    common, own = draw(generator, (*shape, 1)), draw(generator, (*shape, PER_IMAGE))
    return np.where(generator.random((*shape, PER_IMAGE)) < COMMON, common, own).reshape(sets, n)


def differences(rate: float, losses: float, graded: bool) -> tuple[Callable[..., Floats], float]:
    """A way to draw differences, and their mean."""

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        sizes = generator.choice(STEPS, shape) if graded else 1.0
        signs = np.where(generator.random(shape) < losses, 1.0, -1.0)
        return np.where(generator.random(shape) < rate, sizes * signs, 0.0)

    return draw, rate * (2 * losses - 1) * (float(STEPS.mean()) if graded else 1.0)


def scores(mean: float, graded: bool) -> tuple[Callable[..., Floats], float]:
    """A way to draw scores in [0, 1], and their mean."""
    middle = 0.9 * min(mean, 1 - mean) if graded else 0.0  # share of scores that are any grade
    chance = (mean - middle * GRADES.mean()) / (1 - middle)

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        extremes = (generator.random(shape) < chance).astype(float)
        return np.where(generator.random(shape) < middle, generator.choice(GRADES, shape), extremes)

    return draw, mean


# the intervals it is compared with, of the means of units [sets, units] in [-1, 1]


def student(x: Floats) -> Limits:
    margins = stats.t.ppf(0.975, x.shape[1] - 1) * stats.sem(x, axis=1)
    return x.mean(axis=1) - margins, x.mean(axis=1) + margins


def pseudo(x: Floats, mass: float, degrees: float) -> Limits:
    """Of the units and as many pseudo units as ``mass``, half losses, half gains."""
    count = x.shape[1] + mass
    centres = x.sum(axis=1) / count
    variances = ((x**2).sum(axis=1) + mass) / count - centres**2
    margins = stats.t.ppf(0.975, degrees) * np.sqrt(variances / (count - 1 if mass == 1 else count))
    return centres - margins, centres + margins


def bca(x: Floats) -> Limits:
    """Efron 1987, with the acceleration of the jackknife; percentiles where it is undefined."""
    sets, units = x.shape
    draws = np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=NUM_RESAMPLES)
    resampled = np.sort(x @ draws.T.astype(float) / units, axis=1)
    estimates = x.mean(axis=1, keepdims=True)
    below = (resampled < estimates - 1e-12).mean(axis=1) + (np.abs(resampled - estimates) <= 1e-12).mean(axis=1) / 2
    deviations = x - estimates
    squares = (deviations**2).sum(axis=1)
    acceleration = np.divide((deviations**3).sum(axis=1), 6 * squares**1.5, out=np.zeros(sets), where=squares > 0)
    bias = stats.norm.ppf(np.clip(below, 1e-9, 1 - 1e-9))
    limits = []
    for tail in stats.norm.ppf([0.025, 0.975]):
        levels = stats.norm.cdf(bias + (bias + tail) / (1 - acceleration * (bias + tail)))
        levels = np.where((below > 0) & (below < 1), levels, stats.norm.cdf(tail))
        places = np.rint(levels * (NUM_RESAMPLES - 1)).astype(int)
        limits.append(resampled[np.arange(sets), places])
    return limits[0], limits[1]


def bca_and_student(x: Floats) -> Limits:
    (low, high), (other_low, other_high) = bca(x), student(x)
    return np.minimum(low, other_low), np.maximum(high, other_high)


def tango(x: Floats) -> Limits:
    """Score interval for independent binary pairs (Tango 1998), by bisection; each pair of counts is solved once."""
    n = x.shape[1]
    counts = np.stack([(x > 0).sum(axis=1), (x < 0).sum(axis=1)])
    (b, c), inverse = np.unique(counts, axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)

    def statistic(delta: Floats) -> Floats:
        linear, constant = -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
        return (b - c - n * delta) / np.sqrt(np.maximum(n * (2 * q + delta * (1 - delta)), 1e-300))

    limits = []
    for sign in (1, -1):
        inside, outside = (b - c) / n, np.full(len(b), -sign, dtype=float)
        for _ in range(60):
            middle = (inside + outside) / 2
            accepted = np.abs(statistic(middle)) <= stats.norm.ppf(0.975)
            inside, outside = np.where(accepted, middle, inside), np.where(accepted, outside, middle)
        limits.append(inside[inverse])
    return limits[0], limits[1]


def clopper_pearson_width(x: Floats) -> float:
    """Mean width for the number of differing units."""
    return float(clopper_pearson_widths((x != 0).sum(axis=1), x.shape[1]).mean())


def clopper_pearson_widths(hits: NDArray[np.int64], units: int) -> Floats:
    low = np.where(hits > 0, stats.beta.ppf(0.025, np.maximum(hits, 1), units - hits + 1), 0.0)
    high = np.where(hits < units, stats.beta.ppf(0.975, hits + 1, np.maximum(units - hits, 1)), 1.0)
    return high - low


# cells


def upper_bound(hits: int, sets: int) -> float:
    """One-sided 99% bound of a coverage."""
    return 1.0 if hits == sets else float(stats.beta.ppf(0.99, hits + 1, sets - hits))


def covered(limits: Limits, truth: float | Floats) -> NDArray[np.bool_]:
    return (limits[0] <= truth + 1e-12) & (truth - 1e-12 <= limits[1])


def summary(limits: Limits, truth: float) -> dict[str, Any]:
    hits, sets = int(covered(limits, truth).sum()), len(limits[0])
    bound = upper_bound(hits, sets)
    return {
        "coverage": round(hits / sets, 4),
        # limits below the truth, and above it
        "misses": [round(float(missed.mean()), 4) for missed in (limits[1] < truth - 1e-12, limits[0] > truth + 1e-12)],
        "width": round(float((limits[1] - limits[0]).mean()), 5),
        "upper_bound": round(bound, 4),
        "covers": bound >= LOWEST,
    }  # fmt: skip


def repeated(
    cell: dict[str, Any], sets: int, run: Callable[[np.random.Generator, int], dict[str, Any]]
) -> dict[str, Any]:
    """Run with five times as many data sets where the coverage is in doubt."""
    seed = [*json.dumps(cell, sort_keys=True).encode()]
    found = run(np.random.default_rng(seed), sets)
    if found["coverage"] < 0.955:
        sets *= 5
        found = run(np.random.default_rng([1, *seed]), sets)
    return cell | {"data_sets": sets} | found


def of_list(intervals: Sequence[Any]) -> Limits:
    return np.array([each.low for each in intervals]), np.array([each.high for each in intervals])


def difference_cell(arguments: tuple[dict[str, Any], int]) -> dict[str, Any]:
    cell, sets = arguments
    n, rate, graded, clustered = cell["num_samples"], cell["discordance"], cell["graded"], cell["clustered"]
    draw, truth = differences(rate, SHARES[cell["split"]], graded)
    images = np.arange(n) // PER_IMAGE if clustered else None

    def run(generator: np.random.Generator, sets: int) -> dict[str, Any]:
        x = draw_clusters(generator, draw, sets, n) if clustered else draw(generator, (sets, n))
        found = summary(of_list(paired_intervals(x, images)), truth)
        units = x.reshape(sets, -1, PER_IMAGE).mean(axis=2) if clustered else x
        others = {
            "t": student(units),
            "BCa and t": bca_and_student(units),
            "Bonett-Price": pseudo(units, 2, np.inf),
            "t with half a loss and gain": pseudo(units, 1, units.shape[1] - 1),
        }
        if not graded and not clustered:
            others["Tango"] = tango(units)
        compared = {name: summary(limits, truth) for name, limits in others.items()}
        widths = {name: other["width"] for name, other in compared.items() if other["covers"]}
        reference, width = "Clopper-Pearson", clopper_pearson_width(units)
        if n * rate >= 5 and widths:
            reference = min(widths, key=widths.__getitem__)
            width = widths[reference]
        ratio = found["width"] / width
        return found | {
            "reference": reference,
            "reference_width": round(width, 5),
            "width_ratio": round(ratio, 3),
            "narrow": ratio <= WIDEST,
            "others": {name: [other["coverage"], other["width"]] for name, other in compared.items()},
        }

    return repeated(cell, sets, run)


def score_cell(arguments: tuple[dict[str, Any], int]) -> dict[str, Any]:
    cell, sets = arguments
    n, clustered = cell["num_samples"], cell["clustered"]
    draw, truth = scores(cell["mean"], cell["graded"])
    images = np.arange(n) // PER_IMAGE if clustered else None

    def run(generator: np.random.Generator, sets: int) -> dict[str, Any]:
        x = draw_clusters(generator, draw, sets, n) if clustered else draw(generator, (sets, n))
        return summary(of_list(mean_intervals(x, images)), truth)

    return repeated(cell, sets, run)


def unequal(generator: np.random.Generator, sets: int, n: int, draw: Callable[..., Floats]) -> tuple[Floats, Floats]:
    """Images of 1 to 10 samples, the same for all sets; a sample is its image's draw with probability 0.8."""
    sizes = np.random.default_rng(n).integers(1, 11, size=n)
    images = np.repeat(np.arange(n), sizes)[:n]
    common, own = draw(generator, (sets, images.max() + 1))[:, images], draw(generator, (sets, n))
    return np.where(generator.random((sets, n)) < COMMON, common, own), images


def further_limits(cell: dict[str, Any], generator: np.random.Generator, sets: int) -> tuple[Limits, float]:
    """Values of unknown range, rare losses, unequal clusters, means over tasks: limits and the truth."""
    n, kind, rate = cell["num_samples"], cell["kind"], cell["discordance"]
    if kind == "normal":
        return of_list(mean_intervals(generator.normal(size=(sets, n)), score_range=None)), 0.0
    if kind == "exponential":
        return of_list(mean_intervals(generator.exponential(size=(sets, n)), score_range=None)), 1.0
    if kind == "log-normal":
        values = generator.lognormal(sigma=0.5, size=(sets, n))
        return of_list(mean_intervals(values, score_range=None)), float(np.exp(0.125))
    if kind == RARE:
        draw, truth = differences(rate, 1.0, graded=False)
        return of_list(paired_intervals(draw(generator, (sets, n)))), truth
    name, _, what = kind.partition(": ")
    if name in UNEVEN:
        tasks = np.repeat(np.arange(len(UNEVEN[name])), UNEVEN[name])
        draw, truth = scores(rate, False) if what == "means" else differences(rate, 0.75, graded=False)
        intervals = mean_intervals if what == "means" else paired_intervals
        return of_list(intervals(draw(generator, (sets, n)), tasks=tasks)), truth
    draw, truth = differences(rate, 0.75, graded=False)
    if kind == UNEQUAL:
        x, images = unequal(generator, sets, n, draw)
        return of_list(paired_intervals(x, images)), truth
    other, other_truth = differences(2 * rate, 0.75, graded=False)
    x = np.concatenate([draw(generator, (sets, n // 4)), other(generator, (sets, n))], axis=1)
    return of_list(paired_intervals(x, tasks=np.repeat([0, 1], [n // 4, n]))), (truth + other_truth) / 2


def family_summary(cell: dict[str, Any], generator: np.random.Generator, sets: int) -> dict[str, Any]:
    """16 rows on samples of their own, of which 8 do not differ on average: how often all intervals cover."""
    rates = np.concatenate([np.full(8, cell["discordance"]), np.linspace(0, 0.1, 9)[1:]])
    parts = [differences(rate, share, graded=False) for rate, share in zip(rates, [0.5] * 8 + [0.75] * 8)]
    truths = np.array([truth for _, truth in parts])
    held, widths = 0, []
    for _ in range(sets):
        rows = np.stack([draw(generator, (cell["num_samples"],)) for draw, _ in parts])
        low, high = of_list([each.simultaneous for each in paired_comparisons(rows)])
        held += bool(covered((low, high), truths).all())
        widths.append((high - low).mean())
    bound = upper_bound(held, sets)
    return {
        "coverage": round(held / sets, 4),
        "width": round(float(np.mean(widths)), 5),
        "upper_bound": round(bound, 4),
        "covers": bound >= LOWEST,
    }


def further_cell(arguments: tuple[dict[str, Any], int]) -> dict[str, Any]:
    cell, sets = arguments
    if cell["kind"] == FAMILY:
        return repeated(cell, sets, lambda generator, sets: family_summary(cell, generator, sets))
    return repeated(cell, sets, lambda generator, sets: summary(*further_limits(cell, generator, sets)))


def exact_cell(arguments: tuple[dict[str, Any], int]) -> dict[str, Any]:
    """Coverage and width of independent binary differences, over all likely numbers of losses and gains."""
    cell, _ = arguments
    n, share = cell["num_samples"], RATIOS[cell["ratio"]]
    grid = np.unique([*EXACT_RATES, *np.geomspace(EXACT_RATES[0], EXACT_RATES[-1], 100)])
    most = [int(stats.binom.isf(1e-8, n, max(grid) * part)) if part else 0 for part in (share, 1 - share)]
    losses, gains = (counts.ravel() for counts in np.meshgrid(*(np.arange(each + 1) for each in most)))
    possible = losses + gains <= n
    losses, gains, places = losses[possible], gains[possible], np.arange(n)
    rows = (places < losses[:, None]).astype(float) - (places >= n - gains[:, None])
    low, high = of_list(paired_intervals(rows))
    found = []
    for rate in grid:
        chances = stats.binom.pmf(losses + gains, n, rate) * stats.binom.pmf(losses, losses + gains, share)
        held, width = chances @ covered((low, high), rate * (2 * share - 1)), chances @ (high - low)
        units = np.arange(n + 1)
        exact = stats.binom.pmf(units, n, rate) @ clopper_pearson_widths(units, n)
        found.append((float(rate), float(held), float(width / exact)))
    worst = min(found, key=lambda each: each[1])
    return cell | {"least": worst[1], "least_at": worst[0], "rates": [each for each in found if each[0] in EXACT_RATES]}


def all_cells(quick: bool) -> dict[str, tuple[Callable[..., dict[str, Any]], list[dict[str, Any]]]]:
    sizes = NUM_SAMPLES[:2] if quick else NUM_SAMPLES
    designs = [
        {"clustered": clustered, "graded": graded, "num_samples": n}
        for clustered, graded, n in itertools.product((False, True), (False, True), sizes)
    ]
    further = [
        *({"kind": kind, "num_samples": n, "discordance": None} for kind in ("normal", "exponential", "log-normal")
          for n in sizes),
        *({"kind": kind, "num_samples": n, "discordance": rate}
          for kind in (UNEQUAL, TASKS)
          for n, rate in itertools.product(sizes[1:], DISCORDANCE[1:])),
        *({"kind": f"{name}: {what}", "num_samples": sum(sizes), "discordance": rate}
          for (name, sizes), what in itertools.product(UNEVEN.items(), ("means", "differences"))
          for rate in ((0.1, 0.3, 0.5) if what == "means" else (0.1, 0.3))),
        *({"kind": RARE, "num_samples": n, "discordance": expected / n}
          for n, expected in itertools.product(sizes[1:], (2.0, 2.5, 3.0, 4.0))),
        *({"kind": FAMILY, "num_samples": n, "discordance": 0.015} for n in sizes[1:]),
    ]  # fmt: skip
    return {
        "differences": (
            difference_cell,
            [
                {**design, "discordance": rate, "split": split}
                for split in SHARES
                for design, rate in itertools.product(designs, DISCORDANCE)
                if rate or split == next(iter(SHARES))
            ],
        ),
        "scores": (score_cell, [{**design, "mean": mean} for design, mean in itertools.product(designs, MEANS)]),
        "further": (further_cell, further),
        "exact": (
            exact_cell,
            [
                {"num_samples": n, "ratio": ratio}
                for ratio, n in itertools.product(RATIOS, EXACT_SAMPLES[: 2 if quick else None])
            ],
        ),
    }


def known(cell: dict[str, Any], part: str, only: Sequence[str], earlier: dict[str, Any]) -> dict[str, Any] | None:
    """The earlier result of a cell that is not to be run again."""
    if part in only or cell.get("kind") in only:
        return None
    return next((old for old in earlier.get(part, []) if cell.items() <= old.items()), None)


# what is told


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def design_name(cell: dict[str, Any]) -> str:
    kind = "graded" if cell["graded"] else "binary"
    return f"{kind}, {'clusters of 4' if cell['clustered'] else 'independent'}"


def described(cell: dict[str, Any]) -> str:
    text = f"{100 * cell['coverage']:.1f}" if cell["covers"] else f"**{100 * cell['coverage']:.1f}**"
    if "width_ratio" in cell:
        ratio = f"{cell['width_ratio']:.2f}"
        text += f" / {ratio if cell['narrow'] else f'**{ratio}**'}"
    return text


def grid(cells: Sequence[dict[str, Any]], column: str, form: str) -> str:
    columns = sorted({cell[column] for cell in cells})
    rows: dict[tuple[str, int], dict[float, str]] = {}
    for cell in cells:
        rows.setdefault((design_name(cell), cell["num_samples"]), {})[cell[column]] = described(cell)
    body = [[name, str(n), *(row.get(value, "") for value in columns)] for (name, n), row in rows.items()]
    return table(["scores", "n", *(form.format(value) for value in columns)], body)


def tables(result: dict[str, Any]) -> str:
    parts = []
    for split in SHARES:
        cells = [cell for cell in result["differences"] if cell["split"] == split]
        parts += [
            f"Differences, {split}: coverage in percent / width over the reference, by share of samples that differ.",
            grid(cells, "discordance", "{:.1%}"),
        ]
    parts += ["Mean scores: coverage in percent, by true mean.", grid(result["scores"], "mean", "{:g}")]
    rows = [
        [cell["kind"], str(cell["num_samples"]), "" if cell["discordance"] is None else f"{cell['discordance']:.2%}",
         described(cell)]
        for cell in result["further"]
    ]  # fmt: skip
    parts += ["Other designs: coverage in percent (of a family: of all rows together).",
              table(["what", "n", "differing", "coverage"], rows)]  # fmt: skip
    body = [
        [cell["ratio"], str(cell["num_samples"]), f"{100 * cell['least']:.1f} at {cell['least_at']:.2%}",
         *(f"{100 * held:.1f} / {width:.2f}" for _, held, width in cell["rates"])]
        for cell in result["exact"]
    ]  # fmt: skip
    parts += ["Independent binary differences by enumeration: the least coverage between 0.2% and 5% that differ, "
              "and coverage in percent / width over Clopper-Pearson's, by losses to gains and share that differs.",
              table(["losses : gains", "n", "least", *(f"{rate:.1%}" for rate in EXACT_RATES)], body)]  # fmt: skip
    return "\n\n".join(parts)


def main() -> None:
    """Simulate, print, write the JSON file and the tables."""
    parser = argparse.ArgumentParser(description="Simulate the coverage and width of the package's intervals.")
    parser.add_argument("--sets", type=int, default=2000, help="data sets per cell (default 2000)")
    parser.add_argument("--quick", action="store_true", help="300 data sets, n of 16 and 64; writes nothing by itself")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="run only these parts, or kinds "
                        "of further cells; all other cells that the JSON file has are kept")  # fmt: skip
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="JSON file to write (default benchmarks/results/coverage.json)")
    parser.add_argument("--docs", type=Path, help="page to write the tables into (default docs/statistics.md)")
    arguments = parser.parse_args()
    sets = 300 if arguments.quick else arguments.sets
    output = arguments.output or (None if arguments.quick else OUTPUT)
    docs = arguments.docs or (None if arguments.quick else DOCS)
    start = time.perf_counter()
    earlier = json.loads((output or OUTPUT).read_text(encoding="utf-8")) if arguments.only else {}
    result: dict[str, Any] = {"environment": environment(1), "data_sets": sets, "processes": arguments.processes}
    with Pool(arguments.processes) as pool:
        for part, (run, cells) in all_cells(arguments.quick).items():
            kept = [known(cell, part, arguments.only, earlier) for cell in cells]
            runs = pool.imap(run, [(cell, sets) for cell, old in zip(cells, kept) if old is None])
            result[part] = [old or next(runs) for old in kept]
            for cell in result[part]:
                if not cell.get("covers", True) or not cell.get("narrow", True):
                    print("misses a line:", json.dumps(cell), flush=True)
            print(f"{part}: {len(cells)} cells after {time.perf_counter() - start:.0f} s", flush=True)
    result["seconds"] = round(time.perf_counter() - start)
    text = tables(result)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {output}")
    if docs:
        before, _, rest = docs.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        docs.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")
        print(f"wrote {docs}")


if __name__ == "__main__":
    main()
