"""What a search asks its scores of: each pair (mask, sample) of one split is evaluated once, whoever asks again."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_depth.callbacks.mask_sweep import check_bad_samples
from lit_depth.functional import MaskScores, MaskSet
from lit_depth.studies.shared.batch_size import settle_batch_size
from lit_depth.studies.shared.effort import block_forwards
from lit_depth.studies.shared.evaluate import sweep_samples
from lit_depth.studies.shared.run_folder import Run


class ScoreCache:
    """Scores of masks on samples of a split, from memory or from Lightning's predict loop.

    Scores that are missing are evaluated in rounds, each with records in a folder of its own. What is asked for follows
    from the scores alone, and so do the rounds. A run that was killed finds its rounds again; in the last of them some
    records may be missing. All processes of a distributed run see all scores, so each asks for the same.

    The run is of one task; its ``max_bad_samples`` is a share of the split's samples.

    Raises:
        ValueError: If the split has no samples.

    Attributes:
        num_units: Units of the model.
        num_samples: Samples of the split; their positions are 0..num_samples-1.
        clusters: Image of each sample.
        bad_samples: Reason by name of each sample that could not be evaluated.
        describe: Given masks and positions, the text beside the progress bar.
        seconds_per_score: In the latest round that had not begun before this run; None before the first.
        evaluations: Scores of (mask, sample) pairs evaluated, by this run or the one that it continues.
        block_forwards: Forwards of one block on the prompt of one sample that these take in one pass of the engine; of
            half a block where masks switch sublayers.
        sequential_block_forwards: The same, of one mask after another.
    """

    def __init__(self, run: Run, split: str, folder: Path) -> None:
        self.split, self.folder, self.max_bad_samples = split, folder, run.max_bad_samples
        self.num_units, datamodule = run.model.num_units, run.datamodule
        ids = datamodule.eval_dataset(split).recorded_ids()
        if not ids:
            raise ValueError(f"{split} split of {datamodule.task.name}: there are no samples to search on")
        self.num_samples, self.clusters = len(ids), [image for _, image in ids]
        self._position = {sample: position for position, (sample, _) in enumerate(ids)}
        self.bad_samples: dict[str, str] = {}
        self._is_bad = np.zeros(len(ids), dtype=bool)
        # of each mask id: [accuracy and reference log-probability, samples]
        self._scores: dict[str, NDArray[np.float64]] = {}
        self.describe: Callable[[Tensor, Sequence[int]], str] = lambda masks, positions: "search"
        self.seconds_per_score: float | None = None
        self.evaluations = self.block_forwards = self.sequential_block_forwards = 0
        self._num_rounds = 0
        if datamodule.batch_size == "auto":  # once, not in every round
            datamodule = copy.copy(datamodule)
            datamodule.batch_size = settle_batch_size(run, split, folder)
        # of a round any number may be bad: what counts is the share of all samples, see `_evaluate`
        self.run = replace(run, datamodule=datamodule, max_bad_samples=1.0)

    def __call__(self, masks: Tensor, positions: Sequence[int]) -> MaskScores:
        """Scores ``[masks, positions]``; NaN where a sample is bad.

        Raises:
            ValueError: If more samples are bad than allowed, or records are missing.
        """
        names, places = MaskSet.of(masks).ids, np.array(positions, dtype=np.int64)
        text = self.describe(masks, positions)
        known = [self._scores.setdefault(name, np.full((2, self.num_samples), np.nan))[0, places] for name in names]
        # all masks that a sample lacks share a pass: no other split of the cells takes fewer forwards
        passes: dict[tuple[int, ...], list[int]] = {}
        for place, lacking in zip(places.tolist(), (np.isnan(known) & ~self._is_bad[places]).T):
            if lacking.any():
                passes.setdefault(tuple(np.flatnonzero(lacking).tolist()), []).append(place)
        for rows, positions_of_pass in passes.items():
            self._evaluate(masks[list(rows)], tuple(positions_of_pass), text)
        found = np.stack([self._scores[name][:, places] for name in names], axis=1)
        found[:, :, self._is_bad[places]] = np.nan
        return MaskScores(*found)

    def recorded(self, names: Sequence[str]) -> MaskScores:
        """Scores ``[masks, samples]`` by mask id, of every sample; NaN where none was asked for, or a sample is bad."""
        nothing = np.full((2, self.num_samples), np.nan)
        found = np.stack([self._scores.get(name, nothing) for name in names], axis=1)
        found[:, :, self._is_bad] = np.nan
        return MaskScores(*found)

    def _evaluate(self, masks: Tensor, positions: tuple[int, ...], text: str) -> None:
        self._num_rounds += 1
        folder = self.folder / f"round_{self._num_rounds:04d}"
        is_new, start = not folder.exists(), time.perf_counter()
        sweep = sweep_samples(self.run, self.split, list(masks), folder, text, positions)
        if is_new:
            self.seconds_per_score = (time.perf_counter() - start) / (len(masks) * len(positions))
        for name, reason in sweep.bad_samples.items():
            self.bad_samples[name] = reason
            self._is_bad[self._position[name]] = True
        check_bad_samples(self.bad_samples, self.num_samples, self.max_bad_samples)
        assert sweep.records is not None
        # a search asks for qualities from 0 to 1
        for kind, (column, largest) in enumerate({"score": sweep.metric.max_score, "reference_logprob": 1.0}.items()):
            table = sweep.records.pivot(index="mask", columns="sample", values=column)
            places = [self._position[sample] for sample in table.columns]
            for name, row in zip(table.index, table.to_numpy(float)):
                # of a log-probability per token, the geometric mean probability of a token
                self._scores[name][kind, places] = np.exp(row) if np.isinf(largest) else row / largest
        one_by_one, together = block_forwards(self.run.model, MaskSet.of(masks))
        self.evaluations += len(masks) * len(positions)
        self.block_forwards += together * len(positions)
        self.sequential_block_forwards += one_by_one * len(positions)
