"""Rows on their way: each (mask, sample) has its own blocks, and all of them are read on and decoded together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.decoding_configuration import PreparedPrompt
from lit_depth.functional.engine.drivers import RowDriver, driven
from lit_depth.functional.engine.row_cache import RowCache
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.inputs import Way, read_on
from lit_depth.functional.masks import MaskSet


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

    def read(self, blocks: nn.ModuleList, answers: Tensor, way: Way, lens: slice | None = None) -> Iterator[Tensor]:
        """Logits at the tokens ``[rows, answer]`` of given answers, piece by piece; the cache forgets them again.

        Args:
            lens: See `RowDriver`.
        """
        length = self.cache.extent.length
        self.driver.lens = lens
        with driven(blocks, self.driver.make_forward):
            for logits in read_on(self.prompt, answers, way):
                yield logits
                self.cache.advance(self.driver.ran, logits.shape[1])
        self.driver.lens, self.driver.trail = None, []
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
                # what is compared with the model's own answer goes on as that does
                if request.stop is not None and note is None and alive.any():
                    alive[alive.clone()] &= ~request.stop(tokens[present[alive], : step + 1])
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


def up_to_stop(tokens: Tensor, request: Request) -> Tensor:
    """Answers ``[masks, batch, tokens]`` padded behind the token at which each stops, whoever decoded them.

    >>> two = Request({}, 3, (), 0, stop=lambda tokens: tokens[:, -1] == 7)
    >>> up_to_stop(torch.tensor([[[5, 7, 5]], [[5, 5, 5]]]), two).tolist()
    [[[5, 7, 0]], [[5, 5, 5]]]
    """
    if request.stop is None:
        return tokens
    rows = tokens.flatten(0, 1).clone()
    alive = torch.arange(len(rows))
    for step in range(rows.shape[1]):
        if not len(alive):
            break
        stopped = request.stop(rows[alive, : step + 1])
        rows[alive[stopped], step + 1 :] = request.pad
        alive = alive[~stopped]
    return rows.unflatten(0, tokens.shape[:2])


def deal_out(
    prompt: PreparedPrompt,
    masks: MaskSet,
    trie: MaskTrie,
    cache: RowCache | None,
    chosen: Tensor,
    again: bool = False,
) -> Rows:
    """Give (mask, sample) rows, all or some, their prompt's keys and values, to go on with.

    Args:
        masks: Those under which the rows go on.
        trie: How prompts were read under each of them.
        again: Whether rows are dealt out once more afterwards, from the prompt's end.
    """
    assert cache is not None
    of_mask, of_sample = chosen // len(prompt.ids), chosen % len(prompt.ids)
    places, attends = trie.places[of_mask, :: masks.units_per_block], masks.attends[of_mask]
    # -1 where a block goes on without having read the prompt
    sources = (places * len(prompt.ids) + of_sample[:, None]).masked_fill(places < 0, -1)
    for layer, of_layer, is_there in zip(cache.layers, sources.T, attends.T):
        layer.assign(of_layer[is_there], again)  # type: ignore[union-attr]
    device = prompt.ids.device
    driver = RowDriver(masks.runs[of_mask].to(device), per_block=masks.units_per_block)
    if (attends & (places < 0)).any():
        driver.without_prompt = (attends & (places < 0)).to(device), prompt.length
    return Rows(prompt.for_decoding(of_sample.to(device)), driver, cache)


def first_tokens(
    prompt: PreparedPrompt,
    logits: Tensor,
    request: Request,
    num_masks: int,
    drafts: Tensor | None,
    best: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers as far as logits ``[masks * batch, positions, vocabulary]`` tell them: see `_read_off`.

    Args:
        drafts: Reference answers ``[batch, answer]`` whose logits are the second and further ones; None = none.
        best: Indices of the largest logits ``[masks * batch, positions]``, where they are known.

    Returns:
        Tokens long ``[rows, max_new_tokens]`` and the indices of those rows that are still open, both on the CPU, with
        the first tokens of these in between.
    """
    if not request.max_new_tokens:
        nothing = torch.zeros(0, dtype=torch.long)
        return torch.zeros(num_masks * len(prompt.ids), 0, dtype=torch.long), nothing, nothing
    if prompt.processors or drafts is None:  # answers are no drafts of what penalties choose
        samples = torch.arange(len(prompt.ids), device=prompt.ids.device).repeat(num_masks)
        greedy, drafts = prompt.rows(samples).next_tokens(logits[:, 0])[:, None], None
    else:
        greedy, drafts = logits.argmax(-1) if best is None else best, drafts.repeat(num_masks, 1)
    tokens, open_rows = _read_off(greedy, drafts, request)
    return tokens, greedy[open_rows.to(greedy.device), 0], open_rows


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
