"""Exhaustive truth on the bundled model: what each way to search loses against the best masks of one to three removed.

Every mask of up to three removed blocks (1 + 16 + 120 + 560) answers the same questions of both splits. The truth is
mean quality on the report split. A strategy sees calibration samples alone, and its regret at a number of removed
blocks is the truth of the best mask less that of its choice. Strategies:

- additive order: the blocks of the smallest own drops;
- greedy, beam, racing beam: `beam_search` of width 1 and 3, the last with racing;
- pairwise: `pairwise_search`, all pairs and the best that they predict.

Which mask looks best changes with the samples, so each strategy is replayed on many random halves of the calibration
samples (drawn by image); reported is the mean regret over these draws, with the interval of the mean of draws. The
truth's own samples are given, so the interval does not speak of other report samples. CPU seconds are of one run of
each strategy by the engine, records included, on as many samples as a draw has.

Besides: the full model, all singles and all pairs (137 masks) in one pass against one mask after another, on the same
batch, in pairs whose order alternates: CPU seconds inside the blocks of one forward of the prompt with the reference
answer, and in all with answers.

Parts that are not asked for stay in the file as they are. Speeds and seconds take five minutes; the regret, which does
not depend on the machine, takes most of an hour for the truth, which ``--work`` keeps.

    python benchmarks/search_regret.py [--threads 1]
    python benchmarks/search_regret.py --parts regret [--samples 256] [--draws 50] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from environment import RESULTS, SEED, environment, median_ratio
from sweep import batches, engine, sequential
from torch import Tensor

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.functional import (
    MaskScores,
    MaskSet,
    MaskTrie,
    ablation_masks,
    beam_search,
    find_blocks,
    importance_order,
)
from lit_depth.functional.search.ablations import Removed
from lit_depth.functional.search.beam import score_ablations
from lit_depth.functional.search.pairwise import pairwise_search
from lit_depth.functional.search.racing import second_score
from lit_depth.functional.search.second_order import singles_and_pairs
from lit_depth.studies.search.score_cache import ScoreCache
from lit_depth.studies.shared.evaluate import sweep_samples
from lit_depth.studies.shared.run_folder import Run

OUTPUT = RESULTS / "search_regret.json"
MOST, DRAWN, PART = 3, 512, 64  # removed blocks; samples of a split, and those of one pass
RANK_BY = ("accuracy", "reference_logprob")
Evaluate = Callable[[Tensor, Sequence[int]], MaskScores]


class Table(NamedTuple):
    """Scores ``[masks, samples]`` of all masks on one split, and the image of each sample."""

    rows: dict[str, int]
    accuracy: np.ndarray
    logprob: np.ndarray
    images: list[str]

    def evaluator(self, columns: np.ndarray) -> tuple[Evaluate, list[int]]:
        """An evaluator of the samples in these columns, and a list of what it was asked: masks x samples."""
        asked: list[int] = []

        def evaluate(masks: Tensor, positions: Sequence[int]) -> MaskScores:
            asked.append(len(masks) * len(positions))
            pairs = np.ix_([self.rows[name] for name in MaskSet.of(masks).ids], columns[list(positions)])
            return MaskScores(self.accuracy[pairs], self.logprob[pairs])

        return evaluate, asked

    def truth(self, measure: str) -> dict[str, float]:
        """Mean of every mask over all samples: the share of right answers, or nats of the reference answer."""
        values = self.accuracy if measure == "accuracy" else self.logprob
        return {name: float(values[row].mean()) for name, row in self.rows.items()}


def choices(strategy: str, evaluate: Evaluate, num_units: int, images: Sequence[str], rank_by: str) -> list[Removed]:
    """What a strategy removes, for one removed block to `MOST`."""
    shared: dict[str, Any] = {"max_removed": MOST, "rank_by": rank_by, "clusters": images}
    if strategy == "additive order":
        singles = [(unit,) for unit in range(num_units)]
        found = score_ablations(evaluate, num_units, len(images), singles, rank_by=rank_by)  # type: ignore[arg-type]
        second = [0.0 if rank_by != "accuracy" else -second_score(each.reference_probability) for each in found]
        return importance_order([-each.score for each in found], MOST, second=second)
    if strategy == "pairwise":
        search = pairwise_search(evaluate, num_units, len(images), **shared).search
    else:
        width, racing = (1 if strategy == "greedy" else 3), strategy == "racing beam"
        search = beam_search(evaluate, num_units, len(images), beam_width=width, racing=racing, **shared)
    return [level.best.removed for level in search.levels]


STRATEGIES = ("additive order", "greedy", "beam", "racing beam", "pairwise")
# what is due to how equal accuracies are ordered: searches that do not see the reference probability, which orders them
CONTROLS = {f"{strategy}, accuracy alone": strategy for strategy in STRATEGIES}


def control(name: str, evaluate: Evaluate) -> Evaluate:
    """The scores as a control sees them; all others see them as they are."""
    return (lambda *asked: MaskScores(evaluate(*asked).accuracy)) if name in CONTROLS else evaluate


def read_table(run: Run, split: str, num_samples: int, folder: Path) -> Table:
    """All masks on the first samples of a split; what the folder holds already is not answered again."""
    removed = [each for size in range(MOST + 1) for each in itertools.combinations(range(run.model.num_blocks), size)]
    masks = list(ablation_masks(run.model.num_blocks, removed))
    names, parts, images = [MaskSet.of([mask]).ids[0] for mask in masks], [], []
    for start in range(0, num_samples, PART):
        records = folder / split / f"part_{start // PART:02d}"
        positions = range(start, start + PART)
        sweep = sweep_samples(run, split, masks, records, f"{split}, part {start // PART}", positions)
        assert sweep.records is not None
        pivots = [sweep.records.pivot(index="mask", columns="sample", values=key) for key in ("score", RANK_BY[1])]
        parts.append([pivot.loc[names].to_numpy(float) for pivot in pivots])
        of_sample = sweep.records.drop_duplicates("sample").set_index("sample")["image"]
        images += list(of_sample.reindex(pivots[0].columns))
    accuracy, logprob = (np.concatenate(columns, axis=1) for columns in zip(*parts))
    return Table({name: row for row, name in enumerate(names)}, accuracy, logprob, images)


def half(images: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """Columns of a random half of the images."""
    names = sorted(set(images))
    chosen = set(generator.choice(names, len(names) // 2, replace=False).tolist())
    return np.array([column for column, image in enumerate(images) if image in chosen])


def regrets(calibration: Table, report: Table, num_units: int, rank_by: str, draws: int) -> dict[str, Any]:
    """Mean regret of every strategy over the draws, by number of removed blocks, and that of all samples."""
    truths = {measure: report.truth(measure) for measure in RANK_BY}
    best = {
        measure: [max(value for name, value in truth.items() if name.count("0") == size) for size in (1, 2, 3)]
        for measure, truth in truths.items()
    }

    def lost(strategy: str, columns: np.ndarray) -> tuple[list[list[float]], int]:
        evaluate, asked = calibration.evaluator(columns)
        images = [calibration.images[column] for column in columns]
        kind, evaluate = CONTROLS.get(strategy, strategy), control(strategy, evaluate)
        chosen = MaskSet.of(ablation_masks(num_units, choices(kind, evaluate, num_units, images, rank_by))).ids
        return [[top - truths[key][name] for top, name in zip(best[key], chosen)] for key in RANK_BY], sum(asked)

    everything = np.arange(len(calibration.images))
    found: dict[str, Any] = {}
    of_draw: dict[str, np.ndarray] = {}
    strategies = (*STRATEGIES, *(CONTROLS if rank_by == "accuracy" else ()))
    for strategy in strategies:
        generator = np.random.default_rng(SEED)  # the same halves for all strategies
        drawn = [lost(strategy, half(calibration.images, generator)) for _ in range(draws)]
        of_draw[strategy] = np.array([regret for regret, _ in drawn])  # [draws, measures, sizes]
        regret, asked = lost(strategy, everything)
        found[strategy] = {
            "evaluations": round(statistics.mean(count for _, count in drawn)),
            "evaluations_all_samples": asked,
            **{key: means(of_draw[strategy][:, index]) for index, key in enumerate(RANK_BY)},
            "all_samples": dict(zip(RANK_BY, regret)),
        }
        print(rank_by, strategy, found[strategy], flush=True)
    for strategy in strategies:  # summed over the sizes, in the same draws
        for index, key in enumerate(RANK_BY):
            less = of_draw[strategy][:, index].sum(axis=1) - of_draw["beam"][:, index].sum(axis=1)
            found[strategy][f"{key}_less_beam"] = means(less[:, None])
    return found


def means(values: np.ndarray) -> dict[str, list[float]]:
    """Means over the draws, and half the width of their 95% normal intervals."""
    width = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return {"mean": values.mean(axis=0).round(5).tolist(), "half_width": width.round(5).tolist()}


def timed_run(run: Run, strategy: str, num_samples: int, folder: Path) -> dict[str, Any]:
    """CPU seconds and evaluations of one run of a strategy by the engine, and what load it ran under."""
    run.datamodule.calibration_samples = num_samples
    cache = ScoreCache(run, "calibration", folder / strategy.replace(" ", "_"))
    load, start = os.getloadavg()[0], time.process_time()
    choices(strategy, cache, cache.num_units, cache.clusters, "accuracy")
    return {
        "cpu_seconds": round(time.process_time() - start, 1),
        "samples": num_samples,
        "evaluations": cache.evaluations,
        "block_forwards": cache.block_forwards,
        "load_average_at_start": round(load, 2),
    }


@contextmanager
def block_seconds(module: DepthModule) -> Iterator[list[float]]:
    """CPU seconds spent inside the parts of the blocks, however these are driven: a list of one number, at the end."""
    total, started = [0.0], []
    before = lambda *_: started.append(time.process_time())  # noqa: E731

    def after(*_: Any) -> None:
        total[0] += time.process_time() - started.pop()

    children = [child for block in find_blocks(module.model) for child in block.children()]
    hooks = [child.register_forward_pre_hook(before) for child in children]
    hooks += [child.register_forward_hook(after) for child in children]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def pair_speed(module: DepthModule, batch_size: int, repeats: int) -> dict[str, Any]:
    """All 137 masks in one pass over one after another: inside the blocks without answers, and in all with them."""
    masks = ablation_masks(module.num_blocks, singles_and_pairs(range(module.num_blocks)))
    (batch,) = batches(module, batch_size)
    engine(module, batch, masks[:20], True)
    sequential(module, batch, masks[:2], True)

    def in_blocks(together: bool) -> float:
        with block_seconds(module) as inside:
            for group in (masks,) if together else masks[:, None]:  # the forward of the reference alone
                engine(module, batch, group, True, 0)
        return inside[0]

    def in_all(together: bool) -> float:
        start = time.process_time()
        (engine if together else sequential)(module, batch, masks, True)
        return time.process_time() - start

    trie = MaskTrie(masks)
    found: dict[str, Any] = {"batch_size": batch_size}
    for name, measure, times in (("blocks", in_blocks, 3 * repeats), ("answers", in_all, repeats)):
        rounds = [
            {side: measure(side) for side in ((True, False) if repeat % 2 == 0 else (False, True))}
            for repeat in range(times)
        ]
        ratios = sorted(each[True] / each[False] for each in rounds)
        found[name] = {
            **median_ratio(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "together_cpu_s": round(statistics.median(each[True] for each in rounds), 3),
            "one_by_one_cpu_s": round(statistics.median(each[False] for each in rounds), 3),
        }
    return found | {"trie_ratio": round(trie.block_forwards / trie.sequential_block_forwards, 3)}


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Regret of every search against exhaustive truth (CPU).")
    parser.add_argument("--samples", type=int, default=256, help=f"samples of each split, a multiple of {PART}")
    parser.add_argument("--draws", type=int, default=50, help="random halves of the calibration samples")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 8], help="of the speed of 137 masks")
    parser.add_argument(
        "--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES, help="whose seconds to measure"
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="pairs of runs with answers, of blocks alone three times as many (2)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--parts", nargs="+", choices=("speed", "regret", "seconds"), default=["speed", "seconds"])
    parser.add_argument(
        "--work", type=Path, default=None, help="folder that keeps the records; default: a temporary one"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="JSON file to write; parts not asked for stay in it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else {}
    result: dict[str, Any] = known
    module = DepthModule("bundled")
    module.model.eval()
    data = DepthDataModule(module.prompter, batch_size=16, num_samples=DRAWN, calibration_samples=DRAWN)
    data.attach(module)
    module.use_task(data.task.max_new_tokens)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    trainer = DepthTrainer(accelerator="cpu", **quiet)
    with tempfile.TemporaryDirectory() as name:
        work, temporary = arguments.work or Path(name), Path(name) / "timed"
        run = Run(trainer, module, data, work, {}, 0.01)

        def keep(part: str, found: Any) -> None:
            result[part] = {"environment": environment(arguments.threads), **found}
            arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

        if "speed" in arguments.parts:
            runs = known.get("speed", {}).get("runs", {})
            for size in arguments.batch_sizes:
                runs[str(size)] = pair_speed(module, size, arguments.repeats)
                print(runs[str(size)], flush=True)
                keep("speed", {"masks": 137, "runs": runs})
        if "regret" in arguments.parts:
            tables = {split: read_table(run, split, arguments.samples, work) for split in ("calibration", "validation")}
            both = tables["calibration"], tables["validation"]
            found_regrets = {each: regrets(*both, module.num_blocks, each, arguments.draws) for each in RANK_BY}
            sizes = {"samples": arguments.samples, "masks": len(tables["validation"].rows), "draws": arguments.draws}
            keep("regret", {**sizes, "rank_by": found_regrets})
        if "seconds" in arguments.parts:
            timed = known.get("seconds", {}).get("strategies", {})
            for strategy in arguments.strategies:
                timed[strategy] = timed_run(run, strategy, arguments.samples // 2, temporary)
                print(strategy, timed[strategy], flush=True)
                keep("seconds", {"strategies": timed})
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
