"""What a model does when it is left alone: the measure for whoever does the same in another way.

Whether a forward over prompt and answer together gives what decoding gives, or whether the engine drives a model
rightly, depends on more of a family than can be read from its configuration. So it is measured, once per model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lit_depth.functional.engine.decoding_configuration import greedy_options

# decoded tokens that a model is measured on, and where a request outgrows the model's window, as many beyond it
PROBE_TOKENS = 4
# most tokens that are decoded to get to the end of a window
LONGEST_WAY = 128
Where = Literal["inside", "across", "beyond"]


def kind_of(model: nn.Module, inputs: Mapping[str, Any], num_new: int) -> tuple[frozenset[str], Where]:
    """What tells inputs apart that a model was measured on: their names, and where they end in its window.

    Some families leave it to the cache to forget what lies outside of the window, which shows only then. New tokens
    may get ``"across"`` its end, or the prompt is ``"beyond"`` it already.
    """
    length, window = inputs["input_ids"].shape[1], window_of(model)
    return frozenset(inputs), "inside" if length + num_new <= window else "across" if length <= window else "beyond"


def window_of(model: nn.Module) -> float:
    """Tokens that the narrowest window of a model holds; infinite without one."""
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if isinstance(config, PreTrainedConfig) else config
    names = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
    sizes = [getattr(text, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=math.inf)


class Probe(NamedTuple):
    """How much of a request shows what a model does with its kind.

    Attributes:
        kind: See `kind_of`.
        inside: New tokens before the end of the window that the request outgrows; -1 where the prompt already does.
        beyond: Tokens that count as measured: at most `PROBE_TOKENS`, behind ``inside`` where there is a window.
        length: New tokens to decode.
    """

    kind: tuple[frozenset[str], Where]
    inside: int
    beyond: int
    length: int


def probe_of(model: nn.Module, inputs: Mapping[str, Any], num_new: int) -> Probe:
    """How far to measure a request of ``num_new`` tokens."""
    kind = kind_of(model, inputs, num_new)
    if kind[1] == "across":
        inside = int(window_of(model)) - inputs["input_ids"].shape[1]
        length = min(num_new, inside + PROBE_TOKENS)
        return Probe(kind, inside, length - inside, length)
    length = min(num_new, PROBE_TOKENS)
    return Probe(kind, length if kind[1] == "inside" else -1, length, length)


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
    model: nn.Module,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    eos: Sequence[int],
    pad: int,
    length: int | None = None,
) -> Steps:
    """The first tokens that ``generate`` gives, and what it chose them from.

    Args:
        length: Stop after so many tokens of ``max_new_tokens``, on which some penalties depend; None = go on.
    """
    made = itertools.count(1)

    def is_enough(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.full((len(ids),), next(made) == length, device=ids.device)

    recorded: dict[str, Any] = dict.fromkeys(("return_dict_in_generate", "output_logits", "output_scores"), True)
    recorded["stopping_criteria"] = [is_enough]
    outputs = model.generate(**inputs, **greedy_options(max_new_tokens, eos, pad) | recorded)  # type: ignore[operator]
    logits, scores = torch.stack(outputs.logits, dim=1), torch.stack(outputs.scores, dim=1)
    return Steps(outputs.sequences[:, -logits.shape[1] :], logits, scores)


def same_logits(model: nn.Module, found: Tensor, expected: Tensor) -> bool:
    """Whether logits ``[..., vocabulary]`` differ by rounding alone."""
    defined = ~expected.isnan().any(-1)
    found, expected = found[defined].float(), expected[defined].float()
    off = torch.where(found == expected, 0.0, (found - expected).abs()).amax(-1)
    return _is_rounding(model, off / _size(expected))


def same_beyond(model: nn.Module, found: Tensor, expected: Tensor, known: Tensor, inside: int) -> bool:
    """Whether logits ``[rows, positions, vocabulary]`` are the same before the end of a window and behind it.

    Each side counts on its own: a few positions behind many would not show.

    Args:
        known: Bool ``[rows, positions]``: what to compare.
        inside: Positions behind the first that see no more than the window holds, see `Probe`.
    """
    sides = slice(None, inside + 1), slice(inside + 1, None)
    return all(same_logits(model, found[:, side][known[:, side]], expected[:, side][known[:, side]]) for side in sides)


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
    # offloaded parameters lie on the meta device, which has no autocast
    devices = {kind for kind in (off.device.type, next(model.parameters()).device.type) if kind != "meta"}
    coarse = (
        any(weight.dtype.itemsize < 4 for weight in model.parameters())
        or any(map(torch.is_autocast_enabled, devices))
        or torch.get_float32_matmul_precision() != "highest"
    )
    # with 16 bits experts tie now and then, and rounding chooses between them: half of the rows tell enough
    share, tolerance = (0.5, 0.1) if coarse else (1.0, 1e-3)
    return bool(off.flatten().nan_to_num(torch.inf).quantile(share) <= tolerance)
