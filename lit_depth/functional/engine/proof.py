"""What a model does when it is left alone: the measure for whoever does the same in another way.

Whether a forward over prompt and answer together gives what decoding gives, or whether the engine drives a model
rightly, depends on more of a family than can be read from its configuration. So it is measured, once per model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lit_depth.functional.engine.decoding_configuration import greedy_options

# decoded tokens that a model is measured on
PROBE_TOKENS = 4


def kind_of(model: nn.Module, inputs: Mapping[str, Any], num_new: int) -> tuple[frozenset[str], bool]:
    """What tells inputs apart that a model was measured on: their names, and whether they outgrow its window.

    Some families leave it to the cache to forget what lies outside of the window, which shows only then.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if isinstance(config, PreTrainedConfig) else config
    window = getattr(text, "sliding_window", None)
    return frozenset(inputs), window is not None and inputs["input_ids"].shape[1] + num_new > window


def turning_length(model: nn.Module) -> float:
    """Tokens up to which rotary positions depend on the position alone; infinite for most models.

    Beyond it the longest row of a batch decides about the frequencies of all its rows.
    """
    found = [math.inf]
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        names = kinds.values() if isinstance(kinds, dict) else (kinds,)
        if any(isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names):
            config = getattr(module, "config", None)
            parameters = getattr(config, "rope_parameters", None) or {}
            holders = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
            given = [each.get("original_max_position_embeddings") for each in holders]
            given += [getattr(config, "original_max_position_embeddings", None)]
            given += [getattr(module, "original_max_seq_len", None)]
            found.append(min((length for length in given if length is not None), default=0))
    return min(found)


class Steps(NamedTuple):
    """Greedy decoding by the model's own ``generate``."""

    tokens: Tensor  # [rows, steps]
    logits: Tensor  # [rows, steps, vocabulary], as the model gives them
    scores: Tensor  # the same after the model's penalties


@torch.no_grad()
def plain_steps(
    model: nn.Module, inputs: Mapping[str, Any], max_new_tokens: int, eos: Sequence[int], pad: int
) -> Steps:
    """The first tokens that ``generate`` gives, and what it chose them from."""
    recorded = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    outputs = model.generate(**inputs, **greedy_options(max_new_tokens, eos, pad) | recorded)  # type: ignore[operator]
    logits, scores = torch.stack(outputs.logits, dim=1), torch.stack(outputs.scores, dim=1)
    return Steps(outputs.sequences[:, -logits.shape[1] :], logits, scores)


def same_logits(model: nn.Module, found: Tensor, expected: Tensor) -> bool:
    """Whether logits ``[..., vocabulary]`` differ by rounding alone."""
    defined = ~expected.isnan().any(-1)
    found, expected = found[defined].float(), expected[defined].float()
    off = torch.where(found == expected, 0.0, (found - expected).abs()).amax(-1)
    return _is_rounding(model, off / _size(expected))


def same_tokens(model: nn.Module, found: Tensor, steps: Steps, eos: Sequence[int]) -> bool:
    """Whether tokens ``[rows, steps or more]`` begin with those of ``steps``; rows may depart from them at a tie."""
    expected = steps.tokens.cpu()
    found = found[:, : expected.shape[1]].cpu()
    departs = found != expected
    ends = torch.isin(expected, torch.tensor(list(eos), dtype=torch.long))
    departs &= ends.cumsum(1) - ends.long() == 0  # what fills up a row after its end is no matter
    step = departs.float().argmax(1)
    rows = torch.arange(len(found))
    scores = steps.scores[rows, step].float().cpu()
    margin = scores.amax(-1) - scores[rows, found[rows, step]]
    return _is_rounding(model, torch.where(departs.any(1), margin / _size(scores), 0.0))


def _size(logits: Tensor) -> Tensor:
    return logits.abs().masked_fill(logits.isinf(), 0.0).amax(-1).clamp(min=1e-9)


def _is_rounding(model: nn.Module, off: Tensor) -> bool:
    """Whether relative differences are what another order of the same operations makes."""
    if not off.numel():
        return True
    coarse = (
        any(weight.dtype.itemsize < 4 for weight in model.parameters())
        or torch.is_autocast_enabled(off.device.type)
        or torch.is_autocast_enabled(next(model.parameters()).device.type)
        or torch.get_float32_matmul_precision() != "highest"
    )
    # with 16 bits experts tie now and then, and rounding chooses between them: half of the rows tell enough
    share, tolerance = (0.5, 0.1) if coarse else (1.0, 1e-3)
    return bool(off.flatten().nan_to_num(torch.inf).quantile(share) <= tolerance)
