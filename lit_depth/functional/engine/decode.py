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

from lit_depth.functional.engine.comparison import Comparison, Request, compare, under
from lit_depth.functional.engine.decoding_configuration import PreparedPrompt, generating_model, inside_generate
from lit_depth.functional.engine.drivers import Front, RowDriver, TrieDriver, driven
from lit_depth.functional.engine.greedy_tokens import (
    OPEN,
    GreedyTokens,
    full_first,
    full_place,
    greedy_along,
    known_along,
    own_answers,
)
from lit_depth.functional.engine.memory import affordable_bytes, bytes_per_row, call_width, logits_bytes
from lit_depth.functional.engine.phases import BOTH, Phases
from lit_depth.functional.engine.proof import Steps
from lit_depth.functional.engine.row_cache import RowCache
from lit_depth.functional.engine.rows import Rows, deal_out, first_tokens
from lit_depth.functional.engine.trie import MaskTrie, chunk_masks
from lit_depth.functional.inputs import Way, filled, is_image_input, proven_logits, scoring_way
from lit_depth.functional.lens import lens_logits
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.image_tokens import image_token_mask
from lit_depth.functional.masking.support import adds_between_blocks
from lit_depth.functional.masks import MaskSet
from lit_depth.functional.shards import holders_of

# how many masks fitted the memory of a GPU, for as long as the model lives
_MASKS_THAT_FIT: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()

