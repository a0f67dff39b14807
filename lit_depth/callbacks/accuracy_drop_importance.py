"""Importance of every block as the drop in quality when it is skipped, in any Lightning repository."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.callbacks.modules import same_random_state, undisturbed
from lit_depth.functional import find_blocks, leave_one_out, masked, sweep_forward
from lit_depth.functional.checks import check_least, checked
from lit_depth.functional.engine import CannotDriveError
from lit_depth.functional.masking import Granularity, check_drivable
from lit_depth.functional.scoring import IGNORE
from lit_depth.functional.trie import chunk_masks

ScoreFn = Callable[[LightningModule, Any], Tensor]
# of the logits of several masks at once
_MAX_LOGITS_BYTES = 2**29


class AccuracyDropImportance(Callback):
    """importance(block) = quality(full model) - quality(that block skipped), measured while validating or testing.

    After each batch of the loop the batch is scored again under ``num_blocks + 1`` masks, without touching the module's
    own step, metrics, logged values, training mode or random state. With the default score, masks whose logits fit in
    512 MiB together share one pass of `sweep_forward`; a score function of your own is called once per mask. At the end
    of the loop it logs

    | key | unit |
    |---|---|
    | ``importance/block_07`` (one per block) | difference of mean scores, higher = more important |
    | ``importance/full`` | mean score of the full model |

    and keeps the same numbers in :attr:`importance` and :attr:`full`, and every per-sample score in :attr:`scores`.

    Args:
        score_fn: ``score_fn(pl_module, batch) -> [batch]``, higher is better. Default: `token_accuracy`.
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_batches: Batches to use per loop; None = all.

    Raises:
        ValueError: If ``max_batches`` is below 1. At the start of the loop: if there are no decoder blocks.

    With several processes a sample counts as often as the loop's sampler deals it out: Lightning's own repeats a few,
    to give all processes equally many.

    Example:
        >>> callback = AccuracyDropImportance(max_batches=8)
        >>> callback.max_batches
        8
    """

    log: Callable[..., None]  # Lightning gives every callback the module's method

    @checked
    def __init__(
        self, score_fn: ScoreFn | None = None, blocks: str | None = None, max_batches: int | None = None
    ) -> None:
        check_least(1, max_batches=max_batches)
        self.score_fn = score_fn
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
        self.scores = gather_columns(pl_module, torch.cat(self._batches, dim=1))
        means = self.scores.mean(dim=1)
        self.full, self.importance = float(means[0]), means[0] - means[1:]
        self.log("importance/full", self.full)
        width = max(2, len(str(len(self.importance) - 1)))
        for block_idx, value in enumerate(self.importance):
            self.log(f"importance/block_{block_idx:0{width}d}", float(value))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def score_every_block(
    pl_module: LightningModule, batch: Any, score_fn: ScoreFn | None = None, blocks: str | None = None
) -> Tensor:
    """Scores of one batch under the full model (row 0) and with each block skipped; see `score_masks`."""
    num_blocks = len(find_blocks(pl_module, blocks))
    masks = torch.cat([torch.ones(1, num_blocks, dtype=torch.bool), leave_one_out(num_blocks)])
    return score_masks(pl_module, batch, masks, score_fn, blocks)


@torch.no_grad()
def score_masks(
    pl_module: LightningModule,
    batch: Any,
    masks: Tensor,
    score_fn: ScoreFn | None = None,
    blocks: str | None = None,
    granularity: Granularity = "block",
) -> Tensor:
    """Scores of one batch under block masks; training mode and random state stay as they are.

    Args:
        masks: Bool ``[masks, num_blocks]``, with ``granularity="sublayer"`` twice as wide.
        score_fn: As for `AccuracyDropImportance`; None = `token_accuracy`, in one pass if the model allows it.

    Returns:
        float32 ``[masks, batch]`` on the CPU.

    Raises:
        ValueError: If ``score_fn`` does not return one finite score per sample.
    """
    module_list = find_blocks(pl_module, blocks)
    with undisturbed(pl_module):
        if score_fn is None and granularity == "block":
            try:
                # a mask that BlockMask set around this loop is replaced, not combined with
                with masked(pl_module, torch.ones(len(module_list)).bool(), blocks=blocks):
                    return _score_together(pl_module, batch, masks, module_list)
            except CannotDriveError as error:
                warnings.warn(f"masks are scored one after another: {error}", stacklevel=2)
        return _score_one_by_one(pl_module, batch, masks, score_fn or token_accuracy, blocks, granularity)


def _score_together(pl_module: LightningModule, batch: Any, masks: Tensor, module_list: nn.ModuleList) -> Tensor:
    model, labels = _model_and_labels(pl_module, batch)
    if not isinstance(model, PreTrainedModel):
        raise CannotDriveError(f"{type(model).__name__} is not a model of transformers")
    reason = check_drivable(model, module_list)
    if reason is not None:
        raise CannotDriveError(f"{type(model).__name__}: {reason}")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    # logits are needed from before the first labelled token on
    first = int((labels[:, 1:] != IGNORE).any(0).float().argmax())
    labels = labels[:, first:]
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    at_once = max(1, _MAX_LOGITS_BYTES // (4 * labels.numel() * vocabulary))
    scores = torch.zeros(len(masks), len(labels))
    for chunk in chunk_masks(masks, at_once):
        logits = sweep_forward(model, inputs, masks[chunk], logits_to_keep=labels.shape[1], blocks=module_list).logits
        scores[chunk] = torch.stack([_share_of_right_tokens(rows, labels) for rows in logits]).cpu()
        del logits  # not kept beside those of the next chunk
    return scores


def _score_one_by_one(
    pl_module: LightningModule,
    batch: Any,
    masks: Tensor,
    score_fn: ScoreFn,
    blocks: str | None,
    granularity: Granularity,
) -> Tensor:
    rows = []
    for mask in masks:
        with same_random_state(pl_module), masked(pl_module, mask, blocks=blocks, granularity=granularity):
            scores = score_fn(pl_module, batch)
        if scores.ndim != 1 or not torch.isfinite(scores).all():
            indices = " ".join(map(str, (~mask).nonzero().flatten().tolist()))
            skipped = f"{granularity} {indices}" if indices else f"no {granularity}"
            raise ValueError(
                f"score_fn must return finite scores of shape [batch], got {list(scores.shape)} "
                f"with {int((~torch.isfinite(scores)).sum())} NaN or infinite, {skipped} skipped"
            )
        rows.append(scores.float().cpu())
    return torch.stack(rows)


def token_accuracy(pl_module: LightningModule, batch: Any) -> Tensor:
    """Share of labelled tokens that are the most likely next token, per sample (teacher forcing).

    Args:
        pl_module: Module that holds the model, as ``pl_module.model`` or by being callable itself.
        batch: Mapping of model inputs with ``labels`` ``[batch, seq]``, -100 = ignored.

    Returns:
        float32 ``[batch]``; 0 for a sample without labelled tokens.
    """
    model, labels = _model_and_labels(pl_module, batch)
    return _share_of_right_tokens(model(**batch).logits, labels)


def _model_and_labels(pl_module: LightningModule, batch: Any) -> tuple[Any, Tensor]:
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise ValueError("the default score needs batch['labels']; pass score_fn(pl_module, batch) -> [batch]")
    return getattr(pl_module, "model", pl_module), batch["labels"]


def _share_of_right_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    targets, guesses = labels[:, 1:], logits[:, :-1].argmax(-1)
    known = targets != IGNORE
    return ((guesses == targets) & known).sum(1) / known.sum(1).clamp(min=1)


def gather_columns(pl_module: LightningModule, scores: Tensor) -> Tensor:
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
