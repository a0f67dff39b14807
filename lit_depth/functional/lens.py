"""The logit lens: what a model would answer if it stopped behind each of its blocks.

The residual stream behind a block is read by the model's own final norm and head (nostalgebraist 2020, "interpreting
GPT: the logit lens"). Early blocks do not write for that head, so that it reads their states with a bias: an answer
that it does not see yet may be there all the same (Belrose et al. 2023, arXiv:2303.08112, who train a translator for
each block, the tuned lens; none is trained here).

The states behind all blocks are handed on by the last block as further rows of the same forward. So whatever stands
between it and the logits (norm, head, scaling, soft-capping) is the model's own, and no block runs twice.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import check_goes_on, check_token_ids, checked, prompt_inputs
from lit_depth.functional.engine.decoding_configuration import check_generates
from lit_depth.functional.inputs import IGNORE, answer_logits, answer_logprob, check_answers, filled, scoring_way
from lit_depth.functional.masking.blocks import find_blocks


class LensReading(NamedTuple):
    """What the logit lens reads of answers behind every block (L blocks, N answers), on the CPU."""

    ranks: Tensor  # long [L, N]: rank of an answer's worst token, 1 = every token is the most likely one
    logprobs: Tensor  # float32 [L, N]: mean log-probability of an answer's tokens


@checked
@torch.no_grad()
def logit_lens(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    answer_ids: Tensor,
    *,
    pad_token_id: int,
    blocks: str | None = None,
) -> LensReading:
    """Rank and log-probability of each row's reference answer, read behind every block in one forward.

    Every token of an answer is read given the prompt and those before it. Behind the last block the log-probability is
    `reference_logprob`.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``.
        inputs: Left-padded prompt, see `sweep_generate`.
        answer_ids: ``[batch, answer]``, padded on the right with -100; every row has at least one token.
        pad_token_id: Stands in for the padding of the answers.
        blocks: Dotted path of the blocks where they cannot be found.

    Raises:
        ValueError: As `reference_logprob`, or if the model's head takes states of the prompt's shape alone.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        >>> prompt = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
        >>> logit_lens(model, prompt, torch.tensor([[7]]), pad_token_id=0).ranks.shape
        torch.Size([3, 1])
    """
    module_list = find_blocks(model, blocks)
    inputs = prompt_inputs(model, inputs)
    check_goes_on(inputs)
    check_answers(model, answer_ids, len(inputs["input_ids"]))
    check_token_ids(model, pad_token_id=pad_token_id)
    check_generates(model)
    return read_answers(lens_logits(model, module_list, inputs, answer_ids, pad_token_id), answer_ids)


def lens_logits(
    model: nn.Module,
    blocks: nn.ModuleList,
    inputs: Mapping[str, Any],
    answer_ids: Tensor,
    pad: int,
    in_phases: bool = False,
) -> Tensor:
    """Logits ``[num_blocks, batch, answer + 1, vocabulary]`` behind every block; see `proven_logits` for the last."""
    way = scoring_way(model, inputs, answer_ids, pad, in_phases)
    with _all_states(blocks) as states:
        try:
            logits = answer_logits(model, inputs, answer_ids, pad, way)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if len(states) < len(blocks):
                raise
            raise ValueError(
                f"expected a model whose head takes states of any number of rows, got {type(model).__name__}, which "
                f"the logit lens cannot read ({error})"
            ) from error
    return logits.unflatten(0, (len(blocks), -1))


@contextmanager
def _all_states(blocks: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """The last block returns the states behind every block, as rows one block after another."""
    states: dict[int, Tensor] = {}

    def hook(block_idx: int, output: Any) -> Any:
        states[block_idx] = output if isinstance(output, Tensor) else output[0]
        if block_idx < len(blocks) - 1:
            return None
        rows = torch.cat([states[index].to(states[block_idx].device) for index in range(len(blocks))])
        return rows if isinstance(output, Tensor) else (rows, *output[1:])

    hooks = [
        block.register_forward_hook(lambda _module, _args, output, block_idx=block_idx: hook(block_idx, output))
        for block_idx, block in enumerate(blocks)
    ]
    try:
        yield states
    finally:
        for each in hooks:
            each.remove()


def read_answers(logits: Tensor, answer_ids: Tensor) -> LensReading:
    """What logits ``[blocks, answers, answer + 1, vocabulary]`` say of answers, the first at the prompt's last token.

    Tokens that are exactly as likely share the better rank.

    Args:
        logits: One entry for each block.
        answer_ids: ``[answers, answer]``, padded on the right with -100.

    >>> logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]).reshape(2, 1, 1, 3).repeat(1, 1, 2, 1)
    >>> read_answers(logits, torch.tensor([[1]])).ranks.tolist()
    [[1], [2]]
    """
    targets, is_padding = filled(answer_ids, 0).unsqueeze(-1), answer_ids == IGNORE
    ranks, logprobs = [], []
    # one block after another: the comparison is as large as the logits
    for of_block in logits:
        own = of_block[:, :-1].gather(-1, targets)
        better = (of_block[:, :-1] > own).sum(-1).masked_fill(is_padding, 0)
        ranks.append(1 + better.max(1).values)
        logprobs.append(answer_logprob(of_block, answer_ids))
    return LensReading(torch.stack(ranks).cpu(), torch.stack(logprobs))
