"""What tokens do for an answer: hidden from one block and all later ones, and what becomes of every later position.

`token_masking` hides a token from one block and gives the block its own input back, so that it tells of this block
alone. A knockout is not mended: from a block on, no position outside of a span of tokens attends to the span, and what
that changes goes through all later blocks (attention knockout, Geva et al. 2023, arXiv:2304.14767, who cut a window of
blocks; here the window ends with the last block). Tokens of the span go on to see each other, so that their own states
are those of the unmasked model as long as no other token stands between them.

All knockouts run in one forward of the model. The unmasked row gives each knockout the input of the block where it
begins; so S spans of a model of L blocks take ``L + S * L * (L + 1) / 2`` block rows, not ``L + S * L * L``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import checked
from lit_depth.functional.engine.decoding_configuration import PreparedPrompt, greedy_options, inside_generate
from lit_depth.functional.engine.drivers import Forward, driven
from lit_depth.functional.engine.memory import affordable_bytes, bytes_per_row, call_width
from lit_depth.functional.inputs import answer_logprob, check_answers, scoring_way
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.support import check_drivable
from lit_depth.functional.token_masking.capture import Hider, standing_in
from lit_depth.functional.token_masking.distances import check_prompt, check_span, distances_from_first
from lit_depth.functional.token_masking.replay import full_precision

if TYPE_CHECKING:
    import pandas as pd


class Knockouts(NamedTuple):
    """Result of `span_knockout`.

    Attributes:
        answer_logprob: Mean log-probability of the answer's tokens in the unmasked model.
        answers: One row per span and first block: ``span``, ``num_tokens``, ``from_block``, ``answer_logprob``, and
            ``drop``, by which it is lower than without the knockout.
        positions: One row per span, first block and later position outside of the span: ``span``, ``from_block``,
            ``token_position``, ``l2_distance`` and ``cosine_distance`` of the state behind the last block from that of
            the unmasked model. The answer's tokens but the last follow the prompt's.
    """

    answer_logprob: float
    answers: pd.DataFrame
    positions: pd.DataFrame


@checked
@torch.no_grad()
def span_knockout(
    model: nn.Module,
    inputs: Mapping[str, Any],
    spans: Mapping[str, Sequence[int]],
    answer_ids: Tensor,
    *,
    blocks: str | None = None,
) -> Knockouts:
    """Hide spans of tokens from each block and all later ones: what it costs the answer, and what it moves.

    Everything is computed in the number format of the weights; of 16 bits, small distances are rounding.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``, see `token_masking`.
        inputs: Inputs of the model for one prompt without padding, see `token_masking`.
        spans: Name of each span -> its positions in the prompt; spans may overlap. One token is a span too.
        answer_ids: Tokens of an answer behind the prompt, long ``[1, answer]``, such as those that the model generates.
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Raises:
        ValueError: No spans, an empty span, a position twice or outside of the prompt; a model that reads an answer
            together with its prompt otherwise than it decodes it, or whose blocks do not attend through transformers'
            attention interface; and as in `token_masking`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=2)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        >>> prompt = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> found = span_knockout(model, prompt, {"first two": [0, 1]}, torch.tensor([[4]]))
        >>> found.answers["from_block"].tolist(), found.positions["token_position"].tolist()
        ([0, 1], [2, 2])
    """
    module_list = find_blocks(model, blocks)
    check_answers(model, answer_ids, 1)
    check_prompt(model, inputs, answer_ids.shape[1], blocks=blocks)
    length = inputs["input_ids"].shape[1]
    places = {name: check_span(name, span, length) for name, span in spans.items()}
    if not places:
        raise ValueError("expected at least one span {name: positions}, got none")
    reason = check_drivable(model, module_list)
    if reason is not None:
        raise ValueError(f"expected blocks that take tokens from one another by attention alone: {reason}")
    given = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    with full_precision(given["input_ids"].device):
        if answer_ids.shape[1] > 1 and scoring_way(model, given, answer_ids, 0) != "whole":
            raise ValueError(
                f"expected a model that reads an answer together with its prompt as it decodes it, got "
                f"{type(model).__name__}"
            )
        found = [
            _measure(model, module_list, given, {name: places[name] for name in chunk}, answer_ids)
            for chunk in _chunks(model, module_list, given, list(places), answer_ids)
        ]
    return _tables(found, places, length + answer_ids.shape[1] - 1, len(module_list))


def knockout_block_rows(num_blocks: int, num_spans: int, num_forwards: int = 1) -> int:
    """Rows that blocks run on in `span_knockout`; more than one forward where not all spans fit the memory.

    >>> knockout_block_rows(16, 10), 16 + 16 * 10 * 16
    (1376, 2576)
    """
    return num_forwards * num_blocks + num_spans * num_blocks * (num_blocks + 1) // 2


class _Effects(NamedTuple):
    """Of some spans (S) and all blocks (L): ``logprobs [1 + L * S]``, unmasked first, ``distances [L * S, seq, 2]``."""

    names: list[str]
    logprobs: Tensor
    distances: Tensor


class _Branches:
    """Run the unmasked row and every knockout that has begun through each block, in one forward of the decoder."""

    def __init__(self, spans: Sequence[Tensor], length: int, num_blocks: int, width: int | None, hider: Hider) -> None:
        outside = torch.ones(len(spans), length, dtype=torch.bool)
        for row, span in zip(outside, spans):
            row[span] = False
        # a query outside of the span does not see a key inside
        self.hidden = (outside[:, :, None] & ~outside[:, None, :]).unsqueeze(1)
        self.num_blocks, self.width, self.hider = num_blocks, width, hider
        # behind the last block that ran: unmasked, and [blocks so far * spans, seq, hidden], those of a block together
        self.output = self.rows = torch.empty(0)

    def make_forward(self, block_idx: int, real: Forward) -> Forward:
        """The ``forward`` of block ``block_idx``."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entering = hidden_states.expand(len(self.hidden), -1, -1)
            if block_idx:
                # a decoder may add features between two blocks
                is_handed = hidden_states is self.output
                begun = self.rows if is_handed else self.rows + (hidden_states - self.output)
                entering = torch.cat([begun, entering])
            # whoever only looks at the output sees that of the unmasked model
            self.output = real(hidden_states, *args, **kwargs)
            parts = [self._run(real, part, start, args, kwargs) for part, start in self._parts(entering)]
            self.rows = torch.cat(parts)
            if block_idx < self.num_blocks - 1:
                return self.output
            self.states = torch.cat([self.output, self.rows])
            return self.states

        return forward

    def _parts(self, rows: Tensor) -> list[tuple[Tensor, int]]:
        size = self.width or len(rows)
        return [(rows[start : start + size], start) for start in range(0, len(rows), size)]

    def _run(self, real: Forward, rows: Tensor, start: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        of_span = (start + torch.arange(len(rows))) % len(self.hidden)
        self.hider.hidden, self.hider.num_calls = self.hidden[of_span].to(rows.device), 0
        try:
            output = real(rows, *args, **kwargs)
        finally:
            self.hider.hidden = None
        if self.hider.num_calls != 1 or output.shape != rows.shape:
            raise ValueError(
                f"expected every block to attend once through transformers' attention interface, got "
                f"{self.hider.num_calls} such calls and {list(output.shape)} of {list(rows.shape)}"
            )
        return output


def _measure(
    model: nn.Module, blocks: nn.ModuleList, inputs: Mapping[str, Any], spans: Mapping[str, Tensor], answer_ids: Tensor
) -> _Effects:
    num_new, hider = answer_ids.shape[1], Hider(blocks)
    length = inputs["input_ids"].shape[1] + num_new - 1

    def measure(prompt: PreparedPrompt) -> _Effects:
        branches = _Branches(list(spans.values()), length, len(blocks), call_width(model, inputs), hider)
        config = getattr(find_decoder(model, blocks), "config", None)
        with standing_in(hider, config), driven(blocks, branches.make_forward):
            # the last token of the answer predicts nothing of it
            whole = prompt.extended(answer_ids[:, :-1]).with_cache(None)
            outputs = _several_rows(model, partial(whole.forward, keep=num_new))
        # behind it stands what nobody reads
        logits = torch.nn.functional.pad(outputs.logits[:, -num_new:], (0, 0, 0, 1))
        logprobs = answer_logprob(logits, answer_ids.expand(len(logits), -1))
        return _Effects(list(spans), logprobs, distances_from_first(branches.states.float()).cpu())

    return inside_generate(model, inputs, greedy_options(num_new, (), pad=0), measure)


def _several_rows(model: nn.Module, forward: Callable[[], Any]) -> Any:
    try:
        return forward()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"expected a model whose blocks and head take several rows of one prompt, got {type(model).__name__}: "
            f"{error}"
        ) from error


