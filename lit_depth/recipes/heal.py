"""Train a model whose blocks are skipped until it makes up for them, see ``configs/heal.yaml``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_depth.callbacks.masked_training import MaskedTraining
from lit_depth.functional import patch
from lit_depth.functional.arguments import checked
from lit_depth.module import labelled


class Heal(MaskedTraining):
    """Train with blocks skipped from weights that are patched first, and write the checkpoint.

    The patch (see `lit_depth.functional.patch`) is fitted on the calibration split. The written checkpoint still holds
    the skipped blocks, so that the same mask, or ``lit-depth export``, makes the healed model of it.

    Args:
        skipped_block_indices: The blocks that do not run; block 0 only without ``patch_first``.
        patch_first: Start from the closed-form patch.
        drop: See `lit_depth.callbacks.masked_training.MaskedTraining`, like the next two.
        seed: Of ``drop`` and of adapters.
        lora_rank: Train low-rank adapters of this rank in the blocks that run instead of all weights.
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
        lora_rank: int | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__(skipped_block_indices, drop=drop, seed=seed, lora_rank=lora_rank)
        self.patch_first, self.folder = patch_first, folder

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Patch the model."""
        if self.patch_first:
            model: Any = pl_module.model
            found = patch(model, self._mask, _calibration(trainer, pl_module))
            found.apply()
            left = ", ".join(f"{list(span.skipped)} {span.unexplained:.2f}" for span in found.spans)
            trainer.print(f"patched; share of each span's effect that is left: {left}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint."""
        super().on_fit_end(trainer, pl_module)
        if self.folder is not None and trainer.is_global_zero:
            model, processor = pl_module.model, pl_module.processor
            model.save_pretrained(self.folder)  # type: ignore[union-attr,operator]
            processor.save_pretrained(self.folder)  # type: ignore[union-attr,operator]
            trainer.print(f"healed checkpoint written to {self.folder}; blocks to skip: {self.skipped_block_indices}")


def _calibration(trainer: Trainer, pl_module: Any) -> list[dict[str, Tensor]]:
    """The calibration split's prompts with their answers, on the module's device."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not hasattr(datamodule, "eval_dataloader"):
        raise ValueError("expected a datamodule with a calibration split to patch on; or give patch_first: false")
    return labelled(pl_module, datamodule.eval_dataloader("calibration"))
