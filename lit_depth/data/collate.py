"""Batches: questions packed behind their image for training, one question per row for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_depth.data.lengths import HUGE, PromptLimit, fewest_tokens
from lit_depth.data.task import BadSample, Sample, Task, TrainingItem

IMAGE_KEYS = ("images", "image_masks", "image_input_idx")
IGNORE = -100


class EvalCollator:
    """Make an evaluation batch of samples.

    Args:
        processor: ``processor(images=..., text=..., padding_side="left")`` with a ``tokenizer``.
        task: Gives the prompts.
        limit: A sample with a longer prompt counts as bad; None = no limit.
    """

    def __init__(self, processor: Any, task: Task, limit: PromptLimit | None = None) -> None:
        self.processor = processor
        self.task = task
        self.limit = limit

    def __call__(self, samples: Sequence[Sample | BadSample | None]) -> dict[str, Any]:
        """Return the processor's tensors and, beside them:

        - ``answer_ids`` [batch, answer]: tokens of " " + first reference and the end token, padded right with -100,
        - ``samples``: the samples without their images, ``sample_ids``: their ids,
        - ``bad_samples``: what could not be read or is too long; these have no row, and a batch of nothing else has no
          tensors.
        """
        bad = [sample for sample in samples if isinstance(sample, BadSample)]
        good = [sample for sample in samples if isinstance(sample, Sample)]
        good = _without(good, map(self._too_long, good), bad)
        try:
            tensors = self._tensors(good)
        # The processor refuses a batch as a whole; which of its samples is to blame shows one by one.
        except Exception:
            good = _without(good, map(self._refusal, good), bad)
            tensors = self._tensors(good)
        short = _without(good, self._over_limit(tensors), bad)
        if len(short) < len(good):  # without the padding that the others needed
            good, tensors = short, self._tensors(short)
        return {
            **tensors,
            "samples": [replace(sample, image=None) for sample in good],
            "sample_ids": [sample.id for sample in good],
            "bad_samples": bad,
        }

    def _tensors(self, samples: list[Sample]) -> dict[str, Tensor]:
        if not samples:
            return {}
        images, prompts = [sample.image for sample in samples], [self.task.prompt(sample) for sample in samples]
        tensors = dict(self.processor(images=images, text=prompts, padding_side="left"))
        answers = [torch.tensor(answer_tokens(self.processor.tokenizer, sample.references[0])) for sample in samples]
        return tensors | {"answer_ids": pad_sequence(answers, batch_first=True, padding_value=IGNORE)}

    def _too_long(self, sample: Sample) -> str | None:
        """Why a huge text cannot be evaluated, without tokenising it."""
        if self.limit is None:
            return None
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        try:
            texts = [self.task.prompt(sample), sample.references[0]]
        # Whatever a task makes of a strange sample costs this one only.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        prompt, answer = (fewest_tokens(tokenizer, text) if len(text) > HUGE else 0 for text in texts)
        return self.limit.refusal(prompt, answer, at_least="at least ")

    def _over_limit(self, tensors: dict[str, Tensor]) -> list[str | None]:
        """For each row of a batch why it is too long, or None."""
        if not tensors or self.limit is None:
            return [None] * len(tensors.get("input_ids", ()))
        real = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"]))
        lengths = zip(real.sum(1).tolist(), (tensors["answer_ids"] != IGNORE).sum(1).tolist())
        return [self.limit.refusal(*pair) for pair in lengths]

    def _refusal(self, sample: Sample) -> str | None:
        try:
            self._tensors([sample])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None


def _without(samples: list[Sample], reasons: Iterable[str | None], bad: list[BadSample]) -> list[Sample]:
    """The samples that have no reason against them; the others join the bad ones."""
    pairs = list(zip(samples, reasons))
    bad += [BadSample(sample.id, reason) for sample, reason in pairs if reason]
    return [sample for sample, reason in pairs if not reason]


class PackedCollator:
    """Make a training batch in which the questions of one image share its tokens.

    A row is ``BOS, image tokens, question 1, answer 1, EOS, question 2, answer 2, EOS, ...``. A question attends to
    the image and to itself, and its positions continue those of the image, so every question is computed exactly as in
    a row of its own: the image is paid for once instead of once per question.

    Args:
        processor: As in `EvalCollator`.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        """Return a batch of one row per image.

        - ``input_ids``, ``position_ids`` [batch, seq],
        - ``attention_mask`` bool [batch, 1, seq, seq], True = may attend; a padded position attends to itself only,
        - ``labels`` [batch, seq]: the input id at answer and end tokens, -100 elsewhere (the model shifts),
        - ``images``, ``image_masks``, ``image_input_idx`` as the processor gives them,
        - for items with cell labels ``cell_shapes``, ``cell_colors`` [batch, cells], padded with -100, and
          ``cell_tokens`` [batch, cells, tokens per cell], see `cell_token_indices`, padded with 0.
        """
        tokenizer = self.processor.tokenizer
        rows = self.processor(
            images=[item.image for item in items], text=[item.prompts[0] for item in items], padding_side="right"
        )
        prompts = iter(self._prompt_tokens([prompt for item in items for prompt in item.prompts]))
        packed = []
        for input_ids, mask, item in zip(rows["input_ids"], rows["attention_mask"], items):
            pairs = [(next(prompts), answer_tokens(tokenizer, answer)) for answer in item.answers]
            prefix = input_ids[mask.bool()].tolist()
            if len(item.prompts) != len(item.answers) or prefix[-len(pairs[0][0]) :] != pairs[0][0]:
                raise ValueError("expected one answer per prompt and a processor that puts the prompt last in its row")
            packed.append(pack_row(prefix[: -len(pairs[0][0])], pairs))
        input_ids, position_ids, labels, segments = (
            pad_sequence(list(column), batch_first=True, padding_value=padding)
            for column, padding in zip(zip(*packed), (self.processor.pad_token_id, 0, IGNORE, -1))
        )
        batch = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": segment_mask(segments),
            "labels": labels,
            **{key: rows[key] for key in IMAGE_KEYS if key in rows},
        }
        if all(item.cell_shapes for item in items):
            batch |= _cell_labels(items, rows["image_input_idx"])
        return batch

    def _prompt_tokens(self, prompts: list[str]) -> list[list[int]]:
        # A text-only row is BOS and the framed prompt: the frame stays the processor's business.
        rows = self.processor(images=[None] * len(prompts), text=prompts, padding_side="right")
        return [ids[mask.bool()].tolist()[1:] for ids, mask in zip(rows["input_ids"], rows["attention_mask"])]


