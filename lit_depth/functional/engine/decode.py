"""How a chunk of masks is answered: prefill through the trie, then all (mask, sample) rows decoded together.

The steps below `lit_depth.functional.engine.api`, and its bookkeeping: chunks that fit the memory, block calls of a
width that suits the machine, and one mask after another for models that the engine cannot drive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from lit_depth.functional.engine.decoding_configuration import (
    CannotDriveError,
    PreparedPrompt,
    generating_model,
    greedy_options,
    inside_generate,
)
from lit_depth.functional.engine.drivers import Front, RowDriver, TrieDriver, driven
from lit_depth.functional.engine.memory import affordable_bytes, bytes_per_row, call_width
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
from lit_depth.functional.engine.row_cache import RowCache
from lit_depth.functional.engine.trie import MaskTrie, chunk_masks
from lit_depth.functional.inputs import (
    IGNORE,
    Way,
    answer_logits,
    answer_logprob,
    filled,
    is_image_input,
    longest_answer,
    read_on,
    reference_logprob,
    scoring_way,
)
from lit_depth.functional.masking.blocks import find_decoder
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masking.support import adds_between_blocks
from lit_depth.functional.masks import MaskSet

# how many masks fitted the memory of a GPU, for as long as the model lives
_MASKS_THAT_FIT: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
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
    """

    inputs: Mapping[str, Any]
    max_new_tokens: int
    eos: tuple[int, ...]
    pad: int
    answer_ids: Tensor | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``generate``, which makes at least one token."""
        return greedy_options(max(1, self.max_new_tokens), self.eos, self.pad)

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

    def no_answers(self, num_masks: int) -> tuple[Tensor, Tensor]:
        """Tokens ``[masks, batch, max_new_tokens]`` and log-probabilities ``[masks, batch]``, to be filled in."""
        batch = len(self.inputs["input_ids"])
        tokens = torch.full((num_masks, batch, self.max_new_tokens), self.pad)
        return tokens, torch.zeros(num_masks, 0 if self.answer_ids is None else batch)


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
    check = _compare(model, request, masks[waiting[0][0]], path, "masks together")
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
    batch = len(request.inputs["input_ids"])
    if max_rows is not None:
        chunks = list(chunk_masks(masks, max(1, max_rows // batch)))
    else:
        row = partial(bytes_per_row, model, request.inputs, request.max_new_tokens, request.answer_ids)
        costs = [batch * row(count) for count in masks.counts]
        chunks = list(chunk_masks(masks, max(1, affordable_bytes(model, max(costs))), costs))
    return _shorten(chunks, _MASKS_THAT_FIT.get(model, len(masks)))


def _shorten(chunks: Sequence[list[int]], longest: int) -> list[list[int]]:
    return [chunk[start : start + longest] for chunk in chunks for start in range(0, len(chunk), longest)]


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
        if is_same and self.of_answer is not None and self.answers is not None and request.answer_ids is not None:
            length, inside = self.of_answer.length, self.of_answer.inside
            known = (request.answer_ids[:, :length] != IGNORE).to(logits.device)
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


def _compare(model: nn.Module, request: Request, mask: Tensor, path: str | None, how: str) -> Comparison | None:
    """What to compare the engine with; None where a request of this kind was answered before."""
    inputs, ids = request.inputs, request.answer_ids
    probe = probe_of(model, inputs, request.max_new_tokens)
    of_answer = None if ids is None else probe_of(model, inputs, longest_answer(ids))
    kind = how, probe.kind, of_answer and (of_answer.kind, of_answer.beyond)
    if _DRIVEN.get(model, {}).get(kind, -1) >= probe.beyond:
        return None
    with masked(model, mask, blocks=path):
        longest = max(1, request.max_new_tokens)
        steps = plain_steps(model, inputs, longest, request.eos, request.pad, max(1, probe.length))
        found = Comparison(kind, probe, steps, torch.full_like(steps.logits, torch.nan))
        if ids is None or of_answer is None:
            return found
        way = scoring_way(model, inputs, ids, request.pad)
        answers = answer_logits(model, inputs, ids[:, : of_answer.length], request.pad, way)
        return found._replace(of_answer=of_answer, answers=answers)


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
    if request.answer_ids is not None:
        with masked(model, masks[0], blocks=path):
            way = scoring_way(model, request.inputs, request.answer_ids, request.pad)
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
    driver = TrieDriver(trie, width, cache, keep=keep, front=front, shape=(batch, length), adds=adds)
    with driven(blocks, driver.make_forward):
        logits = asked.forward(keep=keep).logits
    if cache is not None:
        cache.advance([bool(level.run) for level in trie.levels], length, prompt.length)
    deal = partial(_deal_out, prompt, masks, trie, cache)
    rows = None
    scored = torch.zeros(len(masks), 0)
    if answers is not None and request.answer_ids is not None:
        if not whole:
            rows = deal(torch.arange(len(masks) * batch))
            read = rows.read(blocks, answers.repeat(len(masks), 1), way)
            logits = torch.cat([logits[:, -1:], *read], dim=1)
        scored = answer_logprob(logits, request.answer_ids.repeat(len(masks), 1)).unflatten(0, (len(masks), batch))
    of_one_mask = None if check is None else logits[:batch].clone()
    tokens, first, open_rows = _first_tokens(
        prompt, logits, request, drafts=request.answer_ids if check is None else None
    )
    del logits
    if len(open_rows):
        rows = deal(open_rows) if rows is None else rows.keep(open_rows)
        note = None if check is None else lambda step, rows, found: check.note(step, open_rows[rows], found)
        tokens[open_rows] = rows.decode(blocks, first, request, note)
    if check is not None and of_one_mask is not None:
        check.check(model, of_one_mask, tokens[:batch], request)
    return tokens.unflatten(0, (len(masks), batch)), scored, driver.front


def _first_tokens(
    prompt: PreparedPrompt, logits: Tensor, request: Request, drafts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers as far as logits ``[masks * batch, positions, vocabulary]`` tell them: see `_read_off`.

    Args:
        drafts: Reference answers ``[batch, answer]`` whose logits are the second and further ones; None = none.

    Returns:
        Tokens long ``[rows, max_new_tokens]`` and the indices of those rows that are still open, both on the CPU, with
        the first tokens of these in between.
    """
    num_masks = len(logits) // len(prompt.ids)
    if not request.max_new_tokens:
        nothing = torch.zeros(0, dtype=torch.long)
        return torch.zeros(len(logits), 0, dtype=torch.long), nothing, nothing
    if prompt.processors or drafts is None:  # answers are no drafts of what penalties choose
        samples = torch.arange(len(prompt.ids), device=prompt.ids.device).repeat(num_masks)
        greedy, drafts = prompt.rows(samples).next_tokens(logits[:, 0])[:, None], None
    else:
        greedy, drafts = logits.argmax(-1), drafts.repeat(num_masks, 1)
    tokens, open_rows = _read_off(greedy, drafts, request)
    return tokens, greedy[open_rows.to(greedy.device), 0], open_rows


