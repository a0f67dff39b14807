"""Keep the answers of Lightning's own evaluation loops, with their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_depth.callbacks.mask_sweep import MaskSweep
from lit_depth.functional.arguments import checked
from lit_depth.functional.masks import MaskSet
from lit_depth.results.store import write_text


class LoopAnswers(MaskSweep):
    """The full model's answers in a validation, test or prediction loop of `lit_depth.DepthModule`.

    After the loop :attr:`path` holds one JSON line per sample: ``sample``, ``image``, ``prediction``, ``score``,
    ``reference_logprob``, and what else the metric tells. An earlier loop's answers are replaced.

    Args:
        folder: The file ``answers.jsonl`` goes there.
        num_units: Units of the module's masks.
        metric: As for `MaskSweep`.

    Raises:
        ValueError: As `MaskSweep` does; of samples that cannot be read any number may be bad.
    """

    @checked
    def __init__(self, folder: str | Path, num_units: int, metric: str = "ExactMatch") -> None:
        super().__init__(MaskSet.full(num_units), Path(folder) / "records", metric, 1.0, "answers")
        self.path = Path(folder) / "answers.jsonl"

    def loop_of(self, trainer: Trainer) -> tuple[list[Any], int]:
        loops: dict[Any, tuple[Any, Any]] = {
            TrainerFn.VALIDATING: (trainer.val_dataloaders, trainer.num_val_batches),
            TrainerFn.TESTING: (trainer.test_dataloaders, trainer.num_test_batches),
            TrainerFn.PREDICTING: (trainer.predict_dataloaders, trainer.num_predict_batches),
        }
        loaders, counts = loops[trainer.state.fn]
        return loaders if isinstance(loaders, list) else [loaders], int(sum(counts))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for path in self.folder.glob("rank*.jsonl"):
                path.unlink()
        trainer.strategy.barrier("lit_depth: earlier answers are gone")
        super().on_predict_start(trainer, pl_module)
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.disable()  # one bar is enough

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.enable()
        super().on_predict_end(trainer, pl_module)
        assert self.records is not None
        if trainer.is_global_zero:
            rows = self.records.drop(columns="mask").sort_values("sample")
            write_text(self.path, rows.to_json(orient="records", lines=True, force_ascii=False))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_predict_start(trainer, pl_module)
        (loader,) = self.loop_of(trainer)[0]
        pl_module.use_task(loader.dataset.task.max_new_tokens)  # type: ignore[operator]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        answers = pl_module.predict_step(batch, batch_idx)
        self.on_predict_batch_end(trainer, pl_module, answers, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_predict_end(trainer, pl_module)

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end
