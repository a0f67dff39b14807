"""What is asked of a batch, and whether the engine answers it as the model itself does: seen once for each kind."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.engine.decoding_configuration import CannotDriveError, greedy_options
from lit_depth.functional.engine.phases import BOTH, Phases
from lit_depth.functional.engine.proof import (
    LONGEST_WAY,
    Probe,
    Steps,
    plain_steps,
    probe_of,
    same_beyond,
    same_logits,
    same_tokens,
    turning_length,
)
from lit_depth.functional.inputs import (
    IGNORE,
    answer_logits,
    answer_logprob,
    answer_sums,
    longest_answer,
    scoring_way,
)
from lit_depth.functional.lens import LensReading, read_answers
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masks import MaskSet

# kinds of requests that the engine was seen to answer as the model itself does, and up to how many tokens, for as long
# as the model lives
_DRIVEN: weakref.WeakKeyDictionary[nn.Module, dict[Any, int]] = weakref.WeakKeyDictionary()
OTHER_ANSWERS = "the engine does not give the answers that it gives one mask at a time"


class Request(NamedTuple):
    """What is asked of a batch.

    Attributes:
        inputs: The prompt, as the model takes it.
        max_new_tokens: Longest answer; 0 = only score.
        eos: Tokens that end an answer.
        pad: Fills a row after its end.
        answer_ids: Reference answers ``[batch, answer]``, padded on the right with -100; None = score nothing.
        rows: The prompt of each of these, long ``[answers]``, where there are others than one for each prompt; every
            prompt has one at least. None = one for each.
        summed: Score an answer by `answer_sums` instead of its mean log-probability.
        stop: Says of each row of answers so far, long ``[rows, tokens]``, whether it ends there; None = at `eos` alone.
        on_lens: Told what the logit lens reads of the answers in the full model, if that is among the masks.
        on_greedy: Told the most likely tokens at the positions of the reference answers, once all masks have answered.
        acceptance: How many tokens of the full model's own answers to read under every mask; 0 = none.
        phases: Forwards that the masks apply to.
        own: These, ``[batch, acceptance]``, padded on the right with -100; None = the full model has not answered yet.
    """

    inputs: Mapping[str, Any]
    max_new_tokens: int
    eos: tuple[int, ...]
    pad: int
    answer_ids: Tensor | None = None
    rows: Tensor | None = None
    summed: bool = False
    stop: Callable[[Tensor], Tensor] | None = None
    on_lens: Callable[[LensReading], Any] | None = None
    on_greedy: Callable[[Any], Any] | None = None
    acceptance: int = 0
    phases: Phases = BOTH
    own: Tensor | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``generate``, which makes at least one token."""
        return greedy_options(max(1, self.max_new_tokens), self.eos, self.pad)

    @property
    def in_phases(self) -> bool:
        """Whether answers are read on their prompts' keys and values in any case, as decoded tokens are."""
        return self.rows is not None or self.phases.differ

    @property
    def answer_length(self) -> int:
        """Tokens of the longest reference answer."""
        return 0 if self.answer_ids is None else self.answer_ids.shape[1]

    def check_length(self, model: nn.Module) -> str | None:
        """Why the engine cannot answer sequences as long as these; None if it can."""
        num_new = max(self.max_new_tokens, self.answer_length)
        turns = turning_length(model)
        if self.inputs["input_ids"].shape[1] + num_new > turns:
            return f"its rotary positions turn at a length of {turns} tokens"
        probe = probe_of(model, self.inputs, num_new)
        is_far = probe.kind[1] == "across" and probe.inside > LONGEST_WAY
        return f"its window ends within the answers, after {probe.inside} tokens" if is_far else None

    @property
    def num_rows(self) -> int:
        """Rows that one mask takes: prompts, or answers where a prompt has several."""
        return len(self.inputs["input_ids"] if self.rows is None else self.rows)

    def firsts(self) -> Tensor:
        """Which answer is the first of each prompt, long ``[batch]``."""
        count = len(self.inputs["input_ids"])
        if self.rows is None:
            return torch.arange(count)
        return torch.stack([(self.rows == prompt).nonzero()[0, 0] for prompt in range(count)])

    def one_for_each(self) -> Tensor | None:
        """An answer for each prompt, ``[batch, answer]``: its first one."""
        return None if self.answer_ids is None else self.answer_ids[self.firsts().to(self.answer_ids.device)]

    def score(self, logits: Tensor, num_masks: int) -> Tensor:
        """Scores ``[masks, answers, ...]`` of the answers under some masks, mask after mask; nothing without answers.

        Args:
            logits: ``[masks * answers, answer + 1, vocabulary]``, the first at the prompt's last token.
        """
        if self.answer_ids is None:
            return torch.zeros(num_masks, 0)
        read = answer_sums if self.summed else answer_logprob
        return read(logits, self.answer_ids.repeat(num_masks, 1)).unflatten(0, (num_masks, -1))

    def lens_of(self, masks: MaskSet) -> int | None:
        """Which of the masks the logit lens reads answers of: the full one; None if there is none, or nobody asks."""
        if self.on_lens is None or self.answer_ids is None:
            return None
        return next((index for index, count in enumerate(masks.counts) if count == masks.num_units), None)

    def read_lens(self, logits: Tensor) -> None:
        """Tell what logits ``[num_blocks * answers, answer + 1, vocabulary]`` say, those of one block after another."""
        if self.on_lens is not None and self.answer_ids is not None:
            self.on_lens(read_answers(logits.unflatten(0, (-1, len(self.answer_ids))), self.answer_ids))

    def no_answers(self, num_masks: int) -> tuple[Tensor, Tensor]:
        """Tokens ``[masks, batch, max_new_tokens]`` and what `score` gives, to be filled in."""
        tokens = torch.full((num_masks, len(self.inputs["input_ids"]), self.max_new_tokens), self.pad)
        answers = 0 if self.answer_ids is None else len(self.answer_ids)
        return tokens, torch.zeros(num_masks, answers, *([2] if self.summed else []))


