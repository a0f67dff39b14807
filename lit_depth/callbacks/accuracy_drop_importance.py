"""Importance of every block as the drop in quality when it is skipped, in any Lightning repository."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_depth.functional import find_blocks, leave_one_out, masked

ScoreFn = Callable[[LightningModule, Any], Tensor]


class AccuracyDropImportance(Callback):
    """importance(block) = quality(full model) - quality(that block skipped), measured while validating or testing.

    After each batch of the loop the batch is scored again under ``num_blocks + 1`` masks, without touching the module's
    own step, metrics, logged values, training mode or random state. At the end of the loop it logs

    | key | unit |
    |---|---|
    | ``importance/block_07`` (one per block) | difference of mean scores, higher = more important |
    | ``importance/full`` | mean score of the full model |

    and keeps the same numbers in :attr:`importance` and :attr:`full`, and every per-sample score in :attr:`scores`.

    Args:
        score_fn: ``score_fn(pl_module, batch) -> [batch]``, higher is better. Default: `token_accuracy`.
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_batches: Batches to use per loop; None = all. Scoring costs ``num_blocks + 1`` forwards per batch.

    Example:
        >>> callback = AccuracyDropImportance(max_batches=8)
        >>> callback.max_batches
        8
    """

    log: Callable[..., None]  # Lightning gives every callback the module's method

    def __init__(
        self, score_fn: ScoreFn | None = None, blocks: str | None = None, max_batches: int | None = None
    ) -> None:
        self.score_fn = score_fn or token_accuracy
        self.blocks = blocks
        self.max_batches = max_batches
        self.importance: Tensor | None = None
        self.full: float | None = None
        self.scores: Tensor | None = None
        self._batches: list[Tensor] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or (self.max_batches is not None and len(self._batches) >= self.max_batches):
            return
        self._batches.append(score_every_block(pl_module, batch, self.score_fn, self.blocks))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._batches:
            return
        self.scores = _gather(pl_module, torch.cat(self._batches, dim=1))
        means = self.scores.mean(dim=1)
        self.full, self.importance = float(means[0]), means[0] - means[1:]
        self.log("importance/full", self.full)
        width = max(2, len(str(len(self.importance) - 1)))
        for block_idx, value in enumerate(self.importance):
            self.log(f"importance/block_{block_idx:0{width}d}", float(value))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


@torch.no_grad()
def score_every_block(pl_module: LightningModule, batch: Any, score_fn: ScoreFn, blocks: str | None = None) -> Tensor:
    """Scores of one batch under the full model and with each block skipped.

    Returns:
        float32 ``[1 + num_blocks, batch]`` on the CPU; row 0 is the full model.

    Raises:
        ValueError: If ``score_fn`` does not return one finite score per sample.
    """
    num_blocks = len(find_blocks(pl_module, blocks))
    masks = [torch.ones(num_blocks, dtype=torch.bool), *leave_one_out(num_blocks)]
    training = {module: module.training for module in pl_module.modules()}
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    rows = []
    pl_module.eval()
    try:
        for index, mask in enumerate(masks):
            # the loop around this callback must draw the same random numbers as without it
            with torch.random.fork_rng(devices=devices), masked(pl_module, mask, blocks=blocks):
                scores = score_fn(pl_module, batch)
            if scores.ndim != 1 or not torch.isfinite(scores).all():
                skipped = "no block" if index == 0 else f"block {index - 1}"
                raise ValueError(
                    f"score_fn must return finite scores of shape [batch], got {list(scores.shape)} "
                    f"with {int((~torch.isfinite(scores)).sum())} NaN or infinite, {skipped} skipped"
                )
            rows.append(scores.float().cpu())
    finally:
        for module, mode in training.items():
            module.training = mode
    return torch.stack(rows)


def token_accuracy(pl_module: LightningModule, batch: Any) -> Tensor:
    """Share of labelled tokens that are the most likely next token, per sample (teacher forcing).

    Args:
        pl_module: Module that holds the model, as ``pl_module.model`` or by being callable itself.
        batch: Mapping of model inputs with ``labels`` ``[batch, seq]``, -100 = ignored.

    Returns:
        float32 ``[batch]``; 0 for a sample without labelled tokens.
    """
    if "labels" not in batch:
        raise ValueError("the default score needs batch['labels']; pass score_fn(pl_module, batch) -> [batch]")
    model = getattr(pl_module, "model", pl_module)
    logits = model(**batch).logits
    targets, guesses = batch["labels"][:, 1:], logits[:, :-1].argmax(-1)
    known = targets != -100
    return ((guesses == targets) & known).sum(1) / known.sum(1).clamp(min=1)


def _gather(pl_module: LightningModule, scores: Tensor) -> Tensor:
    """Scores ``[masks, samples]`` of all processes side by side; processes may hold different numbers of samples."""
    trainer = pl_module.trainer
    if trainer.world_size == 1:
        return scores
    all_gather: Callable[[Tensor], Any] = pl_module.all_gather  # a tensor in, a tensor out
    count = torch.tensor([scores.shape[1]], device=pl_module.device)
    counts = all_gather(count).flatten().tolist()
    padded = torch.zeros(scores.shape[0], max(counts), device=pl_module.device)
    padded[:, : scores.shape[1]] = scores.to(pl_module.device)
    gathered = all_gather(padded)
    return torch.cat([rows[:, :n] for rows, n in zip(gathered, counts)], dim=1).cpu()
