"""Importance of every block as the drop in quality when it is skipped, in any Lightning repository."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_depth.callbacks.batch_scores import ScoreFn, gather_columns, report_left_out, score_masks
from lit_depth.callbacks.batch_scores import token_accuracy as token_accuracy  # others import it from here
from lit_depth.callbacks.evaluation import EvaluationCallback
from lit_depth.callbacks.user_module import block_values, language_model
from lit_depth.functional import find_blocks, leave_one_out
from lit_depth.functional.arguments import checked


class AccuracyDropImportance(EvaluationCallback):
    """importance(block) = quality(full model) - quality(that block skipped), measured while validating or testing.

    After each batch of the loop the batch is scored again under ``num_blocks + 1`` masks, without touching the module's
    own step, metrics, logged values, training mode or random state. With the default score, masks whose logits fit in
    512 MiB together share one pass of `sweep_forward`; a score function of your own is called once per mask. At the end
    of the loop it logs

    | key | unit |
    |---|---|
    | ``importance/block_07`` (one per block) | difference of mean scores, higher = more important |
    | ``importance/full`` | mean score of the full model |

    and keeps the same numbers in :attr:`importance` and :attr:`full`, and every per-sample score in :attr:`scores`
    ``[1 + num_blocks, samples]``, the full model's first. A row without labelled tokens has no score: it is NaN there
    under every mask and left out of the means, with a warning.

    Args:
        score_fn: ``score_fn(pl_module, batch) -> [batch]``, higher is better. Default: the share of labelled tokens
            that the module's Hugging Face model gets right, `lit_depth.callbacks.batch_scores.token_accuracy`.
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_batches: Batches with a score to use per loop and process; None = all.

    Raises:
        ValueError: If ``max_batches`` is below 1. At the start of the loop: no decoder blocks, or several lists of
            them. In the loop: batches that the default score cannot read; scores or logits that are not finite. At its
            end: no row was labelled.

    With several processes a sample counts as often as the loop's sampler deals it out: Lightning's own repeats a few,
    to give all processes equally many.

    Example:
        >>> callback = AccuracyDropImportance(max_batches=8)
        >>> callback.max_batches
        8
    """

    @checked
    def __init__(
        self, score_fn: ScoreFn | None = None, blocks: str | None = None, max_batches: int | None = None
    ) -> None:
        super().__init__(blocks, max_batches)
        self.score_fn = score_fn
        self.importance: Tensor | None = None
        self.full: float | None = None
        self.scores: Tensor | None = None
        self._batches: list[Tensor] = []

    def start(self, pl_module: LightningModule, model: nn.Module, path: str) -> None:
        # without columns: a process that gets no batch takes part in the gathering too
        self._batches = [torch.zeros(1 + self.num_blocks, 0)]

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *place: int) -> bool:
        with trainer.precision_plugin.forward_context():
            scores = score_every_block(pl_module, batch, self.score_fn, self.blocks)
        self._batches.append(scores)
        return not scores.isnan().all()

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        self.scores = gather_columns(pl_module, torch.cat(self._batches, dim=1))
        num_rows = self.scores.shape[1]
        report_left_out(int(self.scores[0].isnan().sum()), num_rows)
        if num_rows == 0:
            return {}
        means = self.scores.nanmean(dim=1)
        self.full, self.importance = float(means[0]), means[0] - means[1:]
        return {"importance/full": self.full, **block_values("importance/block_{}", self.importance)}


def score_every_block(
    pl_module: LightningModule, batch: Any, score_fn: ScoreFn | None = None, blocks: str | None = None
) -> Tensor:
    """Scores of one batch under the full model (row 0) and with each block skipped; see `score_masks`."""
    num_blocks = len(find_blocks(*language_model(pl_module, blocks)))
    masks = torch.cat([torch.ones(1, num_blocks, dtype=torch.bool), leave_one_out(num_blocks)])
    return score_masks(pl_module, batch, masks, score_fn, blocks)
