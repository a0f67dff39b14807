"""Evaluation batches: one question per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_depth.data.lengths import HUGE, PromptLimit, fewest_tokens
from lit_depth.data.task import BadSample, Sample
from lit_depth.functional.inputs import IGNORE


class EvalCollator:
    """Make an evaluation batch of samples.

    Args:
        prompter: Makes the model's inputs of samples, see `lit_depth.models.prompting.Prompter`.
        limit: A sample with a longer prompt counts as bad; None = no limit.
    """

    def __init__(self, prompter: Any, limit: PromptLimit | None = None) -> None:
        self.prompter = prompter
        self.limit = limit

    def __call__(self, samples: Sequence[Sample | BadSample | None]) -> dict[str, Any]:
        """Return the model's inputs and, beside them:

        - ``answer_ids`` [batch, answer]: tokens of the first reference and the end token, padded right with -100,
        - of samples with continuations ``continuation_ids`` [continuations, tokens], padded likewise and without end
          token, sample after sample, and ``continuation_rows``, the row of each one's prompt (a sample with several
          prompts has a row for each); ``answer_ids`` are then those of the targets,
        - ``samples``: the samples without their images, ``sample_ids``: their ids,
        - ``bad_samples``: what could not be read or is too long; these have no row, and a batch of nothing else has no
          tensors.

        A ValueError of the prompter is about a sample and costs it; whatever else it raises is raised.
        """
        bad = [sample for sample in samples if isinstance(sample, BadSample)]
        good = [sample for sample in samples if isinstance(sample, Sample)]
        good = _without(good, map(self._too_long, good), bad)
        try:
            tensors = self._tensors(good)
        # The prompter refuses a batch as a whole; which of its samples is to blame shows one by one.
        except ValueError:
            good = _without(good, map(self._refusal, good), bad)
            tensors = self._tensors(good)
        short = _without(good, self._over_limit(good, tensors), bad)
        if len(short) < len(good):  # without the padding that the others needed
            good, tensors = short, self._tensors(short)
        return {
            **tensors,
            "samples": [replace(sample, image=None, more_images=()) for sample in good],
            "sample_ids": [sample.id for sample in good],
            "bad_samples": bad,
        }

    def _tensors(self, samples: list[Sample]) -> dict[str, Tensor]:
        if not samples:
            return {}
        pieces = [piece for sample in samples for piece in sample.pieces()]
        inputs = self.prompter.encode(pieces)
        if not all(sample.references for sample in samples):  # withheld: nothing is scored
            return inputs
        if not any(sample.continuations for sample in samples):
            return {**inputs, "answer_ids": self.prompter.answer_ids([sample.references[0] for sample in samples])}
        if not all(sample.continuations for sample in samples):
            raise ValueError("expected continuations of every sample of a batch, or of none")
        found = [self.prompter.continuation_ids(piece) for piece in pieces]
        every = [tokens for several in found for tokens in several]
        starts = accumulate([len(sample.continuations) for sample in samples], initial=0)
        return {
            **inputs,
            "answer_ids": right_padded([every[start + sample.target] for start, sample in zip(starts, samples)]),
            "continuation_ids": right_padded(every),
            "continuation_rows": torch.tensor([row for row, several in enumerate(found) for _ in several]),
        }

    def _too_long(self, sample: Sample) -> str | None:
        """Why a sample cannot be evaluated, without tokenising a huge text and without preparing an image."""
        return next(filter(None, map(self._too_long_piece, sample.pieces())), None)

    def _too_long_piece(self, sample: Sample) -> str | None:
        if self.limit is None:
            return None
        try:
            answers = sample.continuations or sample.references[:1]
            texts = (self.prompter.prompt_text(sample), max(answers, key=len, default=""))
            prompt, answer = (fewest_tokens(self.prompter.tokenizer, text) if len(text) > HUGE else 0 for text in texts)
            reason = self.limit.refusal(prompt, answer, at_least="at least ")
            return reason or self.limit.refusal(self.prompter.prompt_length(sample) or 0, 0)
        except ValueError as error:
            return _named(error)

    def _over_limit(self, samples: list[Sample], tensors: dict[str, Tensor]) -> list[str | None]:
        """For each sample of a batch why it is too long, or None."""
        if not tensors or self.limit is None:
            return [None] * len(samples)
        reasons = iter(self._rows_over_limit(self.limit, tensors))
        of_samples = [list(islice(reasons, len(sample.pieces()))) for sample in samples]
        return [next(filter(None, rows), None) for rows in of_samples]

    def _rows_over_limit(self, limit: PromptLimit, tensors: dict[str, Tensor]) -> list[str | None]:
        real = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"]))
        answers = (tensors.get("answer_ids", torch.full_like(real, IGNORE)) != IGNORE).sum(1)
        if "continuation_ids" in tensors:
            of_each = (tensors["continuation_ids"] != IGNORE).sum(1)
            answers = answers.new_zeros(len(real)).scatter_reduce(0, tensors["continuation_rows"], of_each, "amax")
        lengths = zip(real.sum(1).tolist(), answers.tolist())
        of_images = self.prompter.num_vision_tokens(tensors).tolist()
        return [limit.refusal(*pair, of_images=count) for pair, count in zip(lengths, of_images)]

    def _refusal(self, sample: Sample) -> str | None:
        try:
            self._tensors([sample])
        except ValueError as error:
            return _named(error)
        return None


def right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Tokens of several answers, long ``[rows, tokens]``, padded on the right with -100."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=IGNORE)


def _named(error: ValueError) -> str:
    return f"{type(error).__name__}: {error}"


def _without(samples: list[Sample], reasons: Iterable[str | None], bad: list[BadSample]) -> list[Sample]:
    """The samples that have no reason against them; the others join the bad ones."""
    pairs = list(zip(samples, reasons))
    bad += [BadSample(sample.id, reason) for sample, reason in pairs if reason]
    return [sample for sample, reason in pairs if not reason]