def _deal_out(prompt: PreparedPrompt, masks: MaskSet, trie: MaskTrie, cache: RowCache | None, chosen: Tensor) -> Rows:
    """Give (mask, sample) rows, all or some, their prompt's keys and values, to go on with."""
    assert cache is not None
    of_mask, of_sample = chosen // len(prompt.ids), chosen % len(prompt.ids)
    for block_idx, layer in enumerate(cache.layers):
        places = trie.places[of_mask, block_idx]
        layer.assign((places * len(prompt.ids) + of_sample)[places >= 0])  # type: ignore[union-attr]
    device = prompt.ids.device
    return Rows(prompt.for_decoding(of_sample.to(device)), RowDriver(masks.bits[of_mask].to(device)), cache)


def answer_rows(model: nn.Module, request: Request, masks: MaskSet, blocks: nn.ModuleList, path: str | None) -> Tensor:
    """`lit_depth.functional.engine.api.generate` by the engine: one mask per row.

    Raises:
        CannotDriveError: The engine cannot answer the batch, or gives other answers than the model.
    """
    check = _compare(model, request, masks[0], path, "one mask per row")
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


def _read_off(greedy: Tensor, answers: Tensor | None, request: Request) -> tuple[Tensor, Tensor]:
    """What the prompt's own forward already says of the greedy answers, with the reference answers as a draft of them.

    As long as a row's greedy tokens are those of its reference answer, the next greedy token is known without decoding
    (as in speculative decoding, Leviathan et al. 2023, with a draft that costs nothing): a right answer is whole.

    Args:
        greedy: Best token at the prompt's last one, and at those of the answer, long ``[rows, answer + 1]``.
        answers: ``[rows, answer]``, padded on the right with -100; None = no draft, one column.

    Returns:
        Tokens long ``[rows, max_new_tokens]``, true of all rows but those still open, and the indices of these, long
        ``[open]``; both on the CPU.
    """
    max_new_tokens = request.max_new_tokens
    known = torch.ones_like(greedy, dtype=torch.bool)
    if answers is not None:
        known[:, 1:] = (greedy[:, :-1] == answers).cumprod(1).bool()
    greedy, known = greedy[:, :max_new_tokens].cpu(), known[:, :max_new_tokens].cpu()
    ends = torch.isin(greedy, torch.tensor(request.eos, dtype=torch.long)) & known
    ended = ends.cumsum(1) - ends.long() > 0
    tokens = torch.full((len(greedy), max_new_tokens), request.pad)
    tokens[:, : greedy.shape[1]] = greedy.masked_fill(~known | ended, request.pad)
    return tokens, (~ends.any(1) & (known.sum(1) < max_new_tokens)).nonzero().flatten()


