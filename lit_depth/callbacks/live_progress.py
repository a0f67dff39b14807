"""Log how a sweep of masks goes while it goes: running quality with a band that may be looked at all the time."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_depth.callbacks.mask_sweep import MaskSweep
from lit_depth.functional.arguments import check_least, check_range, checked
from lit_depth.functional.statistics import confidence_sequence

# of the time that passes, most that may be spent on bands
_SHARE = 0.01
_RESOLUTION = 200  # steps of a band's limits over the range of the score


class LiveProgress(Callback):
    """Log what a `MaskSweep` has found so far, every so many seconds, to every active logger.

    Nothing that is logged changes a result. The first process logs, of its own share of the samples. The band holds at
    all times at once, with the given probability for each mask, however often one looks
    (`lit_depth.functional.statistics.confidence_sequence`): of samples that share an image the first counts for it.

    | key | of what this process answered |
    |---|---|
    | ``live/quality/<name>`` | mean score so far |
    | ``live/low/<name>``, ``live/high/<name>`` | the band, where scores have a known range |
    | ``live/samples`` | samples answered under all masks |
    | ``live/rows_per_second`` | answers (mask and sample) a second |
    | ``live/seconds_left`` | at that speed |

    Args:
        sweep: Its scores are read; it stands before this callback in the trainer's list.
        every_seconds: Least time between two looks but the last, 0 = after every batch. Bands take at most a hundredth
            of the time.
        names: Names of groups of masks, by their ids; None = each mask by itself. The score of a group is the mean over
            its masks on each sample.
        confidence: Of each band, between 0 and 1.
        stage: Begins the names, as in ``live/shapes_vqa/validation/quality/...``; empty = nothing.

    Raises:
        ValueError: If ``every_seconds`` is negative, or ``confidence`` is not between 0 and 1.
    """

    @checked
    def __init__(
        self,
        sweep: MaskSweep,
        every_seconds: float = 30.0,
        names: Mapping[str, Sequence[str]] | None = None,
        confidence: float = 0.95,
        stage: str = "",
    ) -> None:
        check_least(0, every_seconds=every_seconds)
        check_range(0, 1, confidence=confidence)
        self.sweep = sweep
        sweep.running = {}
        self.every_seconds = every_seconds
        self.names = names
        self.confidence = confidence
        self.prefix = f"live/{stage}/" if stage else "live/"
        self._start = self._next = 0.0
        self._rows = self._logged = 0  # answered in this loop, and when it was last logged

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        self._next = self._start + self.every_seconds
        self._rows = self._logged = 0

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._rows += len(outputs.mask_ids) * len(batch["samples"])
        now = time.monotonic()
        if now >= self._next:
            self._log(trainer)
            self._next = now + max(self.every_seconds, (time.monotonic() - now) / _SHARE)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how it ended, if it went on after the last look; a loop that was over before the first needs none."""
        if 0 < self._logged < self._rows:
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        self._logged = self._rows
        if not trainer.is_global_zero or not trainer.loggers:
            return
        values = self.look(time.monotonic() - self._start)
        step = int(values[f"{self.prefix}samples"])
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)

    def look(self, seconds: float) -> dict[str, float]:
        """What there is to log after so many seconds of the loop."""
        sweep = self.sweep
        done = {name: scores for name, scores in self._groups().items() if scores}
        found: dict[str, float] = {}
        for name, scores in done.items():
            found[f"quality/{name}"] = float(np.mean([score for _, score in scores.values()]))
            found |= {f"{end}/{name}": limit for end, limit in self._band(scores).items()}
        answered = min((len(scores) for scores in done.values()), default=0)
        speed = self._rows / max(seconds, 1e-9)
        left = max(0, sweep.num_of_process - answered) * len(sweep.masks)
        found |= {"samples": answered, "rows_per_second": speed}
        found |= {"seconds_left": left / speed} if speed else {}
        return {f"{self.prefix}{key}": value for key, value in found.items()}

    def _groups(self) -> dict[str, dict[str, tuple[str, float]]]:
        """Image and score of each sample, by name; of a group on samples that all of its masks have answered."""
        running = self.sweep.running or {}
        groups = self.names or {mask_name(mask): [mask] for mask in self.sweep.masks.ids}
        found = {}
        for name, masks in groups.items():
            mine = [running.get(mask, {}) for mask in masks]
            found[name] = {
                sample: (image, float(np.mean([scores[sample][1] for scores in mine])))
                for sample, (image, _) in mine[0].items()
                if all(sample in scores for scores in mine)
            }
        return found

    def _band(self, scores: Mapping[str, tuple[str, float]]) -> dict[str, float]:
        most = self.sweep.metric.max_score
        if not np.isfinite(most):
            return {}
        first: dict[str, float] = {}
        for image, score in scores.values():
            first.setdefault(image, score)
        values = np.clip(list(first.values()), 0, most)
        lows, highs = confidence_sequence(values, self.confidence, 0.0, float(most), _RESOLUTION)
        return {"low": float(lows[-1]), "high": float(highs[-1])}


def mask_name(mask: str) -> str:
    """A mask as a word in a key.

    >>> mask_name("1111"), mask_name("1011"), mask_name("0" * 8)
    ('full', 'without_1', '00000000')
    """
    skipped = [str(index) for index, bit in enumerate(mask) if bit == "0"]
    if not skipped:
        return "full"
    return f"without_{'_'.join(skipped)}" if len(skipped) <= 4 else mask
