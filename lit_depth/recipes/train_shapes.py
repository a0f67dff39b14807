"""Callbacks that train the bundled checkpoint, see ``configs/train_shapes.yaml``.

The recipe is for a 3 M parameter model from random weights in minutes on two CPU cores: first the vision path alone on
labels of the grid's cells, then everything on packed questions, with stochastic depth whose schedule decides which
blocks become expendable.
"""

import itertools
import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lit_depth.functional import find_blocks, masked


class DepthScaledInit(Callback):
    """Rescale a fresh model before training: residual outputs by 1/sqrt(2 L), token embeddings to a given spread.

    The first keeps the residual stream's variance independent of depth (Radford et al. 2019, GPT-2, section 2.3).

    Args:
        embedding_std: Standard deviation of the token embeddings.
    """

    def __init__(self, embedding_std: float = 0.25) -> None:
        self.embedding_std = embedding_std

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        blocks = find_blocks(pl_module)
        for name, parameter in blocks.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.div_(math.sqrt(2 * len(blocks)))
        model.get_decoder().embed_tokens.weight.normal_(std=self.embedding_std)


class VisionWarmup(Callback):
    """Before the first step, teach the vision tower and the connector what is in every cell of the grid.

    Two throw-away linear heads predict the shape and the colour of a cell from every single image token on it, so that
    a token that attention finds by the one also holds the other. Without this the language model learns to ignore the
    image long before the tower shows it anything.

    Args:
        steps: Optimiser steps.
        learning_rate: AdamW's learning rate, decaying linearly to zero.
        output_std: Standard deviation to which the connector's output is scaled afterwards, that of token embeddings:
            what a block adds to larger features would be lost in them.
    """

    def __init__(self, steps: int = 400, learning_rate: float = 2e-3, output_std: float = 0.25) -> None:
        self.steps, self.learning_rate, self.output_std = steps, learning_rate, output_std

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:  # resumed
            return
        model: Any = pl_module.model
        molmo = model.model
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        heads: nn.ModuleDict | None = None
        # the loader again and again: each pass is in another order
        batches = itertools.chain.from_iterable(loader for _ in itertools.count())
        for done, batch in enumerate(itertools.islice(batches, self.steps), start=1):
            batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            cells = _cell_features(molmo, batch)
            if heads is None:
                # the first batch says how wide a token is
                heads = nn.ModuleDict(
                    {name: nn.Linear(cells.shape[-1], 16) for name in ("cell_shapes", "cell_colors")}
                ).to(pl_module.device)
                parameters = [*molmo.vision_tower.parameters(), *molmo.connector.parameters(), *heads.parameters()]
                optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
                schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=self.steps)
            known = batch["cell_shapes"] >= 0
            tokens = cells[known].flatten(0, 1)
            labels = {name: batch[name][known].repeat_interleave(cells.shape[2]) for name in heads}
            logits = {name: head(tokens) for name, head in heads.items()}
            loss = torch.stack([F.cross_entropy(logits[name], labels[name]) for name in logits]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if done % 50 == 0 or done == self.steps:
                right = [(logits[name].argmax(-1) == labels[name]).float().mean().item() for name in logits]
                trainer.print(f"vision warm-up {done}/{self.steps}: shape {right[0]:.3f}, colour {right[1]:.3f} right")
        with torch.no_grad():
            molmo.connector.image_projector.w2.weight.mul_(self.output_std / tokens.std())
        pl_module.zero_grad()


def _cell_features(molmo: Any, batch: dict[str, Any]) -> Tensor:
    """Image tokens of every cell, ``[B, cells, tokens per cell, D]``."""
    features = molmo.get_image_features(batch["images"], batch["image_masks"]).flatten(1, 2)
    index = batch["cell_tokens"]
    return features[torch.arange(len(index))[:, None, None], index]


class BlockDropout(Callback):
    """Stochastic depth (Huang et al. 2016): each training step skips block l with its own probability.

    The probability is ``peak * sin^2(pi * l / (L - 1))``: never the first or the last block, most often the middle.
    What this leaves behind is a model whose first block is critical and whose middle is cheap; the profile is made by
    the schedule and says nothing about other models.

    Args:
        peak: Largest probability, at the middle of the stack.
        start: Value of ``peak`` at the first step, from where it grows linearly; null = ``peak`` throughout.
        ramp_steps: Steps until ``peak`` is reached.
        seed: Seed of the draws.
    """

    def __init__(self, peak: float = 0.5, start: float | None = None, ramp_steps: int = 1, seed: int = 0) -> None:
        self.peak, self.start, self.ramp_steps = peak, peak if start is None else start, ramp_steps
        self.generator = torch.Generator().manual_seed(seed)
        self._context = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        num_blocks = len(find_blocks(pl_module))
        angle = torch.arange(num_blocks) * math.pi / (num_blocks - 1)
        peak = self.start + (self.peak - self.start) * min(1.0, trainer.global_step / self.ramp_steps)
        mask = torch.rand(num_blocks, generator=self.generator) >= peak * angle.sin() ** 2
        self._context.enter_context(masked(pl_module, mask))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._context.close()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        self._context.close()


class ExportCheckpoint(Callback):
    """Write the trained model and its processor in the released layout, and the training curve beside them.

    Args:
        folder: Where to write.
        dtype: Number format of the stored weights.
        curve_every: Steps averaged into one point of ``training_curve.json``.
    """

    def __init__(self, folder: str, dtype: str = "float16", curve_every: int = 20) -> None:
        self.folder, self.dtype, self.curve_every = folder, dtype, curve_every
        self._losses: list[float] = []
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._losses.append(float(trainer.callback_metrics["train/answer_loss"]))
        if len(self._losses) % 100 == 0:
            trainer.print(f"step {len(self._losses)}: answer loss {sum(self._losses[-100:]) / 100:.3f}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        stored = getattr(torch, self.dtype)
        weights = {name: value.to(stored) for name, value in model.state_dict().items()}
        model.save_pretrained(self.folder, state_dict=weights)
        pl_module.processor.save_pretrained(self.folder)  # type: ignore[union-attr,operator]
        starts = range(0, len(self._losses), self.curve_every)
        note = {
            "steps": len(self._losses),
            "seconds": round(time.monotonic() - self._start, 1),
            "steps_per_point": self.curve_every,
            "answer_loss": [round(mean(self._losses[start : start + self.curve_every]), 4) for start in starts],
        }
        (Path(self.folder) / "training_curve.json").write_text(json.dumps(note) + "\n")
        trainer.print(f"checkpoint written to {self.folder}")