def _chunks(
    model: nn.Module, blocks: nn.ModuleList, inputs: Mapping[str, Any], names: list[str], answer_ids: Tensor
) -> list[list[str]]:
    """Spans whose knockouts fit the memory together, as many as from all blocks on."""
    of_span = len(blocks) * bytes_per_row(model, inputs, 0, answer_ids, len(blocks))
    size = max(1, int(affordable_bytes(model, of_span) // of_span))
    return [names[start : start + size] for start in range(0, len(names), size)]


def _tables(found: Sequence[_Effects], spans: Mapping[str, Tensor], length: int, num_blocks: int) -> Knockouts:
    import pandas as pd

    full = float(found[0].logprobs[0])
    answers, positions = [], []
    for each in found:
        count = len(each.names)
        logprobs = each.logprobs[1:].unflatten(0, (num_blocks, count))
        distances = each.distances.unflatten(0, (num_blocks, count))
        for index, name in enumerate(each.names):
            span, of_span = spans[name], logprobs[:, index].numpy()
            answers.append(
                pd.DataFrame(
                    {
                        "span": name,
                        "num_tokens": len(span),
                        "from_block": np.arange(num_blocks),
                        "answer_logprob": of_span,
                        "drop": full - of_span.astype(np.float64),
                    }
                )
            )
            later = np.setdiff1d(np.arange(int(span[0]) + 1, length), span.numpy())
            values = distances[:, index, later].numpy()
            positions.append(
                pd.DataFrame(
                    {
                        "span": name,
                        "from_block": np.repeat(np.arange(num_blocks), len(later)),
                        "token_position": np.tile(later, num_blocks),
                        "l2_distance": values[..., 0].ravel(),
                        "cosine_distance": values[..., 1].ravel(),
                    }
                )
            )
    return Knockouts(full, pd.concat(answers, ignore_index=True), pd.concat(positions, ignore_index=True))
