"""Answer one batch under many block masks in one pass, or under one mask per row.

Equal to `masked` + plain greedy ``generate`` of each mask alone, token for token in float32 up to exact ties; several
times cheaper, because vision and shared leading blocks run once and all masks decode together.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import (
    MAX_TOKENS,
    check_goes_on,
    check_least,
    check_range,
    check_token_ids,
    checked,
    fits,
    prompt_inputs,
)
from lit_depth.functional.engine.comparison import OTHER_ANSWERS, Request, under
from lit_depth.functional.engine.decode import answer_in_chunks, answer_one_by_one, answer_rows, asks_for_more
from lit_depth.functional.engine.decoding_configuration import CannotDriveError, check_generates
from lit_depth.functional.engine.drivers import TrieDriver
from lit_depth.functional.engine.greedy_tokens import GreedyTokens, check_without_penalties
from lit_depth.functional.engine.memory import call_width
from lit_depth.functional.engine.phases import BOTH, Phases
from lit_depth.functional.engine.proof import kind_of, same_logits
from lit_depth.functional.engine.rows import up_to_stop
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.engine.two_depths import DraftPhase
from lit_depth.functional.inputs import check_answers
from lit_depth.functional.lens import LensReading
from lit_depth.functional.masking.blocks import context_length, find_blocks, find_decoder
from lit_depth.functional.masking.image_tokens import image_token_mask
from lit_depth.functional.masking.skip import Phase
from lit_depth.functional.masking.sublayers import check_attends, check_halves
from lit_depth.functional.masking.support import adds_between_blocks, check_drivable
from lit_depth.functional.masks import Granularity, Masks, MaskSet, Tokens, units_of

T = TypeVar("T")
ONE_BY_ONE = "one mask after another"


class ContinuationScores(NamedTuple):
    """Result of `score_continuations` (M masks, N continuations), on the CPU."""

    logprobs: Tensor  # [M, N], log-probability of all of its tokens together
    num_greedy: Tensor  # [M, N], how many of them are the most likely ones


class SweepOutput(NamedTuple):
    """Result of `sweep_forward` (M masks, B samples, K kept positions)."""

    logits: Tensor  # [M, B, K, vocabulary]
    hidden_states: Tensor  # [M, B, K, hidden], after the last block, before the final norm


@checked
@torch.no_grad()
def sweep_forward(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    *,
    logits_to_keep: int = 0,
    blocks: str | nn.ModuleList | None = None,
    granularity: Granularity | None = None,
    tokens: Tokens | Sequence[Tokens] = "all",
) -> SweepOutput:
    """One forward of the model for all masks; one each, with one warning, where the engine cannot drive the model.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        inputs: Model inputs, each with one row per sample.
        masks: Block masks, bool ``[masks, num_blocks]``; for sublayers ``[masks, 2 * num_blocks]``.
        logits_to_keep: Positions from the end to compute logits for; 0 = all.
        blocks: The blocks, or their dotted path, where they cannot be found.
        granularity: What one unit of a mask switches, see `masked`; None = what a `MaskSet` says, else a block.
        tokens: Which tokens skip blocks (see `masked`), under all masks or under each one. Masks of ``visual_drop``
            are answered one after another.

    Raises:
        ValueError: If a mask is malformed, or the model's blocks cannot be skipped (see `masked`).
    """
    module_list = blocks if isinstance(blocks, nn.ModuleList) else find_blocks(model, blocks)
    masks = masks_of(masks, module_list, granularity, tokens)
    inputs = prompt_inputs(model, inputs)
    check_least(0, logits_to_keep=logits_to_keep)
    path = next((name for name, module in model.named_modules() if module is module_list), None)
    arguments = (model, inputs, masks, module_list, path, logits_to_keep)
    if _leave(masks):
        return _forward_one_by_one(*arguments)
    return driven_or_not(
        model,
        module_list,
        lambda: _forward_together(*arguments),
        lambda: _forward_one_by_one(*arguments),
        how=_one_by_one_of(masks),
    )


def _forward_together(
    model: nn.Module, inputs: Mapping[str, Tensor], masks: MaskSet, blocks: nn.ModuleList, path: str | None, keep: int
) -> SweepOutput:
    adds = adds_between_blocks(find_decoder(model, blocks))
    is_image = image_token_mask(model, inputs) if masks.tokens else None
    driver = TrieDriver(MaskTrie(masks), call_width(model, inputs), None, keep=keep, adds=adds, is_image=is_image)
    with driver.driving(blocks):
        logits, states = _logits_and_states(model, inputs, blocks)
    driver.check_logits(logits)
    found = SweepOutput(logits.unflatten(0, (len(masks), -1)), states.unflatten(0, (len(masks), -1)))
    first = next((index for index in range(len(masks)) if asks_for_more(masks, index)), 0)
    masking = masks.granularity, masks.kinds[first]
    kinds, kind = _COMPARED.setdefault(model, set()), (masking, kind_of(model, inputs, 0))
    if kind not in kinds:
        expected = _forward_one_by_one(model, inputs, masks.take([first]), blocks, path, keep).logits[0]
        if found.logits[first].shape != expected.shape or not same_logits(model, found.logits[first], expected):
            raise CannotDriveError(OTHER_ANSWERS)
        kinds.add(kind)
    return found


def _forward_one_by_one(
    model: nn.Module, inputs: Mapping[str, Tensor], masks: MaskSet, blocks: nn.ModuleList, path: str | None, keep: int
) -> SweepOutput:
    found = []
    for index in range(len(masks)):
        with under(model, masks, index, path):
            found.append([each[:, -keep:] for each in _logits_and_states(model, inputs, blocks)])
    return SweepOutput(*map(torch.stack, zip(*found)))


def _logits_and_states(model: nn.Module, inputs: Mapping[str, Tensor], blocks: nn.ModuleList) -> tuple[Tensor, Tensor]:
    states: list[Tensor] = []
    hook = blocks[-1].register_forward_hook(
        lambda _module, _args, output: states.append(output if isinstance(output, Tensor) else output[0])
    )
    try:
        return model(**inputs, use_cache=False).logits, states[0]
    finally:
        hook.remove()


@checked
def sweep_generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    max_rows: int | None = None,
    blocks: str | None = None,
    granularity: Granularity = "block",
    tokens: Tokens | Sequence[Tokens] = "all",
) -> Tensor:
    """Greedy answers of a batch under every mask.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``.
        inputs: Left-padded prompt: ``input_ids`` and ``attention_mask`` ``[batch, seq]`` and the model's image tensors.
        masks: Block masks, bool ``[masks, num_blocks]``; for sublayers ``[masks, 2 * num_blocks]``.
        max_new_tokens: Longest answer.
        eos_token_id: Token (or tokens) that end an answer; None = never.
        pad_token_id: Fills a row after its end.
        max_rows: Most (mask, sample) rows at once; None = see `lit_depth.functional.engine.memory.affordable_bytes`.
        blocks: Dotted path of the blocks where they cannot be found.
        granularity: What one unit of a mask switches, see `masked`.
        tokens: As for `sweep_forward`.

    Returns:
        Long ``[masks, batch, max_new_tokens]``, on the CPU.

    Raises:
        ValueError: If a mask is malformed, the model's blocks cannot be skipped, or it has no ``generate``; if a
            prompt is not padded on the left alone, or is too long for the model's context with what is to follow.
    """
    check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
    return answer_masks(
        model,
        inputs,
        masks,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_rows=max_rows,
        blocks=blocks,
        granularity=granularity,
        tokens=tokens,
    )[0]


@checked
@torch.no_grad()
def answer_masks(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    answer_ids: Tensor | None = None,
    max_rows: int | None = None,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: Phase = "both",
    decode_without_prompt: bool = False,
    tokens: Tokens | Sequence[Tokens] = "all",
    on_mask: Callable[[], Any] = lambda: None,
    stop: Callable[[Tensor], Tensor] | None = None,
    on_lens: Callable[[LensReading], Any] | None = None,
    on_greedy: Callable[[GreedyTokens], Any] | None = None,
    acceptance: int = 0,
) -> tuple[Tensor, Tensor]:
    """`sweep_generate`, and in the same pass the log-probability of a reference answer under every mask.

    A model that the engine cannot drive is answered one mask after another, with one warning. When CUDA memory runs
    out, fewer masks are taken at once, now and in later calls.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        answer_ids: Tokens of the reference answer ``[batch, answer]``, padded on the right with -100; None = score
            nothing.
        max_new_tokens: Longest answer; 0 = only score, which decodes nothing and keeps no keys and values.
        tokens: As for `sweep_forward`.
        phase: Forwards that the masks apply to, see `masked`, like ``decode_without_prompt``. The log-probability is
            then that of an answer decoded on the prompt's cache.
        on_mask: Called after each finished mask, for progress.
        stop: Says of each row of answers so far, long ``[rows, tokens]`` on the CPU, whether it ends there, as a bool
            ``[rows]``; None = answers end at ``eos_token_id`` alone.
        on_lens: Called with what `logit_lens` reads of the reference answers, where the full model is among the masks:
            its states are those of the same pass. Should the engine fail, it is called once more.
        on_greedy: Called with the most likely tokens at the positions of the reference answers, of the same forward
            that gives their log-probability, and with those of ``acceptance``.
        acceptance: How many tokens of the full model's own answer to read under every mask, where the full model is
            among the masks; at most ``max_new_tokens`` are. What a mask takes to be most likely there is what it would
            draft in speculative decoding. Read on the prompts' keys and values, and only where a mask has decoded
            something else before.

    Returns:
        Generated tokens, long ``[masks, batch, max_new_tokens]``, and the mean log-probability of the reference answer,
        float32 ``[masks, batch]`` (``[masks, 0]`` without one); both on the CPU.
    """
    inputs = prompt_inputs(model, inputs)
    check_range(0, MAX_TOKENS, max_new_tokens=max_new_tokens)
    if answer_ids is not None:
        check_answers(model, answer_ids, len(inputs["input_ids"]))
    request = Request(inputs, max_new_tokens, end_tokens(model, eos_token_id), pad_token_id, answer_ids)
    masks = masks_of(masks, find_blocks(model, blocks), granularity, tokens)
    check_least(0, acceptance=acceptance)
    if acceptance:
        check_without_penalties(model)
    acceptance = min(acceptance, max_new_tokens) if on_greedy is not None else 0
    request = request._replace(stop=stop, on_lens=on_lens, on_greedy=on_greedy, acceptance=acceptance)
    request = request._replace(phases=Phases(phase, decode_without_prompt))
    found, logprobs = _answer(model, request, masks, max_rows, blocks, on_mask)
    return up_to_stop(found, request), logprobs


def _answer(
    model: nn.Module,
    request: Request,
    masks: MaskSet,
    max_rows: int | None,
    blocks: str | None,
    on_mask: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    module_list = find_blocks(model, blocks)
    check_goes_on(request.inputs, request.max_new_tokens, context_length(model))
    check_least(1, max_rows=max_rows)
    check_token_ids(model, pad_token_id=request.pad)
    check_generates(model)
    _check_phases(model, request, masks, blocks)
    if _leave(masks):
        return answer_one_by_one(model, request, masks, blocks, on_mask)
    return driven_or_not(
        model,
        module_list,
        lambda: answer_in_chunks(model, request, masks, max_rows, module_list, blocks, on_mask),
        lambda: answer_one_by_one(model, request, masks, blocks, on_mask),
        request.check_length(model),
        _one_by_one_of(masks, request.phases),
    )


def _check_phases(model: nn.Module, request: Request, masks: MaskSet, path: str | None) -> None:
    """Raise as `masked` does where masks of a kind cannot apply to the phases that are asked for."""
    if request.phases != BOTH:
        other = next((index for index, kind in enumerate(masks.kinds) if kind != "all"), 0)
        under(model, masks, other, path, request.phases)


def _one_by_one_of(masks: MaskSet, phases: Phases = BOTH) -> str:
    """How masks are answered without the engine: what it cannot drive in one way, it may drive in another."""
    if phases.differ:
        return "one mask of a phase after another"
    return "one mask of sublayers after another" if masks.granularity == "sublayer" else ONE_BY_ONE


def masks_of(
    masks: Masks,
    blocks: nn.ModuleList,
    granularity: Granularity | None = None,
    tokens: Tokens | Sequence[Tokens] | None = None,
) -> MaskSet:
    """Masks of a model, see `MaskSet.of`.

    Raises:
        ValueError: As `MaskSet.of`; masks of sublayers for blocks that cannot be halved, or of MLPs only.
    """
    if granularity is None:
        granularity = masks.granularity if isinstance(masks, MaskSet) else "block"
    found = MaskSet.of(masks, units_of(len(blocks), granularity), granularity, tokens)
    if granularity == "sublayer":
        check_halves(blocks)
        check_attends(found.bits)
    return found


def _leave(masks: MaskSet) -> bool:
    """Whether image tokens leave the sequence under any of the masks, which are then answered one after another.

    Whether a decoded token sees an image token depends on the block there, which a shared cache does not tell.
    """
    return "visual_drop" in masks.kinds


@checked
@torch.no_grad()
def score_continuations(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    continuation_ids: Tensor,
    rows: Tensor | None = None,
    *,
    pad_token_id: int,
    max_rows: int | None = None,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: Phase = "both",
    decode_without_prompt: bool = False,
    tokens: Tokens | Sequence[Tokens] = "all",
    on_mask: Callable[[], Any] = lambda: None,
    on_lens: Callable[[LensReading], Any] | None = None,
) -> ContinuationScores:
    """Log-probabilities of texts behind their prompts under every mask, such as the options of multiple choice.

    A prompt is read once for each group of masks, and its continuations on its keys and values.

    Args:
        model: As for `answer_masks`, like the arguments not named here.
        continuation_ids: Tokens ``[continuations, tokens]``, padded on the right with -100.
        rows: The prompt of each continuation, long ``[continuations]``; each prompt has one at least. None = one for
            each prompt.
        on_lens: See `answer_masks`; of every continuation.

    Returns:
        Both float32 ``[masks, continuations]``, on the CPU.

    Raises:
        ValueError: As `answer_masks`, or if ``rows`` names no prompt, or leaves one out.
    """
    inputs = prompt_inputs(model, inputs)
    prompts = len(inputs["input_ids"])
    check_answers(model, continuation_ids, prompts if rows is None else len(rows))
    if rows is not None and set(rows.tolist()) != set(range(prompts)):
        raise ValueError(f"expected rows with each of the prompts 0 to {prompts - 1}, got {sorted(set(rows.tolist()))}")
    if rows is not None and rows.tolist() == list(range(prompts)):
        rows = None
    request = Request(inputs, 0, (), pad_token_id, continuation_ids, rows, summed=True, on_lens=on_lens)
    request = request._replace(phases=Phases(phase, decode_without_prompt))
    masks = masks_of(masks, find_blocks(model, blocks), granularity, tokens)
    _, found = _answer(model, request, masks, max_rows, blocks, on_mask)
    return ContinuationScores(*found.unbind(-1))


@checked
@torch.no_grad()
def generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: DraftPhase = "both",
) -> Tensor:
    """Greedy answers of a batch in which every request has its own depth.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        masks: One mask per request, bool ``[batch, num_blocks]``; for sublayers ``[batch, 2 * num_blocks]``.
        phase: Forwards that the masks apply to, see `masked`: ``"both"``, or ``"decode"``, where prompts are read by
            the full model.

    Returns:
        Long ``[batch, max_new_tokens]``, on the CPU.

    A model that the engine cannot drive is answered one mask after another, with one warning.

    Raises:
        ValueError: As for `sweep_generate`, or unless there is one mask per request.
    """
    module_list = find_blocks(model, blocks)
    masks = masks_of(masks, module_list, granularity)
    inputs = prompt_inputs(model, inputs)
    check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
    check_goes_on(inputs, max_new_tokens, context_length(model))
    check_token_ids(model, pad_token_id=pad_token_id)
    batch = len(inputs["input_ids"])
    if len(masks) != batch:
        raise ValueError(f"expected one mask per request, got {len(masks)} masks for {batch} requests")
    check_generates(model)
    request = Request(inputs, max_new_tokens, end_tokens(model, eos_token_id), pad_token_id, phases=Phases(phase))
    _check_phases(model, request, masks, blocks)

    def one_by_one() -> Tensor:
        # all rows under each mask: which image belongs to which row is known to the model alone
        distinct = masks.unique()
        of_row = torch.tensor([distinct.ids.index(name) for name in masks.ids])
        tokens, _ = answer_one_by_one(model, request, distinct, blocks, lambda: None)
        return tokens[of_row, torch.arange(batch)]

    return driven_or_not(
        model,
        module_list,
        lambda: answer_rows(model, request, masks, module_list, blocks),
        one_by_one,
        request.check_length(model),
        _one_by_one_of(masks, request.phases),
    )


# of each model, for as long as it lives: why the engine failed, whether that was said, and compared forwards
_REFUSED: weakref.WeakKeyDictionary[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()
_WARNED: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
_COMPARED: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()


def driven_or_not(
    model: nn.Module,
    blocks: nn.ModuleList,
    together: Callable[[], T],
    one_by_one: Callable[[], T],
    reason: str | None = None,
    how: str = ONE_BY_ONE,
) -> T:
    """What the engine gives, or where it cannot drive the model, what one mask after another gives, with one warning.

    An error that has nothing to do with the engine comes again in the second attempt.

    Args:
        reason: Why not to try the engine; None = try.
        how: How the model is answered without it.
    """
    error: str | None = None
    refused = _REFUSED.get(model, {})
    reason = reason or check_drivable(model, blocks) or refused.get(ONE_BY_ONE) or refused.get(how)
    if reason is None:
        try:
            return together()
        except torch.OutOfMemoryError:
            raise
        except CannotDriveError as cause:
            reason = error = str(cause)
        except Exception as cause:
            reason = error = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    found = one_by_one()
    if error is not None:
        _REFUSED.setdefault(model, {})[how] = error
    warned = _WARNED.setdefault(model, set())
    if how not in warned:
        warned.add(how)
        warnings.warn(f"{type(model).__name__} is answered {how}: {reason}", stacklevel=4)
    return found


def end_tokens(model: nn.Module, eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """Tokens that end an answer, which the model knows."""
    several: Any = [] if eos_token_id is None else [eos_token_id] if fits(eos_token_id, int) else eos_token_id
    ids = tuple(int(each) for each in several)
    for each in ids:
        check_token_ids(model, eos_token_id=each)
    return ids
