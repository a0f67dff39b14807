"""Change a model for one pass and give it back exactly, also after an exception."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; each gets its own mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def only_these_require_grad(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """``weights`` require a gradient, the other parameters of ``model`` do not."""
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for weight, _ in flags:
            weight.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


@contextmanager
def eager_attention(decoder: PreTrainedModel | None) -> Iterator[None]:
    """The decoder computes attention eagerly, if it is one of transformers' that can be switched."""
    if decoder is None:
        yield
        return
    models = [module for module in decoder.modules() if isinstance(module, PreTrainedModel)]
    found = [(config, config._attn_implementation) for model in models for config in _tree(model.config)]
    try:
        if decoder.config._attn_implementation != "eager":
            decoder.set_attn_implementation("eager")
        yield
    finally:
        # by value: setting the old name through the model would look it up (and load kernels) once more
        for config, implementation in found:
            config._attn_implementation = implementation


def attention_of(config: object) -> str | None:
    """How a model of this configuration computes attention, such as ``sdpa``; None where it does not say."""
    return getattr(config, "_attn_implementation", None)


def _tree(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and all below it, outer ones first: setting one sets those below it."""
    yield config
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            yield from _tree(getattr(config, name))