# how much more than is affordable the last chunk may take, so that a few masks need no chunk of their own
_STRETCH = 9 / 8


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
    greedy, full = GreedyTokens.nothing(request, len(masks)), full_place(masks) if request.acceptance else None
    front: Front | None = None
    # a family's own `generate` may not do without the image
    is_plain = type(generating_model(model)).generate is GenerationMixin.generate
    waiting = full_first(plan_chunks(model, request, masks, max_rows), full)
    # of the first chunk, a mask that skips otherwise than whole blocks in both phases: the engine has more to do for it
    waiting[0].sort(key=lambda index: not asks_for_more(masks, index, request.phases))
    check = compare(model, request, masks, waiting[0][0], path, "masks together")
    while waiting:
        chunk = waiting.pop(0)
        try:
            found = _answer_chunk(model, request, masks.take(chunk), blocks, path, front, check)
        except torch.OutOfMemoryError:
            # processes that hold a model together cannot tell that one of them is out of memory
            if len(chunk) == 1 or holders_of(model) > 1:
                raise
            _MASKS_THAT_FIT[model] = fitted = max(1, len(chunk) // 2)
            waiting = full_first(_shorten([chunk, *waiting], fitted), None if request.own is not None else full)
            continue
        tokens[chunk], logprobs[chunk], front, best = found
        greedy.put(chunk, best)
        if full in chunk:
            request = request._replace(own=own_answers(tokens[full], request))
        if not is_plain:
            front = None
        check = None
        for _ in chunk:
            on_mask()
    if request.on_greedy:
        request.on_greedy(greedy)
    return tokens, logprobs


def asks_for_more(masks: MaskSet, index: int, phases: Phases = BOTH) -> bool:
    """Whether a mask skips something else than whole blocks in both phases."""
    is_other = masks.granularity == "sublayer" or masks.kinds[index] != "all" or phases.differ
    return is_other and not bool(masks[index].all())


def plan_chunks(model: nn.Module, request: Request, masks: MaskSet, max_rows: int | None) -> list[list[int]]:
    """Indices of the masks that are answered together."""
    if max_rows is not None:
        chunks = list(chunk_masks(masks, max(1, max_rows // request.num_rows)))
    else:
        # answers that share a prompt are read on its keys and values, as decoded tokens are
        on_cache = max(request.max_new_tokens, request.in_phases)
        # of what is read only the length counts
        widest = max(request.answer_length, request.acceptance)
        read = torch.empty(0, widest) if request.acceptance else request.answer_ids
        row = partial(bytes_per_row, model, request.inputs, on_cache, read)
        costs = [request.num_rows * row(count) for count in request.phases.of_decoding(masks).attends.sum(1).tolist()]
        if (lens := request.lens_of(masks)) is not None:  # logits behind every block
            costs[lens] += masks.attends.shape[1] * request.num_rows * logits_bytes(model, request.answer_ids)
        affordable = max(1, affordable_bytes(model, max(costs)))
        chunks = list(chunk_masks(masks, affordable, costs))
        # a rest of few masks would decode few rows a step, for as many steps
        if len(chunks) > 1 and sum(costs[mask] for mask in chunks[-2] + chunks[-1]) <= _STRETCH * affordable:
            chunks[-2:] = [chunks[-2] + chunks[-1]]
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
) -> tuple[Tensor, Tensor, Front | None, GreedyTokens]:
    """Answers of some masks, what a further chunk of the same batch can start from, and most likely tokens.

    Args:
        check: What the model does under the first of the masks; None = that the engine does so is known.
    """
    way: Way = "steps"
    answer_ids = request.one_for_each()
    if answer_ids is not None:
        with under(model, masks, 0, path, request.phases):
            way = scoring_way(model, request.inputs, answer_ids, request.pad, request.in_phases)
    inputs = request.inputs
    way_of_own: Way = "steps"
    if request.acceptance > 1:
        # whatever the tokens are, they are read alike
        some = inputs["input_ids"][:, -1:].expand(-1, request.acceptance - 1)
        with under(model, masks, 0, path, request.phases):
            way_of_own = scoring_way(model, inputs, some, request.pad, in_phases=True)
    if front is not None:
        # pixels are needed once: the front has the embeddings that they went into; sizes and places tell positions
        inputs = {name: v for name, v in inputs.items() if not (is_image_input(name) and v.is_floating_point())}
    answer = partial(_answer_prompt, model, request, masks, blocks, (way, way_of_own), front, check)
    return inside_generate(model, inputs, request.options, answer)


def _answer_prompt(
    model: nn.Module,
    request: Request,
    masks: MaskSet,
    blocks: nn.ModuleList,
    ways: tuple[Way, Way],
    front: Front | None,
    check: Comparison | None,
    prompt: PreparedPrompt,
) -> tuple[Tensor, Tensor, Front | None, GreedyTokens]:
    prompt.check_processors()
    way, way_of_own = ways
    batch, new_tokens, answer_length = len(prompt.ids), request.max_new_tokens, request.answer_length
    answers = None if request.answer_ids is None else filled(request.answer_ids, request.pad)
    whole = answers is not None and way == "whole"
    trie, going_on = MaskTrie(request.phases.of_prompt(masks)), request.phases.of_decoding(masks)
    # scores alone, of prompt and answer in one forward, need no keys and values afterwards
    is_read_on = new_tokens > 0 or (answers is not None and not whole)
    cache = RowCache(len(blocks), prompt.length + max(new_tokens, answer_length)) if is_read_on else None
    prompt = prompt.with_cache(cache)
    asked = prompt.extended(answers) if whole and answers is not None else prompt
    keep, length = (answer_length + 1, prompt.length + answer_length) if whole else (1, prompt.length)
    width = call_width(model, request.inputs)
    adds = adds_between_blocks(find_decoder(model, blocks))
    lens, num_rows = request.lens_of(masks), len(masks) * batch
    is_image = image_token_mask(model, request.inputs) if masks.tokens else None
    shape = batch, length
    driver = TrieDriver(trie, width, cache, keep, front, shape, adds, lens=lens, is_image=is_image)
    with driver.driving(blocks):
        logits = asked.forward(keep=keep).logits
    driver.check_logits(logits)
    logits, behind = logits[:num_rows], logits[num_rows:]
    if cache is not None:
        cache.advance([bool(level.run) for level in trie.levels[:: masks.units_per_block]], length, prompt.length)
    deal = partial(deal_out, prompt, going_on, trie, cache, again=request.acceptance > 1)
    rows = None
    if answers is not None and not whole:
        of_prompt = torch.arange(batch) if request.rows is None else request.rows.cpu()
        dealt = (torch.arange(len(masks))[:, None] * batch + of_prompt).flatten()
        rows = deal(dealt)
        own = None if lens is None else slice(lens * len(of_prompt), (lens + 1) * len(of_prompt))
        read = list(rows.read(blocks, answers.repeat(len(masks), 1), way, own))
        logits = torch.cat([logits[dealt.to(logits.device), -1:], *(piece[: len(dealt)] for piece in read)], dim=1)
        if lens is not None:
            behind = behind.unflatten(0, (-1, batch))[:, of_prompt.to(behind.device), -1:].flatten(0, 1)
            behind = torch.cat([behind, *(piece[len(dealt) :] for piece in read)], dim=1)
        del read
    if lens is not None:
        count = len(logits) // len(masks)
        request.read_lens(torch.cat([behind, logits[lens * count : (lens + 1) * count]]))
    del behind
    scored = request.score(logits, len(masks))
    greedy, best = GreedyTokens.nothing(request, len(masks)), None
    if request.on_greedy and request.answer_ids is not None:
        best = logits.argmax(-1)
        given = request.answer_ids.repeat(len(masks), 1)
        greedy.reference[:] = greedy_along(best, given).unflatten(0, (len(masks), batch))
    of_one_mask = None if check is None else logits[request.firsts().to(logits.device)]
    tokens, first, open_rows = first_tokens(
        prompt,
        logits,
        request,
        len(masks),
        drafts=request.answer_ids if check is None else None,
        best=best,
    )
    del logits
    if len(open_rows):
        rows = deal(open_rows) if rows is None else rows.keep(open_rows)
        note = None if check is None else lambda step, rows, found: check.note(step, open_rows[rows], found)
        tokens[open_rows] = rows.decode(blocks, first, request, note)
    if check is not None and of_one_mask is not None:
        check.check(model, of_one_mask, tokens[:batch], request)
    of_masks, full = tokens.unflatten(0, (len(masks), batch)), full_place(masks)
    answer = own_answers(of_masks[full], request) if request.own is None and full is not None else request.own
    if answer is not None and cache is not None and request.acceptance:
        cache.extent.length = prompt.length
        along = known_along(tokens, answer.repeat(len(masks), 1))
        _read_own(along, filled(answer, request.pad), blocks, way_of_own, partial(deal, again=False))
        greedy.own[:] = along.unflatten(0, (len(masks), batch))
    return of_masks, scored, driver.front, greedy


def _read_own(along: Tensor, answers: Tensor, blocks: nn.ModuleList, way: Way, deal: Callable[[Tensor], Rows]) -> None:
    """Fill in the tokens that are still open in `known_along`, by reading the full model's answers on the prompts.

    Args:
        along: Of all (mask, sample) rows.
        answers: The full model's tokens ``[batch, acceptance]``, filled behind their ends.
        deal: Gives rows (indices) their prompts' keys and values.
    """
    unread = (along == OPEN).any(1).nonzero().flatten()
    if not len(unread):
        return
    rows = deal(unread)
    pieces = rows.read(blocks, answers[unread % len(answers), :-1].to(rows.prompt.ids.device), way)
    further = torch.cat([piece.argmax(-1).cpu() for piece in pieces], dim=1)
    along[unread, 1:] = torch.where(along[unread, 1:] == OPEN, further, along[unread, 1:])


def answer_rows(model: nn.Module, request: Request, masks: MaskSet, blocks: nn.ModuleList, path: str | None) -> Tensor:
    """`lit_depth.functional.engine.api.generate` by the engine: one mask per row.

    Raises:
        CannotDriveError: The engine cannot answer the batch, or gives other answers than the model.
    """
    check = compare(model, request, masks, 0, path, "one mask per row")
    if check is not None:  # its mask is that of the first row alone
        steps = Steps(*(part[:1] for part in check.steps))
        check = check._replace(steps=steps, decoded=check.decoded[:1])

    def answer(prompt: PreparedPrompt) -> Tensor:
        prompt.check_processors()
        cache = RowCache(len(blocks), prompt.length + request.max_new_tokens)
        prompt = prompt.with_cache(cache)
        device, shape, per_block = prompt.ids.device, (len(masks), prompt.length), masks.units_per_block
        driver = RowDriver(request.phases.of_prompt(masks).runs.to(device), shape, per_block)
        with driven(blocks, driver.make_forward):
            logits = prompt.forward().logits[:, -1]
        cache.advance(driver.ran, prompt.length)
        if request.phases.differ:  # every block has read every row's prompt
            driver = RowDriver(masks.runs.to(device), per_block=per_block)
            for layer, attends in zip(cache.layers, masks.attends.T):
                layer.keep_rows(attends.nonzero().flatten().to(device))  # type: ignore[union-attr]
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
) -> tuple[Tensor, Tensor]:
    """`answer_in_chunks` by `masked` and ``generate``."""
    length, in_phases = request.inputs["input_ids"].shape[1], request.phases.differ
    tokens, logprobs = request.no_answers(len(masks))
    greedy, full = GreedyTokens.nothing(request, len(masks)), full_place(masks) if request.acceptance else None
    lens, module_list = request.lens_of(masks), find_blocks(model, path)
    behind: dict[int, Tensor] = {}  # of each answer, the logits behind every block
    (order,) = zip(*full_first([[index] for index in range(len(masks))], full))
    for index in order:
        with under(model, masks, index, path, request.phases):
            for answers in _turns(request):
                ids = request.answer_ids[answers]  # type: ignore[index]
                if index == lens:
                    every = lens_logits(model, module_list, request.inputs, ids, request.pad, in_phases)
                    behind |= dict(zip(answers, every.unbind(1)))
                    logits = every[-1]
                else:
                    logits = proven_logits(model, request.inputs, ids, request.pad, in_phases)
                logprobs[index, answers] = request._replace(answer_ids=ids).score(logits, 1)[0]
                if request.on_greedy:
                    greedy.reference[index] = greedy_along(logits.argmax(-1), ids)
            if request.max_new_tokens:
                options = {**request.options, "stopping_criteria": _criteria(request, length)}
                found = model.generate(**request.inputs, **options)[:, length:]  # type: ignore[operator]
                tokens[index, :, : found.shape[1]] = found.cpu()
            if index == full:
                request = request._replace(own=own_answers(tokens[index], request))
            if request.own is not None:
                greedy.own[index] = along = known_along(tokens[index], request.own)
                if (along == OPEN).any():
                    given = request.own.to(request.inputs["input_ids"].device)
                    logits = proven_logits(model, request.inputs, given, request.pad, in_phases)
                    greedy.own[index] = torch.where(along == OPEN, greedy_along(logits.argmax(-1), given), along)
        if index == lens and behind:
            request.read_lens(torch.stack([behind.pop(answer) for answer in sorted(behind)], dim=1).flatten(0, 1))
        on_mask()
    if request.on_greedy:
        request.on_greedy(greedy)
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
