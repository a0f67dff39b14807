"""Weights that are split over processes by transformers' tensor parallelism: of which models, over how many."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import get_kv_heads_per_rank

from lit_depth.models.whole_weights import OnWhole

TpPlan = Literal["auto"] | Mapping[str, str]
# what torchrun tells each of its processes
_RANK, _PROCESSES = "RANK", "WORLD_SIZE"
# rules that leave each process with the outputs of its own heads
_OWN_HEADS = ("colwise",)


def split_over_processes(model: PreTrainedModel, tp_plan: TpPlan) -> DistributedConfig:
    """How transformers is told to split a checkpoint over all processes that torchrun has started.

    A weight is split by output or by input features (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053); what the
    family's plan does not name, each process holds whole.

    Args:
        model: On the meta device.
        tp_plan: ``"auto"`` (the family's own), or rules that take the place of some of its rules, or add to them.

    Raises:
        ValueError: Unless several processes were started; if the plan splits no block, or heads cannot be dealt out
            evenly.
    """
    processes = int(os.environ.get(_PROCESSES, 1))
    if _RANK not in os.environ or processes == 1:
        raise ValueError(
            "--model.tp_plan: expected several processes that hold the model together, got one: start them by "
            "torchrun --nproc_per_node N -m lit_depth ..., with --trainer.devices N"
        )
    own = {} if isinstance(tp_plan, str) else dict(tp_plan)
    plan = (model.tp_plan or {}) | own
    of_blocks = {name: style for name, style in plan.items() if ".*." in name}
    if not of_blocks:
        raise ValueError(
            f"--model.tp_plan {tp_plan}: expected rules for the blocks of {type(model).__name__}, and transformers has "
            "none: give rules by names of modules, or --model.device_map"
        )
    _check_conversion(model, of_blocks)
    _check_heads(model.config.get_text_config(decoder=True), of_blocks, processes)
    return DistributedConfig(tp_plan=own or "auto")


def _check_conversion(model: PreTrainedModel, plan: Mapping[str, str]) -> None:
    """Refuse weights that stand in one tensor of the files and are split behind that: a process would read other rows.

    transformers reads of such a tensor the share that its first part's plan names, without an error.
    """
    split = {name.rpartition(".")[2] for name in plan}
    for each in get_model_conversion_mapping(model):
        if not isinstance(each, WeightConverter) or len(each.target_patterns) == 1:
            continue
        parts = {re.split(r"\W+", target.removesuffix(".weight").rstrip("$"))[-1] for target in each.target_patterns}
        if parts & split and not isinstance(each.operations[0], OnWhole):
            raise ValueError(
                f"--model.tp_plan: expected files in which {' and '.join(sorted(parts))} of {type(model).__name__} "
                "stand alone, and transformers may read them from one tensor, of which it would take the wrong rows"
            )


def _check_heads(config: PretrainedConfig, plan: Mapping[str, str], processes: int) -> None:
    """Refuse heads that cannot be dealt out evenly, where each process computes its own."""
    splits_heads = any(style in _OWN_HEADS for name, style in plan.items() if ".mlp." not in name)
    heads = getattr(config, "num_attention_heads", None)
    if not splits_heads or heads is None:
        return
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    named = {"attention heads": heads % processes == 0}
    named["key and value heads"] = get_kv_heads_per_rank(dict(plan), kv_heads, processes) is not None
    uneven = [f"{heads if name.startswith('att') else kv_heads} {name}" for name, fits in named.items() if not fits]
    if uneven:
        raise ValueError(
            f"--model.tp_plan: expected a number of processes that divides the model's {' and '.join(uneven)}, got "
            f"{processes}: give torchrun another --nproc_per_node"
        )


def check_alone(tp_plan: Any, **others: Any) -> None:
    """Refuse ``--model.tp_plan`` beside options that place or change weights in another way.

    Args:
        tp_plan: None = nothing to refuse.
        others: What was given by the options' names; None = not given.

    >>> check_alone("auto", device_map="cpu", quantization=None)
    Traceback (most recent call last):
    ...
    ValueError: --model.tp_plan splits unquantised weights over processes: leave out --model.device_map
    """
    given = [f"--model.{name}" for name, value in others.items() if value is not None]
    if tp_plan is not None and given:
        raise ValueError(f"--model.tp_plan splits unquantised weights over processes: leave out {' and '.join(given)}")


def leave_weights(module: nn.Module) -> None:
    """Have Lightning's DDP leave the weights of a module as they are, which it would copy from the first process."""
    module._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        name for named in (module.named_parameters(), module.named_buffers()) for name, _ in named
    ]
