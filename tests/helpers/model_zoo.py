"""Many families of Hugging Face models, tiny and random, each with a left-padded batch as its processor would make it.

A law about models is written once and run over `ZOO`. A new family is one function more in one of its parts: it returns
a model in float32 and evaluation mode, and inputs with the padding, images and types of tokens that the family knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import Tensor

from tests.helpers.zoo_hybrids import HYBRID_ZOO
from tests.helpers.zoo_images import IMAGE_ZOO
from tests.helpers.zoo_parts import Model
from tests.helpers.zoo_text import TEXT_ZOO

ZOO: dict[str, Callable[[], Model]] = TEXT_ZOO | HYBRID_ZOO | IMAGE_ZOO


def forced_logprob(model: t.PreTrainedModel, inputs: dict[str, Tensor], answer_ids: Tensor) -> Tensor:
    """Mean log-probability of answers ``[rows, answer]`` (-100 = padding), decoded token by token by ``generate``.

    What it would choose is overruled, what it sees is not: the law that other ways to read an answer are held to.
    """
    forced = iter(answer_ids.clamp(min=0).T)

    def choose(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.zeros_like(scores).scatter(1, next(forced)[:, None], 1.0)

    outputs = model.generate(
        **inputs,
        max_new_tokens=answer_ids.shape[1],
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=[choose],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(outputs.logits, dim=1).log_softmax(-1)
    found = logprobs.gather(-1, answer_ids.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.stack([row[known].mean() for row, known in zip(found, answer_ids >= 0)])


def plain_answers(model: t.PreTrainedModel, inputs: dict[str, Tensor], max_new_tokens: int, **options: Any) -> Tensor:
    """Greedy answers ``[rows, max_new_tokens]`` by ``generate``, padded with 0."""
    given = {"do_sample": False, "num_beams": 1, "use_cache": True, "eos_token_id": None, "pad_token_id": 0} | options
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, **given)[:, inputs["input_ids"].shape[1] :]
    return torch.nn.functional.pad(tokens, (0, max_new_tokens - tokens.shape[1]))
