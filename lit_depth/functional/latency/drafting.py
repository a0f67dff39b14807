"""When drafts pay: the time that speculative decoding is expected to take, and what its steps cost.

Leviathan, Kalman and Matias 2023 (arXiv:2211.17192). A draft of ``n`` tokens, each accepted with probability ``a``
while all before it were, gives ``E = (1 - a^(n + 1)) / (1 - a)`` tokens in a round (their equation 1), the full model's
own among them. With ``d`` the time of a draft step and ``v(m)`` that of a forward of the full model over ``m`` tokens,
decoding is ``E v(1) / (n d + v(n + 1))`` times as fast as without drafts; where ``v`` is the same for all ``m``, that
is their theorem 3.8. Answers end, and so do drafts at an end token: `expected_ms` follows the rounds of one answer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import check_least, check_range
from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.decoding_configuration import PreparedPrompt, inside_generate
from lit_depth.functional.engine.two_depths import DraftPhase, reading
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.masks import Masks, MaskSet


class DraftCosts(NamedTuple):
    """Milliseconds of the steps of one request.

    Attributes:
        prompt: Reading the prompt as the full model alone.
        both: Reading it as the draft too, by mask.
        draft: One draft step, by mask.
        verify: A forward of the full model over 1, 2, ... tokens; the first is a step of plain decoding.
    """

    prompt: float
    both: Mapping[str, float]
    draft: Mapping[str, float]
    verify: Sequence[float]


def tokens_per_round(acceptance: float, num_draft: int) -> float:
    """Tokens that a round is expected to give, where no answer ends.

    >>> tokens_per_round(0.5, 2), tokens_per_round(1.0, 3), tokens_per_round(0.0, 5)
    (1.75, 4.0, 1.0)
    """
    check_range(0, 1, acceptance=acceptance)
    return float(sum(acceptance**place for place in range(num_draft + 1)))


def decoding_speedup(acceptance: float, num_draft: int, draft_ms: float, verify_ms: Sequence[float]) -> float:
    """How many times as fast decoding is with drafts as without, where no answer ends.

    Args:
        verify_ms: Of 1, 2, ... tokens, up to ``num_draft + 1``.

    >>> decoding_speedup(0.8, 3, draft_ms=2.0, verify_ms=[10.0, 10.0, 10.0, 10.0])
    1.845
    """
    round_ms = num_draft * draft_ms + verify_ms[num_draft]
    return round(tokens_per_round(acceptance, num_draft) * verify_ms[0] / round_ms, 12)


def expected_ms(
    num_tokens: int, acceptance: float, num_draft: int, draft_ms: float, verify_ms: Sequence[float]
) -> float:
    """Time that decoding is expected to take for the tokens of an answer behind its first, the end token included.

    The last draft is no longer than what is left of the answer. Without drafts it is ``num_tokens * verify_ms[0]``.

    >>> expected_ms(3, 1.0, 2, draft_ms=1.0, verify_ms=[10.0, 11.0, 12.0])
    14.0
    """
    check_least(0, num_tokens=num_tokens, num_draft=num_draft)
    check_range(0, 1, acceptance=acceptance)
    left = [0.0]  # time for so many tokens
    for tokens in range(1, num_tokens + 1):
        drafted = min(num_draft, tokens)
        costs = drafted * draft_ms + verify_ms[drafted]
        for agreed in range(drafted):
            costs += acceptance**agreed * (1 - acceptance) * left[tokens - agreed - 1]
        left.append(costs + acceptance**drafted * left[max(0, tokens - drafted - 1)])
    return left[-1]


@torch.no_grad()
def time_steps(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    max_draft: int,
    *,
    max_new_tokens: int,
    repeats: int = 3,
    blocks: str | None = None,
    pad_token_id: int = 0,
    phase: DraftPhase = "both",
) -> DraftCosts:
    """Time each step that speculative decoding of one request is made of; medians of ``repeats``.

    Args:
        model: As for `speculative_generate`.
        inputs: One request.
        masks: Those that may draft.
        max_draft: Longest draft.
        max_new_tokens: Tokens that there is room for behind the prompt; longer than the longest draft.
        phase: As for `speculative_generate`.

    Raises:
        ValueError: If the request has several rows, or there is no room for a draft.
        CannotDriveError: If the engine cannot drive the model.
    """
    module_list = find_blocks(model, blocks)
    masks, full = MaskSet.of(masks, len(module_list), "block"), MaskSet.full(len(module_list))
    check_least(1, max_draft=max_draft, repeats=repeats)
    if len(inputs["input_ids"]) != 1 or max_new_tokens <= max_draft + 1:
        rows = len(inputs["input_ids"])
        raise ValueError(
            f"expected one request with room for more than {max_draft + 1} new tokens, got {rows} and {max_new_tokens}"
        )
    request = Request(inputs, max_new_tokens, (), pad_token_id)

    def read(draft: MaskSet, lengths: Sequence[int], prompt: PreparedPrompt) -> tuple[float, list[float]]:
        """Times of the prompt, and of a draft step and of forwards of the full model over some tokens."""
        begun = time.perf_counter()
        with reading(model, request, prompt, draft, module_list, phase) as (logits, row):
            first = int(logits[0].argmax(-1))
            prompt_ms = _since(begun)
            one = row(0)
            one.accept([first])
            steps: list[Callable[[], Any]] = [partial(one.verify, [first] * (length - 1)) for length in lengths]
            return prompt_ms, _medians(steps or [partial(one.draft, 1, ())], partial(one.accept, []), repeats)

    def timed(draft: MaskSet, lengths: Sequence[int] = ()) -> tuple[float, list[float]]:
        return inside_generate(model, inputs, request.options, partial(read, draft, lengths))

    timed(full, [1])  # what a first call sets up is no cost
    prompt_ms, verify = timed(full, range(1, max_draft + 2))
    found = {masks.id_of(mask): timed(masks.take([index])) for index, mask in enumerate(masks)}
    both = {name: time_ms for name, (time_ms, _) in found.items()}
    return DraftCosts(prompt_ms, both, {name: step_ms for name, (_, (step_ms,)) in found.items()}, verify)


def _medians(steps: Sequence[Callable[[], Any]], forget: Callable[[], Any], repeats: int) -> list[float]:
    """Median time of each step; all of them by turns, so that a drift of the machine meets all."""
    times = np.zeros((repeats + 1, len(steps)))
    for turn, place in itertools.product(*map(range, times.shape)):
        begun = time.perf_counter()
        steps[place]()  # its tokens are read, so a GPU has ended
        times[turn, place] = _since(begun)
        forget()
    return np.median(times[1:], axis=0).tolist()


def _since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000


class DraftChoice(NamedTuple):
    """A mask and a length of drafts, and what is expected of them.

    Attributes:
        mask_id: The mask.
        num_draft: Tokens that are drafted before they are checked.
        acceptance: Share of drafts that are the full model's own, while all before them are.
        speedup: Time of the requests without drafts over that with them, the prompt included.
        decoding_speedup: The same of decoding alone, where no answer ends, see the module.
    """

    mask_id: str
    num_draft: int
    acceptance: float
    speedup: float
    decoding_speedup: float


def best_draft(
    mask_id: str, acceptance: float, costs: DraftCosts, num_tokens: Sequence[int], max_draft: int
) -> DraftChoice:
    """The length of drafts by which a mask is expected to save most.

    Args:
        num_tokens: Tokens behind the first of each answer.
    """
    lengths, counts = np.unique(np.asarray(num_tokens, dtype=int), return_counts=True)
    plain = costs.prompt * counts.sum() + float(costs.verify[0] * (lengths * counts).sum())
    choices = []
    for num_draft in range(1, max_draft + 1):
        steps = (num_draft, costs.draft[mask_id], costs.verify)
        decoding = sum(
            count * expected_ms(int(tokens), acceptance, *steps) for tokens, count in zip(lengths, counts.tolist())
        )
        speedup = float(plain / (costs.both[mask_id] * counts.sum() + decoding))
        choices.append(DraftChoice(mask_id, num_draft, acceptance, speedup, decoding_speedup(acceptance, *steps)))
    return max(choices, key=lambda choice: choice.speedup)
