"""What decoding on static buffers serves, and whether a model is still the one that a step was made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from lit_depth.functional.engine.decoding_configuration import check_generates, decoding_configuration
from lit_depth.functional.engine.proof import turning_length
from lit_depth.functional.latency.stage_timer import StageTimer
from lit_depth.functional.masking.blocks import find_decoder
from lit_depth.functional.masking.support import check_drivable
from lit_depth.functional.model_state import attention_of
from lit_depth.functional.shards import holders_of

_PLAIN = (bool, int, float, str)


def check_serves_static(model: nn.Module, blocks: nn.ModuleList) -> None:
    """Raise ValueError for a model that static buffers do not serve."""
    check_generates(model)
    reason = check_drivable(model, blocks)
    attention = attention_of(getattr(find_decoder(model, blocks), "config", None))
    places = {weight.device for weight in model.parameters()}
    penalties = decoding_configuration(model, 1, (), 0)["generation_config"]
    if holders_of(model) > 1:
        reason = "its weights are split over processes"
    elif len(places) > 1 or any(place.type == "meta" for place in places):
        reason = f"its weights lie on several devices ({', '.join(sorted(map(str, places)))})"
    elif any(getattr(module, "is_quantized", False) for module in model.modules()):
        reason = "its weights are quantised"
    elif attention not in ("eager", "sdpa", None):
        reason = f"the calls of {attention} depend on values; load it with sdpa attention"
    elif turning_length(model) < float("inf"):
        reason = "its rotary positions depend on the longest row"
    elif penalties:
        reason = f"its generation_config has {', '.join(penalties)}"
    if reason is not None:
        raise ValueError(f"static buffers do not serve {type(model).__name__}: {reason}")


def check_now(model: nn.Module, device: torch.device) -> None:
    """Raise ValueError for what may change from call to call."""
    if torch.is_autocast_enabled(device.type):
        raise ValueError("static buffers expect weights in the number format of the computation, got autocast")
    if model.training:
        raise ValueError("static buffers expect a model in evaluation mode, got one in training mode")


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Tells whether a step that was recorded would still do what the model does: its modules, weights and settings.

    Values of weights may change in place: a step reads them where they lie. Functions are held, not only told by
    address: another one may come to lie where the first one was.
    """
    parts: list[Any] = []
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        parts.append((id(module), type(module)))
        for name, value in vars(module).items():
            if isinstance(value, dict):  # weights, modules and hooks; names of hooks are numbers that only count them
                own = [(key, each) for key, each in value.items() if not _is_of_timer(key, each)]
                parts.append((name, tuple((key if isinstance(key, str) else 0, _told(each)) for key, each in own)))
            elif isinstance(value, PreTrainedConfig):
                configs[id(value)] = value
            elif isinstance(value, _PLAIN) or callable(value):
                parts.append((name, _told(value)))
    weights = [*model.parameters(), *model.buffers()]
    parts += [(each.data_ptr(), each.dtype, tuple(each.shape), each.stride(), each.device) for each in weights]
    return *parts, *map(_settings, configs.values())


def _told(value: Any) -> Any:
    """What tells a value apart: itself where it is plain or a function, else where it lies."""
    is_function = callable(value) and not isinstance(value, nn.Module)
    return value if isinstance(value, _PLAIN) or is_function else id(value)


def _settings(config: PreTrainedConfig) -> tuple[Any, ...]:
    """Settings of a model; those of its parts are in configurations of their own."""
    own = {name: value for name, value in vars(config).items() if not isinstance(value, PreTrainedConfig)}
    return tuple((name, value if isinstance(value, _PLAIN) else repr(value)) for name, value in own.items())


def _is_of_timer(key: Any, hook: Any) -> bool:
    """Whether a hook is one of a `StageTimer`, which steps do not call, or only says what hooks are called with."""
    told_only = isinstance(hook, bool) and not isinstance(key, str)
    return told_only or isinstance(getattr(hook, "__self__", None), StageTimer)
