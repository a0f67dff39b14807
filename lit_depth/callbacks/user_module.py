"""What the callbacks need of somebody else's LightningModule and of its batches."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.functional.inputs import IGNORE, with_answers
from lit_depth.functional.latency.stage_timer import untimed
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.model_state import evaluation_mode


def language_model(pl_module: LightningModule, path: str | None = None) -> tuple[nn.Module, str]:
    """The Hugging Face model that holds the blocks, whatever holds and wraps it, and the blocks' path from there.

    Where several hold them, it is the outermost one on the way from the module to the blocks. A PEFT model that puts
    learned prompts before the tokens counts as one: what is inside it would run without them. Blocks that no Hugging
    Face model holds are those of the outermost module that has a ``forward``.

    ``path`` leads from ``pl_module`` to the blocks, where they cannot be found.

    Raises:
        ValueError: As `find_blocks`.
    """
    blocks = find_blocks(pl_module, path)
    if path is None:
        path = next(name for name, module in pl_module.named_modules() if module is blocks)
    names = path.split(".")
    holders = [
        (pl_module.get_submodule(".".join(names[:depth])), ".".join(names[depth:])) for depth in range(len(names))
    ]
    models = [holder for holder in holders if isinstance(holder[0], PreTrainedModel) or _learns_prompts(holder[0])]
    # a module without a forward of its own only holds what runs
    without = (nn.Module.forward, LightningModule.forward)
    return next(iter(models or [holder for holder in holders if type(holder[0]).forward not in without] or holders))


def _learns_prompts(module: nn.Module) -> bool:
    return getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False) is True


def inputs_and_labels(model: nn.Module, batch: Any, otherwise: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """Model inputs of a batch, and labels ``[batch, seq]`` (-100 = ignored) or None.

    The batch is a mapping whose tensors are all inputs of the model, ``labels`` aside. In evaluation batches of this
    package, which have none, the reference answers (``answer_ids``) are what is labelled.

    The message for batches of another kind ends in what to do with them, ``otherwise``.

    Raises:
        ValueError: The batch is no mapping.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f"expected a batch that maps names to model inputs, got {type(batch).__name__}; {otherwise}")
    inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    labels, answers = inputs.pop("labels", None), inputs.pop("answer_ids", None)
    if labels is not None or answers is None:
        return inputs, labels
    prompt = torch.full_like(inputs["input_ids"], IGNORE)
    # which token fills up the answers does not matter: nothing sees it
    return with_answers(model, inputs, answers, pad=0), torch.cat([prompt, answers], dim=1)


def is_empty(batch: Any) -> bool:
    """Whether this is an evaluation batch of this package without a sample that could be read: it has no inputs."""
    return isinstance(batch, Mapping) and "bad_samples" in batch and "input_ids" not in batch


def accepted(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those inputs that the model's ``forward`` takes by name; all, where it takes any."""
    parameters = inspect.signature(type(model).forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in inputs.items() if takes_any or name in parameters}


def block_values(name: str, values: Tensor) -> dict[str, float]:
    """Values ``[num_blocks]`` under the names that are logged: ``{}`` becomes the block's index, as wide for all.

    >>> block_values("block_{}", torch.tensor([0.5, 0.25]))
    {'block_00': 0.5, 'block_01': 0.25}
    """
    width = max(2, len(str(len(values) - 1)))
    return {name.format(f"{block_idx:0{width}d}"): value for block_idx, value in enumerate(values.tolist())}


@contextmanager
def undisturbed(pl_module: LightningModule) -> Iterator[None]:
    """For forwards beside the loop's own, of which the loop and its owner notice nothing.

    Inside, every submodule is in evaluation mode, compiled ones run eagerly (nothing is compiled for this), and
    `LatencyTimer` does not listen. Afterwards modes and random states are what they were.
    """
    with evaluation_mode(pl_module), same_random_state(pl_module), untimed(), torch.compiler.set_stance("force_eager"):
        yield


def same_random_state(pl_module: LightningModule) -> AbstractContextManager[None]:
    """The loop around a callback must draw the same random numbers as without it."""
    return isolate_rng(include_cuda=pl_module.device.type == "cuda")