class Comparison(NamedTuple):
    """What the model itself does under one mask with a request of a kind that the engine has not answered yet.

    Attributes:
        kind: What the request stands for.
        probe: How far it is compared.
        steps: The model's own first tokens, and what it chose them from.
        decoded: The engine's logits of the same rows and steps, as far as it came; NaN elsewhere.
        of_answer: How far reference answers are compared; None without any.
        answers: The model's logits of these, ``[rows, answer + 1, vocabulary]``.
    """

    kind: Any
    probe: Probe
    steps: Steps
    decoded: Tensor
    of_answer: Probe | None = None
    answers: Tensor | None = None

    def note(self, step: int, rows: Tensor, logits: Tensor) -> None:
        """Take notice of the engine's logits ``[rows, vocabulary]`` at a step; further rows are under other masks."""
        mine = rows < len(self.decoded)
        if step < self.decoded.shape[1]:
            self.decoded[rows[mine].to(logits.device), step] = logits[mine.to(logits.device)].to(self.decoded.dtype)

    def check(self, model: nn.Module, logits: Tensor, tokens: Tensor, request: Request) -> None:
        """Compare what the engine gives.

        Args:
            logits: At the prompts' ends and at those of reference answers, ``[rows, 1 or answer + 1, vocabulary]``.
            tokens: ``[rows, tokens]``.

        Raises:
            CannotDriveError: The model gives others.
        """
        self.note(0, torch.arange(len(logits)), logits[:, 0])
        is_same = same_logits(model, self.decoded[:, 0], self.steps.logits[:, 0])
        answer_ids = request.one_for_each()
        if is_same and self.of_answer is not None and self.answers is not None and answer_ids is not None:
            length, inside = self.of_answer.length, self.of_answer.inside
            known = (answer_ids[:, :length] != IGNORE).to(logits.device)
            is_same = same_beyond(model, logits[:, :length], self.answers[:, :length], known, inside)
        if is_same and request.max_new_tokens:
            is_same = same_tokens(model, tokens, self.steps, request.eos) and self._is_same_beyond(
                model, tokens, request
            )
        if not is_same:
            raise CannotDriveError(OTHER_ANSWERS)
        # rows may have ended before they got out of the window
        is_short = self.probe.kind[1] == "across"
        measured = self.steps.tokens.shape[1] - self.probe.inside if is_short else self.probe.beyond
        driven_kinds = _DRIVEN.setdefault(model, {})
        driven_kinds[self.kind] = max(measured, driven_kinds.get(self.kind, -1))

    def _is_same_beyond(self, model: nn.Module, tokens: Tensor, request: Request) -> bool:
        """Whether the logits of decoded tokens are the same behind the end of a window, as long as the tokens are."""
        expected = self.steps.tokens.cpu()
        differs = tokens[:, : expected.shape[1]] != expected
        over = differs | torch.isin(expected, torch.tensor(request.eos, dtype=torch.long))
        known = over.cumsum(1) - over.long() == 0  # up to the first one that differs or ends a row
        known[:, : self.probe.inside + 1] = False
        logits = self.steps.logits
        return same_beyond(model, self.decoded, logits, known.to(logits.device), self.probe.inside)


def under(
    model: nn.Module, masks: MaskSet, index: int, path: str | None, phases: Phases = BOTH
) -> AbstractContextManager[nn.Module]:
    """`masked` by one mask of a set."""
    how: dict[str, Any] = {"granularity": masks.granularity, "tokens": masks.kinds[index], **phases._asdict()}
    return masked(model, masks[index], blocks=path, **how)


def compare(
    model: nn.Module, request: Request, masks: MaskSet, index: int, path: str | None, how: str
) -> Comparison | None:
    """What to compare the engine with under a mask; None where a request of this kind was answered before."""
    inputs, ids, in_phases = request.inputs, request.one_for_each(), request.in_phases
    probe = probe_of(model, inputs, request.max_new_tokens)
    of_answer = None if ids is None else probe_of(model, inputs, longest_answer(ids))
    masking = masks.granularity, masks.kinds[index], request.phases
    kind = how, masking, probe.kind, of_answer and (of_answer.kind, of_answer.beyond, in_phases)
    if _DRIVEN.get(model, {}).get(kind, -1) >= probe.beyond:
        return None
    with under(model, masks, index, path, request.phases):
        longest = max(1, request.max_new_tokens)
        steps = plain_steps(model, inputs, longest, request.eos, request.pad, max(1, probe.length))
        found = Comparison(kind, probe, steps, torch.full_like(steps.logits, torch.nan))
        if ids is None or of_answer is None:
            return found
        way = scoring_way(model, inputs, ids, request.pad, in_phases)
        answers = answer_logits(model, inputs, ids[:, : of_answer.length], request.pad, way)
        return found._replace(of_answer=of_answer, answers=answers)
