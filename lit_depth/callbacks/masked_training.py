"""Train what is left of a model when some of its blocks are skipped."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_depth.callbacks.user_module import language_model
from lit_depth.functional import find_blocks, from_indices, masked
from lit_depth.functional.arguments import check_least, check_range, checked
from lit_depth.functional.healing.lora import Adapters, adapted, check_peft


class MaskedTraining(Callback):
    """Train with blocks skipped, as `lit_depth.callbacks.BlockMask` does; skipped blocks get no gradient and no step.

    The trained model still holds them, so that the same mask, or ``lit-depth export``, makes the healed model of it.

    Args:
        skipped_block_indices: The blocks that do not run.
        drop: LayerDrop (Fan et al. 2020, arXiv:1909.11556): probability with which a training step skips each other
            block but the first, so that the healed model can be cut further.
        seed: Seed of these draws, and of adapters.
        lora_rank: Train low-rank adapters in the blocks that run, which are merged at the end of the training, see
            `lit_depth.functional.healing.lora.adapted`; all else stays as it is. null = train the weights themselves.
        blocks: Dotted path of the block list from the LightningModule, where it cannot be found unambiguously.

    Attributes:
        adapters: What was adapted; None = nothing.

    Raises:
        ValueError: At the start of the training: an index out of range or repeated.
        ImportError: ``lora_rank`` without peft.
    """

    @checked
    def __init__(
        self,
        skipped_block_indices: list[int],
        drop: float = 0.0,
        seed: int = 0,
        lora_rank: int | None = None,
        blocks: str | None = None,
    ) -> None:
        super().__init__()
        if not skipped_block_indices:
            raise ValueError("expected skipped_block_indices, the blocks to make up for, got none")
        check_range(0, 1, drop=drop)
        check_least(1, lora_rank=lora_rank)
        if lora_rank is not None:
            check_peft()
        self.skipped_block_indices, self.drop, self.seed = skipped_block_indices, drop, seed
        self.lora_rank, self.blocks = lora_rank, blocks
        self.generator = torch.Generator().manual_seed(seed)
        self.adapters: Adapters | None = None
        self._whole_run, self._step = ExitStack(), ExitStack()
        self._mask = torch.ones(1, dtype=torch.bool)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Enter the mask and add adapters, before Lightning makes the optimizer, which is to know them."""
        if stage != "fit":
            return
        pl_module.to(trainer.strategy.root_device)
        model, path = language_model(pl_module, self.blocks)
        blocks = find_blocks(model, path)
        self._mask = ~from_indices(len(blocks), self.skipped_block_indices)
        self.prepare(trainer, pl_module)
        if self.lora_rank is not None:
            adapters = adapted(model, self._mask, blocks=path, rank=self.lora_rank, seed=self.seed)
            self.adapters = self._whole_run.enter_context(adapters)
        self._whole_run.enter_context(masked(model, self._mask, blocks=path))

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For subclasses: what is done to the model before it is trained."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.drop:
            model, path = language_model(pl_module, self.blocks)
            self._step.enter_context(masked(model, self._mask & self._draw(), blocks=path))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the mask, and merge adapters."""
        self._whole_run.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the mask, and take adapters away unmerged."""
        self._leave(exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where neither the end nor an exception was told of, the training was broken off: as after an exception."""
        self._leave(RuntimeError("the training was broken off"))

    def _leave(self, exception: BaseException) -> None:
        self._step.close()
        self._whole_run.__exit__(type(exception), exception, exception.__traceback__)

    def _draw(self) -> Tensor:
        """Blocks that a step may run, the first always."""
        runs = torch.rand(len(self._mask), generator=self.generator) >= self.drop
        runs[0] = True
        return runs