def answer_tokens(tokenizer: Any, answer: str) -> list[int]:
    """Return the token ids that a model should generate: " " + answer, then the end token if the tokenizer has one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [*tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], *end]


def pack_row(prefix: list[int], pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Append (prompt, answer) token pairs to a shared prefix.

    >>> [column.tolist() for column in pack_row([7], [([1, 2], [3]), ([4], [5])])]
    [[7, 1, 2, 3, 4, 5], [0, 1, 2, 3, 1, 2], [-100, -100, -100, 3, -100, 5], [0, 1, 1, 1, 2, 2]]

    Returns:
        input_ids, position_ids, labels and segments, each long [seq]; the prefix is segment 0, pair i is i + 1.
    """
    ids, positions = list(prefix), list(range(len(prefix)))
    labels, segments = [IGNORE] * len(prefix), [0] * len(prefix)
    for number, (prompt, answer) in enumerate(pairs, start=1):
        length = len(prompt) + len(answer)
        ids += [*prompt, *answer]
        positions += range(len(prefix), len(prefix) + length)
        labels += [*[IGNORE] * len(prompt), *answer]
        segments += [number] * length
    return torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), torch.tensor(segments)


def segment_mask(segments: Tensor) -> Tensor:
    """Return who may attend to whom: causal, to segment 0 and to the own segment; padding (-1) to itself only.

    >>> segment_mask(torch.tensor([[0, 1, 2, -1]]))[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]

    Args:
        segments: Long [batch, seq].

    Returns:
        Bool [batch, 1, seq, seq] (query, key).
    """
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    allowed = ((key == query) | (key == 0)) & (query >= 0) & causal
    # Without its own position, the softmax of a padded query would divide zero by zero.
    return (allowed | torch.eye(len(causal), dtype=torch.bool))[:, None]


def cell_token_indices(image_input_idx: Tensor, grid: tuple[int, int]) -> Tensor:
    """Find the image tokens that cover each cell of a grid laid over the image.

    The high-resolution tokens stand in the text row by row over the whole image, whatever crop they come from, with one
    column token after each row; so the order of their positions gives the table, and its gaps give the width.

    Args:
        image_input_idx: Long [crops, tokens] of one image; crop 0 is the overview, negative = unused.
        grid: Rows and columns of cells.

    Returns:
        Long [cells, tokens per cell]: indices into the flattened [crops * tokens] image features, cells row-major.

    Raises:
        ValueError: If the token table cannot be divided into the cells.
    """
    flat = image_input_idx.flatten()
    candidates = torch.arange(image_input_idx.shape[1], flat.numel(), device=flat.device)
    used = candidates[flat[candidates] >= 0]
    order = used[flat[used].argsort()]
    row_ends = (flat[order].diff() > 1).nonzero().flatten() + 1
    columns = int(row_ends[0]) if len(row_ends) else len(order)
    rows = len(row_ends) + 1
    if rows * columns != len(order) or rows % grid[0] or columns % grid[1]:
        raise ValueError(
            f"expected rows of image tokens that divide into {grid[0]} x {grid[1]} cells, "
            f"got {len(order)} tokens in {rows} rows"
        )
    table = order.view(grid[0], rows // grid[0], grid[1], columns // grid[1])
    return table.transpose(1, 2).flatten(0, 1).flatten(1)


def _cell_labels(items: Sequence[TrainingItem], image_input_idx: Tensor) -> dict[str, Tensor]:
    tokens = [cell_token_indices(idx, item.grid) for idx, item in zip(image_input_idx, items)]
    shapes = [torch.tensor(item.cell_shapes) for item in items]
    colors = [torch.tensor(item.cell_colors) for item in items]
    return {
        "cell_shapes": pad_sequence(shapes, batch_first=True, padding_value=IGNORE),
        "cell_colors": pad_sequence(colors, batch_first=True, padding_value=IGNORE),
        # 0 is a valid index, so a gather needs no special case; the labels say which cells do not exist.
        "cell_tokens": pad_sequence(tokens, batch_first=True, padding_value=0),
    }
