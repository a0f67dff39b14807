"""Train a model whose blocks are skipped until it makes up for them, see ``configs/heal.yaml``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_depth.functional import find_blocks, from_indices, masked, patch
from lit_depth.functional.arguments import check_range, checked
from lit_depth.module import labelled


class Heal(Callback):
    """Train with blocks skipped, as `lit_depth.callbacks.BlockMask` does, from weights that are patched first.

    The patch (see `lit_depth.functional.patch`) is fitted on the calibration split. Skipped blocks get no
    gradient and no step. The trained checkpoint still holds them, so that the same mask, or ``lit-depth export``, makes
    the healed model of it.

    Args:
        skipped_block_indices: The blocks that do not run; block 0 only without ``patch_first``.
        patch_first: Start from the closed-form patch.
        drop: LayerDrop (Fan et al. 2020, arXiv:1909.11556): probability with which a training step skips each other
            block but the first, so that the healed model can be cut further.
        seed: Seed of these draws.
        folder: Where to write the checkpoint and its processor; null = nowhere.

    Raises:
        ValueError: At the start of the training: an index out of range or repeated; no datamodule with a calibration
            split, where it is patched first.
    """

    @checked
    def __init__(
        self,
        skipped_block_indices: list[int],
        patch_first: bool = True,
        drop: float = 0.0,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        if not skipped_block_indices:
            raise ValueError("expected skipped_block_indices, the blocks to make up for, got none")
        check_range(0, 1, drop=drop)
        self.skipped_block_indices, self.patch_first = skipped_block_indices, patch_first
        self.drop, self.folder = drop, folder
        self.generator = torch.Generator().manual_seed(seed)
        self._whole_run, self._step = ExitStack(), ExitStack()
        self._mask = torch.ones(1, dtype=torch.bool)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mask = ~from_indices(len(find_blocks(pl_module)), self.skipped_block_indices)
        if self.patch_first:
            model: Any = pl_module.model
            found = patch(model, self._mask, _calibration(trainer, pl_module))
            found.apply()
            left = ", ".join(f"{list(span.skipped)} {span.unexplained:.2f}" for span in found.spans)
            trainer.print(f"patched; share of each span's effect that is left: {left}")
        self._whole_run.enter_context(masked(pl_module, self._mask))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.drop:
            self._step.enter_context(masked(pl_module, self._mask & self._draw()))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._whole_run.close()
        if self.folder is not None and trainer.is_global_zero:
            model, processor = pl_module.model, pl_module.processor
            model.save_pretrained(self.folder)  # type: ignore[union-attr,operator]
            processor.save_pretrained(self.folder)  # type: ignore[union-attr,operator]
            trainer.print(f"healed checkpoint written to {self.folder}; blocks to skip: {self.skipped_block_indices}")

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        self._step.close()
        self._whole_run.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.on_exception()

    def _draw(self) -> Tensor:
        """Blocks that a step may run, the first always."""
        runs = torch.rand(len(self._mask), generator=self.generator) >= self.drop
        runs[0] = True
        return runs


def _calibration(trainer: Trainer, pl_module: Any) -> list[dict[str, Tensor]]:
    """The calibration split's prompts with their answers, on the module's device."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not hasattr(datamodule, "eval_dataloader"):
        raise ValueError("expected a datamodule with a calibration split to patch on; or give patch_first: false")
    return labelled(pl_module, datamodule.eval_dataloader("calibration"))
