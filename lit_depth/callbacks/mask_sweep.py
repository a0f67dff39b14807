"""Answer every predicted batch under many block masks, score the answers, keep every score."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

import lit_depth.metrics
from lit_depth.functional import mask_id
from lit_depth.metrics import clean_prediction
from lit_depth.results.store import RecordWriter, check_complete, read_records

if TYPE_CHECKING:
    import pandas as pd


class MaskSweep(Callback):
    """Evaluate block masks on the same samples of Lightning's predict loop.

    Use it with `lit_depth.DepthModule` (or a module with ``request_masks`` whose ``predict_step`` returns
    `lit_depth.module.MaskedPredictions`) on evaluation batches. After the loop :attr:`records` holds one row per
    (mask, sample) of *all* processes, and :attr:`bad_samples` what could not be evaluated, which no mask was scored on.

    Args:
        masks: Block masks, each bool ``[num_blocks]`` or a list of bools; repeated ones are evaluated once.
        folder: Folder of the append-only record files, one per process. Existing files are continued.
        metric: Class name in `lit_depth.metrics` whose ``score`` rates one answer.
        max_bad_samples: Largest share of bad samples before the run stops with an error.
        description: Text before the progress bar.

    Raises:
        ValueError: If more samples are bad than allowed, a log-probability is NaN or infinite, or records are missing.
    """

    def __init__(
        self,
        masks: Sequence[Tensor | Sequence[bool]],
        folder: str | Path,
        metric: str = "ExactMatch",
        max_bad_samples: float = 0.01,
        description: str = "masks",
    ) -> None:
        self.masks = {mask_id(mask): torch.as_tensor(mask, dtype=torch.bool) for mask in masks}
        self.folder = Path(folder)
        self.metric = getattr(lit_depth.metrics, metric)
        self.max_bad_samples = max_bad_samples
        self.description = description
        self.records: pd.DataFrame | None = None
        self.bad_samples: dict[str, str] = {}
        self._seen: list[str] = []
        self._writer: RecordWriter | None = None
        self._progress: Any = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.request_masks(self.masks)  # type: ignore[operator]
        self._writer = RecordWriter(self.folder / f"rank{trainer.global_rank}.jsonl")
        batches = sum(trainer.num_predict_batches)
        self._progress = tqdm(
            total=int(batches) * len(self.masks),
            desc=self.description,
            unit="mask x batch",
            disable=not trainer.is_global_zero,
            file=sys.stderr,
        )
        pl_module.on_mask = self._progress.update  # type: ignore[assignment]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._writer is not None
        for bad in batch["bad_samples"]:
            self._writer.write({"mask": "bad", "sample": bad.id, "reason": bad.reason})
        self._refuse_too_many_bad_samples(batch)
        for mask, texts, logprobs in zip(outputs.mask_ids, outputs.texts, outputs.reference_logprobs.tolist()):
            if mask not in self.masks:  # asked for by another callback
                continue
            for sample, text, logprob in zip(batch["samples"], texts, logprobs):
                if not torch.isfinite(torch.tensor(logprob)):
                    raise ValueError(f"logits are NaN or infinite for mask {mask}, sample {sample.id}")
                answer = clean_prediction(text)
                record = {"mask": mask, "sample": sample.id, "image": sample.image_id, "prediction": answer}
                record |= {"score": self.metric.score(answer, sample.references), "reference_logprob": logprob}
                self._writer.write(record)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(pl_module)
        # every process has written its last record before any process reads
        trainer.strategy.barrier("lit_depth: records complete")
        frame = read_records(sorted(self.folder.glob("rank*.jsonl")))
        bad = frame[frame["mask"] == "bad"]
        self.bad_samples = dict(zip(bad["sample"], bad["reason"])) if len(bad) else {}
        self.records = frame[frame["mask"].isin(self.masks)].reset_index(drop=True)
        check_complete(self.records, list(self.masks), self.records["sample"].nunique())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(pl_module)

    def _close(self, pl_module: LightningModule) -> None:
        if self._writer is not None:
            self._writer.close()
            self._progress.close()
            pl_module.on_mask = lambda: None  # type: ignore[assignment]
            pl_module.requested_masks = {}  # type: ignore[assignment]

    def _refuse_too_many_bad_samples(self, batch: dict[str, Any]) -> None:
        self._seen += [*batch["sample_ids"], *(bad.id for bad in batch["bad_samples"])]
        self.bad_samples |= {bad.id: bad.reason for bad in batch["bad_samples"]}
        allowed = max(1, int(self.max_bad_samples * len(self._seen)))
        if len(self.bad_samples) > allowed:
            first = next(iter(self.bad_samples.items()))
            raise ValueError(
                f"{len(self.bad_samples)} of the first {len(self._seen)} samples cannot be evaluated, allowed are "
                f"{self.max_bad_samples:.1%} (max_bad_samples); the first: {first[0]}: {first[1]}"
            )
