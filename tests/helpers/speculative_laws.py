"""Speculative decoding against plain decoding on random prompts: tests see a few of them, the benchmark 500."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import random, speculative_generate
from lit_depth.functional.engine.proof import plain_steps
from tests.helpers.tiny_models import IMAGE_TOKEN, VOCABULARY

FAMILIES = ("llama", "qwen3", "olmoe", "gemma2", "mistral", "llava")
NEW_TOKENS = 16
# of two logits, as a share of the largest: closer than this, another length of a forward may swap them
TIE = 1e-5


class Outcome(NamedTuple):
    """Random prompts of one family: how many there were, and how many answers are not those of plain decoding."""

    prompts: int
    ties: int
    different: int
    drafted: int
    accepted: int


def random_batch(model: PreTrainedModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Four prompts of 5 to 12 tokens, padded on the left; with an image each for a vision-language model."""
    length = int(torch.randint(9, 13, (), generator=generator))
    ids = torch.randint(2, VOCABULARY - 1, (4, length), generator=generator)
    padding = torch.randint(0, 5, (4,), generator=generator)
    padding[0] = 0
    real = torch.arange(length) >= padding[:, None]
    inputs = {"input_ids": ids.masked_fill(~real, 0), "attention_mask": real.long()}
    if model.config.model_type == "llava":
        inputs["input_ids"][:, 5:9] = IMAGE_TOKEN
        inputs["pixel_values"] = torch.randn(4, 3, 8, 8, generator=generator)
    return inputs


def compare_answers(model: PreTrainedModel, num_prompts: int, seed: int) -> Outcome:
    """Answers under random masks, lengths of drafts and end tokens, beside those of ``generate``."""
    generator = torch.Generator().manual_seed(seed)
    different = ties = drafted = accepted = 0
    num_blocks = model.config.get_text_config().num_hidden_layers
    for draw in range(-(-num_prompts // 4)):
        inputs = {name: value[: num_prompts - 4 * draw] for name, value in random_batch(model, generator).items()}
        num_draft, count, end = (int(torch.randint(1, high, (), generator=generator)) for high in (7, num_blocks, 40))
        mask = random(num_blocks, count, seed=seed + draw)
        eos = () if draw % 2 else (end, end + 1, end + 2)
        found = speculative_generate(model, inputs, mask, num_draft, NEW_TOKENS, eos_token_id=eos)
        steps = plain_steps(model, inputs, NEW_TOKENS, eos, 0)
        expected = torch.nn.functional.pad(steps.tokens, (0, NEW_TOKENS - steps.tokens.shape[1]))
        for row in (found.tokens != expected).any(1).nonzero().flatten().tolist():
            step = int((found.tokens[row] != expected[row]).float().argmax())
            scores = steps.scores[row, step]
            is_tie = bool(scores.max() - scores[found.tokens[row, step]] <= TIE * scores.abs().max())
            ties, different = ties + is_tie, different + (not is_tie)
        drafted, accepted = drafted + int(found.num_drafted.sum()), accepted + int(found.num_accepted.sum())
    return Outcome(num_prompts, ties, different, drafted, accepted)
