"""Scores of one batch under many block masks: of somebody's own function, or the accuracy of labelled tokens."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.callbacks.user_module import accepted, inputs_and_labels, language_model, same_random_state, undisturbed
from lit_depth.functional import find_blocks, masked, sweep_forward
from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.engine.trie import chunk_masks
from lit_depth.functional.inputs import IGNORE, keep_last
from lit_depth.functional.masking.support import check_drivable
from lit_depth.functional.masks import Granularity, Masks, MaskSet

ScoreFn = Callable[[LightningModule, Any], Tensor]
# of the logits of several masks at once
_MAX_LOGITS_BYTES = 2**29
_PASS_A_SCORE = "pass score_fn(pl_module, batch) -> [batch]"


@torch.no_grad()
def score_masks(
    pl_module: LightningModule,
    batch: Any,
    masks: Masks,
    score_fn: ScoreFn | None = None,
    blocks: str | None = None,
    granularity: Granularity | None = None,
) -> Tensor:
    """Scores of one batch under block masks; training mode and random state stay as they are.

    A mask that `BlockMask` set around the loop is replaced, not combined with.

    Args:
        masks: See `MaskSet.of`, like ``granularity``.
        score_fn: ``score_fn(pl_module, batch) -> [batch]``; None = `token_accuracy`, in one pass if the model allows
            it, else mask after mask, with a warning.

    Returns:
        float32 ``[masks, batch]`` on the CPU. A row without labelled tokens may have no score: NaN under every mask.

    Raises:
        ValueError: If ``score_fn`` does not return one finite score for every labelled row, or logits are not finite;
            if the default score cannot read the batch.
    """
    masks = MaskSet.of(masks, granularity=granularity)
    with undisturbed(pl_module):
        if score_fn is not None:
            scores = _score_one_by_one(pl_module, batch, masks, score_fn, blocks)
            _check_finite(scores, _labelled(batch), masks, "scores of score_fn")
        else:
            scores = _token_accuracies(pl_module, batch, masks, blocks)
            _check_finite(scores, _labelled(batch), masks, "logits at labelled tokens")
    return scores


def token_accuracy(pl_module: LightningModule, batch: Any, blocks: str | None = None) -> Tensor:
    """Share of labelled tokens that are the most likely next token, per sample (teacher forcing).

    Args:
        pl_module: Module that holds a Hugging Face model, under whatever name (see
            `lit_depth.callbacks.user_module.language_model`); the logits are this model's, given the batch's tensors.
        batch: Mapping of model inputs with ``labels`` ``[batch, seq]`` of the shape of ``input_ids``, -100 = ignored.
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Returns:
        float32 ``[batch]``; NaN for a sample without labelled tokens (or with NaN or infinite logits at one).

    Raises:
        ValueError: A batch of another kind or without labels, or a model without logits of tokens.
    """
    return _read(pl_module, batch, blocks).score()


def report_left_out(num_left_out: int, num_rows: int) -> None:
    """Warn of the rows of a loop that have no score; raise ValueError where no row has one."""
    if num_left_out == 0:
        return
    without = f"{num_left_out} of {num_rows} rows have no labelled token (labels are -100 throughout)"
    if num_left_out == num_rows:
        raise ValueError(f"expected labelled tokens to score: {without}; label some, or {_PASS_A_SCORE}")
    rank_zero_warn(f"{without} and are left out of the scores")


def gather_columns(pl_module: LightningModule, scores: Tensor) -> Tensor:
    """Scores ``[masks, samples]`` of all processes side by side; processes may hold different numbers of samples."""
    trainer = pl_module.trainer
    if trainer.world_size == 1:
        return scores
    all_gather: Callable[[Tensor], Any] = pl_module.all_gather  # a tensor in, a tensor out
    count = torch.tensor([scores.shape[1]], device=pl_module.device)
    counts = all_gather(count).flatten().tolist()
    padded = torch.zeros(scores.shape[0], max(counts), dtype=scores.dtype, device=pl_module.device)
    padded[:, : scores.shape[1]] = scores.to(pl_module.device)
    gathered = all_gather(padded)
    return torch.cat([rows[:, :n] for rows, n in zip(gathered, counts)], dim=1).cpu()


# ---- the default score


class _Question(NamedTuple):
    """What a batch asks of a model: its inputs, and labels ``[batch, kept]`` of the last positions."""

    model: nn.Module
    blocks: nn.ModuleList
    inputs: dict[str, Tensor]
    labels: Tensor

    def score(self) -> Tensor:
        """Share of right tokens, float32 ``[batch]``, of one forward."""
        options: dict[str, Any] = {}
        if isinstance(self.model, PreTrainedModel):
            options = {"use_cache": False, **keep_last(self.model, self.labels.shape[1])}
        return self.share_of_right_tokens(getattr(self.model(**self.inputs, **options), "logits", None))

    def share_of_right_tokens(self, logits: Any) -> Tensor:
        """float32 ``[batch]``, NaN for a row without labelled tokens, or with logits there that are not finite."""
        rows, kept = self.labels.shape
        if not isinstance(logits, Tensor) or logits.ndim != 3 or len(logits) != rows or logits.shape[1] < kept:
            given = list(logits.shape) if isinstance(logits, Tensor) else "none"
            name = type(self.model).__name__
            raise ValueError(f"expected {name} to give logits [batch, seq, vocabulary], got {given}; {_PASS_A_SCORE}")
        targets = self.labels[:, 1:].to(logits.device)
        known = targets != IGNORE
        best, guesses = logits[:, -kept:-1].max(-1)
        shares = ((guesses == targets) & known).sum(1) / known.sum(1)
        return shares.masked_fill((known & ~best.isfinite()).any(1), torch.nan)


def _read(pl_module: LightningModule, batch: Any, blocks: str | None) -> _Question:
    model, path = language_model(pl_module, blocks)
    inputs, labels = inputs_and_labels(pl_module, batch, _PASS_A_SCORE)
    if labels is None:
        raise ValueError(f"the default score needs batch['labels']; {_PASS_A_SCORE}")
    ids = inputs.get("input_ids", labels)
    if labels.ndim != 2 or labels.shape != ids.shape:
        raise ValueError(
            f"expected labels [batch, seq] of the shape of input_ids {list(ids.shape)}, got {list(labels.shape)}; "
            f"{_PASS_A_SCORE}"
        )
    if not isinstance(model, PreTrainedModel):  # somebody's own may insist on its labels
        inputs["labels"] = labels
    # logits are needed from before the first labelled token on
    counting = (labels[:, 1:] != IGNORE).any(0).nonzero()
    first = int(counting[0]) if len(counting) else labels.shape[1] - 1
    return _Question(model, find_blocks(model, path), accepted(model, inputs), labels[:, first:])


def _token_accuracies(pl_module: LightningModule, batch: Any, masks: MaskSet, blocks: str | None) -> Tensor:
    question = _read(pl_module, batch, blocks)
    if question.labels.shape[1] < 2:  # no row is labelled
        return torch.full((len(masks), len(question.labels)), torch.nan)
    try:
        return _score_together(question, masks)
    except CannotDriveError as error:
        name = type(question.model).__name__
        warnings.warn(f"masks are scored one after another: {name}: {error}", stacklevel=4)
    return _score_one_by_one(pl_module, batch, masks, lambda *_: question.score(), blocks)


def _score_together(question: _Question, masks: MaskSet) -> Tensor:
    model, blocks, inputs, labels = question
    if not isinstance(model, PreTrainedModel):
        raise CannotDriveError("it is not a model of transformers")
    reason = check_drivable(model, blocks)
    if reason is not None:
        raise CannotDriveError(reason)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    at_once = max(1, _MAX_LOGITS_BYTES // (4 * labels.numel() * vocabulary))
    scores = torch.zeros(len(masks), len(labels))
    for chunk in chunk_masks(masks, at_once):
        try:
            logits = sweep_forward(
                model, inputs, masks.take(chunk), logits_to_keep=labels.shape[1], blocks=blocks
            ).logits
        except (torch.OutOfMemoryError, ValueError):  # the latter is about the inputs
            raise
        except Exception as error:  # what is not the engine's fault is raised again by the model alone
            raise CannotDriveError(f"{type(error).__name__}: {error}") from error
        scores[chunk] = torch.stack([question.share_of_right_tokens(rows) for rows in logits]).cpu()
        del logits  # not kept beside those of the next chunk
    return scores


# ---- any score


def _score_one_by_one(
    pl_module: LightningModule, batch: Any, masks: MaskSet, score_fn: ScoreFn, blocks: str | None
) -> Tensor:
    labelled = _labelled(batch)
    shape = None if labelled is None else labelled.shape
    model, path = language_model(pl_module, blocks)
    rows: list[Tensor] = []
    for mask in masks:
        with same_random_state(pl_module), masked(model, mask, blocks=path, granularity=masks.granularity):
            scores = score_fn(pl_module, batch)
        if not isinstance(scores, Tensor) or scores.ndim != 1 or scores.shape != (shape or scores.shape):
            given = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            expected = "[batch]" if shape is None else f"[batch], here {list(shape)}"
            raise ValueError(f"expected score_fn to return a tensor of shape {expected}, got {given}")
        shape = scores.shape
        rows.append(scores.float().cpu())
    return torch.stack(rows)


def _labelled(batch: Any) -> Tensor | None:
    """Rows with a labelled token (no logits stand before a row's first), bool ``[batch]``; None where nothing tells."""
    if not isinstance(batch, Mapping):
        return None
    labels, answers = batch.get("labels"), batch.get("answer_ids")
    tokens = labels[:, 1:] if isinstance(labels, Tensor) and labels.ndim == 2 else answers if labels is None else None
    return (tokens != IGNORE).any(1).cpu() if isinstance(tokens, Tensor) and tokens.ndim == 2 else None


def _check_finite(scores: Tensor, labelled: Tensor | None, masks: MaskSet, what: str) -> None:
    """Raise ValueError if scores ``[masks, rows]`` are not finite, but of unlabelled rows that are NaN throughout."""
    wrong = ~scores.isfinite()
    if labelled is not None:
        wrong &= labelled | ~scores.isnan().all(0)
    if not wrong.any():
        return
    first = int(wrong.any(1).nonzero()[0])
    count, label = int(wrong[first].sum()), masks.labels[first]
    raise ValueError(f"expected finite {what}, got {count} NaN or infinite, {label}")
