"""What every callback does that measures a LightningModule in its evaluation loops: the hooks, and the way to log."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_depth.callbacks.user_module import is_empty, language_model
from lit_depth.functional.arguments import check_least
from lit_depth.functional.masking.blocks import find_blocks


class EvaluationCallback(Callback):
    """Measures the batches of a validation or test loop; a subclass says how (`start`, `measure`, `finish`).

    The module need not cooperate: the Hugging Face model inside it is found. Nothing is measured in a sanity check, nor
    on a batch of which no sample could be read. What `finish` returns is logged like the module's own values: it stands
    in ``trainer.callback_metrics``, and every logger gets it.

    Args:
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_batches: Batches to use per loop and process; None = all. A batch on which `measure` found nothing does not
            count.

    Raises:
        ValueError: If ``max_batches`` is below 1. At the start of the loop: no decoder blocks, or several lists of
            them.
    """

    def __init__(self, blocks: str | None = None, max_batches: int | None = None) -> None:
        super().__init__()
        check_least(1, max_batches=max_batches)
        self.blocks = blocks
        self.max_batches = max_batches
        self.num_blocks = 0  # of the last loop's model
        self._num_used = 0

    def start(self, pl_module: LightningModule, model: nn.Module, path: str) -> None:
        """Begin a loop: ``model`` is the Hugging Face model inside, and ``path`` leads from it to the blocks."""

    def before_batch(self) -> None:
        """A step begins, in a sanity check too."""

    def after_batch(self) -> None:
        """A step is over, in a sanity check too."""

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *place: int) -> bool:
        """Measure a batch after the module's own step; whether it counts as one of ``max_batches``.

        ``place`` is the index of the batch and that of its loader.
        """
        raise NotImplementedError

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """End a loop: the values to log. Processes without a batch take part, so that collectives may stand here."""
        raise NotImplementedError

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, path = language_model(pl_module, self.blocks)
        self.num_blocks, self._num_used = len(find_blocks(model, path)), 0
        self.start(pl_module, model, path)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.before_batch()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.after_batch()
        is_full = self.max_batches is not None and self._num_used >= self.max_batches
        if not (trainer.sanity_checking or is_full or is_empty(batch)):
            self._num_used += self.measure(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = self.finish(trainer, pl_module)
        if not trainer.predicting:
            pl_module.log_dict(values)
        elif values:  # Lightning's prediction loop takes no values of its own
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    # a test loop is measured as a validation loop is
    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class AnyLoopCallback(EvaluationCallback):
    """An `EvaluationCallback` that needs no labels: it measures prediction loops too."""

    on_predict_start = EvaluationCallback.on_validation_start
    on_predict_batch_start = EvaluationCallback.on_validation_batch_start
    on_predict_batch_end = EvaluationCallback.on_validation_batch_end
    on_predict_epoch_end = EvaluationCallback.on_validation_epoch_end
