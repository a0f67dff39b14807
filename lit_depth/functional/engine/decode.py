"""How a chunk of masks is answered: prefill through the trie, then all (mask, sample) rows decoded together.

The steps below `lit_depth.functional.engine.api`, and its bookkeeping: chunks that fit the memory, block calls of a
width that suits the machine, and one mask after another for models that the engine cannot drive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, StoppingCriteriaList

from lit_depth.functional.engine.comparison import Comparison, Request, compare
from lit_depth.functional.engine.decoding_configuration import PreparedPrompt, generating_model, inside_generate
from lit_depth.functional.engine.drivers import Front, RowDriver, TrieDriver, driven
from lit_depth.functional.engine.memory import affordable_bytes, bytes_per_row, call_width
from lit_depth.functional.engine.proof import Steps
from lit_depth.functional.engine.row_cache import RowCache
from lit_depth.functional.engine.rows import Rows, deal_out, first_tokens
from lit_depth.functional.engine.trie import MaskTrie, chunk_masks
from lit_depth.functional.inputs import Way, filled, is_image_input, proven_logits, scoring_way
from lit_depth.functional.masking.blocks import find_decoder
from lit_depth.functional.masking.image_tokens import image_token_mask
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masking.support import adds_between_blocks
from lit_depth.functional.masks import MaskSet

# how many masks fitted the memory of a GPU, for as long as the model lives
_MASKS_THAT_FIT: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def answer_in_chunks(
    model: nn.Module,
    request: Request,
    masks: MaskSet,
    max_rows: int | None,
    blocks: nn.ModuleList,
    path: str | None,
    on_mask: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    """`lit_depth.functional.engine.api.answer_masks` by the engine.

    The first chunk of a model that was not seen before is compared with what the model gives under one of its masks.

    Raises:
        CannotDriveError: The engine cannot answer the first chunk, or gives other answers than the model.
    """
    tokens, logprobs = request.no_answers(len(masks))
    front: Front | None = None
    # a family's own `generate` may not do without the image
    is_plain = type(generating_model(model)).generate is GenerationMixin.generate
    waiting = plan_chunks(model, request, masks, max_rows)
    # of the first chunk, a mask of image tokens where there is one: the engine has more to do for it
    waiting[0].sort(key=lambda index: masks.kinds[index] == "all" or bool(masks[index].all()))
    first = waiting[0][0]
    check = compare(model, request, masks[first], path, "masks together", masks.kinds[first])
    while waiting:
        chunk = waiting.pop(0)
        try:
            found = _answer_chunk(model, request, masks.take(chunk), blocks, path, front, check)
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            _MASKS_THAT_FIT[model] = fitted = max(1, len(chunk) // 2)
            waiting = _shorten([chunk, *waiting], fitted)
            continue
        tokens[chunk], logprobs[chunk], front = found
        if not is_plain:
            front = None
        check = None
        for _ in chunk:
            on_mask()
    return tokens, logprobs


def plan_chunks(model: nn.Module, request: Request, masks: MaskSet, max_rows: int | None) -> list[list[int]]:
    """Indices of the masks that are answered together."""
    if max_rows is not None:
        chunks = list(chunk_masks(masks, max(1, max_rows // request.num_rows)))
    else:
        # answers that share a prompt are read on its keys and values, as decoded tokens are
        on_cache = max(request.max_new_tokens, request.rows is not None)
        row = partial(bytes_per_row, model, request.inputs, on_cache, request.answer_ids)
        costs = [request.num_rows * row(count) for count in masks.runs.sum(1).tolist()]
        chunks = list(chunk_masks(masks, max(1, affordable_bytes(model, max(costs))), costs))
    return _shorten(chunks, _MASKS_THAT_FIT.get(model, len(masks)))


def _shorten(chunks: Sequence[list[int]], longest: int) -> list[list[int]]:
    return [chunk[start : start + longest] for chunk in chunks for start in range(0, len(chunk), longest)]


def _answer_chunk(
    model: nn.Module,
    request: Request,
    masks: MaskSet,
    blocks: nn.ModuleList,
    path: str | None,
    front: Front | None,
    check: Comparison | None,
) -> tuple[Tensor, Tensor, Front | None]:
    """Answers of some masks, and what a further chunk of the same batch can start from.

    Args:
        check: What the model does under the first of the masks; None = that the engine does so is known.
    """
    way: Way = "steps"
    answer_ids = request.one_for_each()
    if answer_ids is not None:
        with masked(model, masks[0], blocks=path, tokens=masks.kinds[0]):
            way = scoring_way(model, request.inputs, answer_ids, request.pad, request.rows is not None)
    inputs = request.inputs
    if front is not None:
        # pixels are needed once: the front has the embeddings that they went into; sizes and places tell positions
        inputs = {name: v for name, v in inputs.items() if not (is_image_input(name) and v.is_floating_point())}
    answer = partial(_answer_prompt, model, request, masks, blocks, way, front, check)
    return inside_generate(model, inputs, request.options, answer)


def _answer_prompt(
    model: nn.Module,
    request: Request,
    masks: MaskSet,
    blocks: nn.ModuleList,
    way: Way,
    front: Front | None,
    check: Comparison | None,
    prompt: PreparedPrompt,
) -> tuple[Tensor, Tensor, Front | None]:
    prompt.check_processors()
    batch, new_tokens, answer_length = len(prompt.ids), request.max_new_tokens, request.answer_length
    answers = None if request.answer_ids is None else filled(request.answer_ids, request.pad)
    whole = answers is not None and way == "whole"
    trie = MaskTrie(masks)
    # scores alone, of prompt and answer in one forward, need no keys and values afterwards
    is_read_on = new_tokens > 0 or (answers is not None and not whole)
    cache = RowCache(len(blocks), prompt.length + max(new_tokens, answer_length)) if is_read_on else None
    prompt = prompt.with_cache(cache)
    asked = prompt.extended(answers) if whole and answers is not None else prompt
    keep, length = (answer_length + 1, prompt.length + answer_length) if whole else (1, prompt.length)
    width = call_width(model, request.inputs)
    adds = adds_between_blocks(find_decoder(model, blocks))
    is_image = image_token_mask(model, request.inputs) if masks.tokens else None
    shape = batch, length
    driver = TrieDriver(trie, width, cache, keep=keep, front=front, shape=shape, adds=adds, is_image=is_image)
    with driver.driving(blocks):
        logits = asked.forward(keep=keep).logits
    driver.check_logits(logits)
    if cache is not None:
        cache.advance([bool(level.run) for level in trie.levels], length, prompt.length)
    deal = partial(deal_out, prompt, masks, trie, cache)
    rows = None
    if answers is not None and not whole:
        of_prompt = torch.arange(batch) if request.rows is None else request.rows.cpu()
        dealt = (torch.arange(len(masks))[:, None] * batch + of_prompt).flatten()
        rows = deal(dealt)
        read = rows.read(blocks, answers.repeat(len(masks), 1), way)
        logits = torch.cat([logits[dealt.to(logits.device), -1:], *read], dim=1)
    scored = request.score(logits, len(masks))
    of_one_mask = None if check is None else logits[request.firsts().to(logits.device)]
    tokens, first, open_rows = first_tokens(
        prompt, logits, request, len(masks), drafts=request.answer_ids if check is None else None
    )
    del logits
    if len(open_rows):
        rows = deal(open_rows) if rows is None else rows.keep(open_rows)
        note = None if check is None else lambda step, rows, found: check.note(step, open_rows[rows], found)
        tokens[open_rows] = rows.decode(blocks, first, request, note)
    if check is not None and of_one_mask is not None:
        check.check(model, of_one_mask, tokens[:batch], request)
    return tokens.unflatten(0, (len(masks), batch)), scored, driver.front


def answer_rows(model: nn.Module, request: Request, masks: MaskSet, blocks: nn.ModuleList, path: str | None) -> Tensor:
    """`lit_depth.functional.engine.api.generate` by the engine: one mask per row.

    Raises:
        CannotDriveError: The engine cannot answer the batch, or gives other answers than the model.
    """
    check = compare(model, request, masks[0], path, "one mask per row")
    if check is not None:  # its mask is that of the first row alone
        steps = Steps(*(part[:1] for part in check.steps))
        check = check._replace(steps=steps, decoded=check.decoded[:1])

    def answer(prompt: PreparedPrompt) -> Tensor:
        prompt.check_processors()
        cache = RowCache(len(blocks), prompt.length + request.max_new_tokens)
        prompt = prompt.with_cache(cache)
        driver = RowDriver(masks.bits.to(prompt.ids.device), shape=(len(masks), prompt.length))
        with driven(blocks, driver.make_forward):
            logits = prompt.forward().logits[:, -1]
        cache.advance(driver.ran, prompt.length)
        rows = Rows(prompt.for_decoding(torch.arange(len(masks), device=logits.device)), driver, cache)
        tokens = rows.decode(blocks, prompt.next_tokens(logits), request, None if check is None else check.note)
        if check is not None:
            check.check(model, logits[:1, None], tokens[:1], request)
        return tokens

    return inside_generate(model, request.inputs, request.options, answer)


def answer_one_by_one(
    model: nn.Module,
    request: Request,
    masks: MaskSet,
    path: str | None,
    on_mask: Callable[[], Any],
    **phases: Any,
) -> tuple[Tensor, Tensor]:
    """``answer_masks`` of `lit_depth.functional.engine.api` by `masked` and ``generate``; ``phases`` as in `masked`."""
    length = request.inputs["input_ids"].shape[1]
    tokens, logprobs = request.no_answers(len(masks))
    for index, mask in enumerate(masks):
        tokens_of = masks.kinds[index]
        with masked(model, mask, blocks=path, granularity=masks.granularity, tokens=tokens_of, **phases):
            for answers in _turns(request):
                ids = request.answer_ids[answers]  # type: ignore[index]
                logits = proven_logits(model, request.inputs, ids, request.pad, bool(phases))
                logprobs[index, answers] = request._replace(answer_ids=ids).score(logits, 1)[0]
            if request.max_new_tokens:
                options = {**request.options, "stopping_criteria": _criteria(request, length)}
                found = model.generate(**request.inputs, **options)[:, length:]  # type: ignore[operator]
                tokens[index, :, : found.shape[1]] = found.cpu()
        on_mask()
    return tokens, logprobs


def _criteria(request: Request, length: int) -> StoppingCriteriaList:
    """What stops ``generate``, whose tokens begin with a prompt of that length."""
    stop = request.stop
    if stop is None:
        return StoppingCriteriaList()
    return StoppingCriteriaList([lambda ids, _scores, **_: stop(ids[:, length:].cpu()).to(ids.device)])


def _turns(request: Request) -> list[list[int]]:
    """Answers by turns, of which each has one for every prompt: which image belongs to which row, a model knows alone.

    A prompt without a further answer repeats its first one.
    """
    if request.answer_ids is None:
        return []
    if request.rows is None:
        return [list(range(len(request.answer_ids)))]
    prompts = range(len(request.inputs["input_ids"]))
    of_prompt = [(request.rows == prompt).nonzero().flatten().tolist() for prompt in prompts]
    return [
        [answers[turn] if turn < len(answers) else answers[0] for answers in of_prompt]
        for turn in range(max(map(len, of_prompt)))
    ]