class Rows:
    """Rows on their way, each with its own blocks, on the cache that holds their prompts.

    Args:
        prompt: The tokens of each row so far, and what the model takes with them.
        driver: Which blocks each row runs.
        cache: Keys and values of the prompts.
    """

    def __init__(self, prompt: PreparedPrompt, driver: RowDriver, cache: RowCache) -> None:
        self.prompt, self.driver, self.cache = prompt, driver, cache

    def keep(self, kept: Tensor) -> Rows:
        """Drop all rows but ``kept`` (indices)."""
        kept = kept.to(self.prompt.ids.device)
        self.driver.keep_rows(kept, self.cache)
        self.prompt = self.prompt.rows(kept)
        return self

    def read(self, blocks: nn.ModuleList, answers: Tensor, way: Way) -> Iterator[Tensor]:
        """Logits at the tokens ``[rows, answer]`` of given answers, piece by piece; the cache forgets them again."""
        length = self.cache.extent.length
        with driven(blocks, self.driver.make_forward):
            for logits in read_on(self.prompt, answers, way):
                yield logits
                self.cache.advance(self.driver.ran, logits.shape[1])
        self.cache.extent.length = length

    def decode(
        self,
        blocks: nn.ModuleList,
        token: Tensor,
        request: Request,
        note: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Decode greedily from each row's first token; rows that ended leave. Long ``[rows, max_new_tokens]``.

        Args:
            note: Called with each further step, the rows that are left and their logits.
        """
        tokens = torch.full((len(token), request.max_new_tokens), request.pad)
        eos = torch.tensor(request.eos, dtype=torch.long)
        present = torch.arange(len(token))
        alive = torch.ones(len(token), dtype=torch.bool)
        with driven(blocks, self.driver.make_forward):
            for step in range(request.max_new_tokens):
                chosen = token.cpu()
                tokens[present[alive], step] = chosen[alive]
                alive &= ~torch.isin(chosen, eos)
                if step == request.max_new_tokens - 1 or not alive.any():
                    break
                # a row that ended is carried along until dropping pays for the copy of the others' keys and values
                if alive.float().mean() <= 0.75:
                    kept = alive.nonzero().flatten()
                    self.keep(kept)
                    token = token[kept.to(token.device)]
                    present, alive = present[alive], alive[alive]
                self.prompt = self.prompt.extended(token[:, None])
                logits = self.prompt.forward(num_new=1).logits[:, -1]
                self.cache.advance(self.driver.ran, 1)
                if note is not None:
                    note(step + 1, present, logits)
                token = self.prompt.next_tokens(logits)
                del logits  # not kept beside those of the next step
        return tokens


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
        with masked(model, mask, blocks=path, granularity=masks.granularity, **phases):
            if request.answer_ids is not None:
                logprobs[index] = reference_logprob(
                    model, request.inputs, request.answer_ids, pad_token_id=request.pad, in_phases=bool(phases)
                )
            if request.max_new_tokens:
                found = model.generate(**request.inputs, **request.options)[:, length:]  # type: ignore[operator]
                tokens[index, :, : found.shape[1]] = found.cpu()
        on_mask()
    return tokens, logprobs
