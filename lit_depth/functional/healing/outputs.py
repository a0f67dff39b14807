"""The last map of a block that writes to the residual stream, and how a least-squares map is folded into its weights.

What a block's own code does is not read but tried: of the maps that could be the last one, that is taken whose output,
shifted by a random vector, shifts the block's output by just this vector, or by a multiple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_depth.functional.healing.ridge import RidgeFit, RidgeSums

# more features than these are not regressed on (their products would be gigabytes): the map's outputs are instead
MOST_FEATURES = 4096
# root mean square of what a shifted output is off, over that of the shift; bfloat16 rounds to half a percent
_SHIFT_TOLERANCE = 0.05

Weights = dict[str, Tensor]


class OutputMap:
    """A module that ends a block, linear in the weights that are fitted.

    Args:
        module: The module.
        scale: What its output is multiplied by on the way to the residual stream.
    """

    by_channel = False

    def __init__(self, module: nn.Module, scale: float = 1.0) -> None:
        self.module: Any = module
        self.scale = scale

    def weights(self) -> list[nn.Parameter]:
        """The parameters that change."""
        bias = getattr(self.module, "bias", None)
        return [self.module.weight] if bias is None else [self.module.weight, bias]

    @property
    def num_weights(self) -> int:
        return sum(each.numel() for each in self.weights())

    def sums(self, features: Tensor, targets: Tensor) -> RidgeSums:
        """Empty sums for rows of this size."""
        return RidgeSums(features.shape[1], targets.shape[1], self.by_channel)

    def features(self, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """What a change of the weights acts on, ``[tokens, features]``."""
        raise NotImplementedError

    def folded(self, fit: RidgeFit) -> Weights:
        """The module's parameters, by name, with the fitted map added; in float64."""
        raise NotImplementedError


class LinearMap(OutputMap):
    """A linear layer: a map of its inputs is added, or of its outputs where it has very many inputs.

    The second is T of ReplaceMe, folded into the down projection (Shopkhoev et al. 2025, arXiv:2505.02819, section
    3); the first can do all that the second can.
    """

    @property
    def of_outputs(self) -> bool:
        return self.module.in_features > MOST_FEATURES

    def features(self, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # some blocks add to the output in place
        found = (output.clone() if self.of_outputs else args[0]).flatten(0, -2)
        return found if self.module.bias is None else torch.cat([found, torch.ones_like(found[:, :1])], dim=1)

    def folded(self, fit: RidgeFit) -> Weights:
        weight, bias = _double(self.module.weight), self.module.bias
        matrix = fit.coefficients / self.scale
        change = matrix if bias is None else matrix[:-1]
        found = {"weight": weight + (change.T @ weight if self.of_outputs else change.T)}
        if bias is not None:
            bias = _double(bias)
            found["bias"] = bias + matrix[-1] + (change.T @ bias if self.of_outputs else 0)
        return found


class ExpertsMap(OutputMap):
    """Experts whose down projections are one tensor: a map of all their inputs, or one T behind every expert."""

    def weights(self) -> list[nn.Parameter]:
        bias: Any = _bias(self.module)
        return [self.module.down_proj] if bias is None else [self.module.down_proj, bias]

    @property
    def of_outputs(self) -> bool:
        weight = self.module.down_proj
        return bool(
            weight[:, 0].numel() > MOST_FEATURES or _is_transposed(self.module) or _bias(self.module) is not None
        )

    def features(self, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.clone().flatten(0, -2) if self.of_outputs else torch.cat(list(self._read(args)), dim=1)

    def _read(self, args: tuple[Any, ...]) -> Iterator[Tensor]:
        """What every expert gives to its down projection, weighted, by projections of ones and zeros."""
        weight = self.module.down_proj
        num_experts, width, inner = weight.shape
        for start in range(0, num_experts * inner, width):
            places = torch.arange(start, min(start + width, num_experts * inner), device=weight.device)
            unit = torch.zeros_like(weight)
            unit[places // inner, places - start, places % inner] = 1
            # not called, but its forward: hooks must not fire
            with swapped({weight: unit}):
                yield self.module.forward(*args).flatten(0, -2)[:, : len(places)]

    def folded(self, fit: RidgeFit) -> Weights:
        weight = _double(self.module.down_proj)
        matrix = fit.coefficients / self.scale
        if not self.of_outputs:
            num_experts, width, inner = weight.shape
            return {"down_proj": weight + matrix.T.reshape(width, num_experts, inner).transpose(0, 1)}
        found = {"down_proj": weight + (weight @ matrix if _is_transposed(self.module) else matrix.T @ weight)}
        bias = _bias(self.module)
        if bias is not None:
            bias = _double(bias)
            found["down_proj_bias"] = bias + bias @ matrix
        return found


class NormMap(OutputMap):
    """A norm behind the MLP, which a matrix cannot pass: its weight is fitted, one number per channel.

    So does LinearPatch's scaling of channels (Chen et al. 2025, arXiv:2505.24680), there by a ratio of means.
    """

    by_channel = True

    def features(self, args: tuple[Any, ...], output: Tensor) -> Tensor:
        weight = self.module.weight
        found = []
        for value in (torch.ones_like(weight), torch.zeros_like(weight)):
            with swapped({weight: value}):
                found.append(self.module.forward(*args))
        return (found[0] - found[1]).flatten(0, -2)

    def folded(self, fit: RidgeFit) -> Weights:
        return {"weight": _double(self.module.weight) + fit.coefficients / self.scale}


def find_output(block: nn.Module, width: int, run: Callable[[], Tensor]) -> OutputMap:
    """The map at the end of a block.

    Args:
        block: A block.
        width: Numbers of a hidden state.
        run: Runs the model up to the end of the block, and returns the block's output.

    Raises:
        ValueError: No map whose output is added to the residual stream.
    """
    ran: list[nn.Module] = []
    known = {module: kind for module in block.modules() if (kind := _kind_of(module, width)) is not None}
    hooks = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in known]
    try:
        output = run()
    finally:
        for hook in hooks:
            hook.remove()
    for module in reversed(ran):
        scale = _scale_of(module, output, run)
        if scale is not None:
            return known[module](module, scale)
    raise ValueError(
        f"cannot patch a {type(block).__name__}: expected a linear layer, experts or a norm whose output is "
        "added to the residual stream as it is, found none; heal by training instead"
    )


@contextmanager
def swapped(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Other values of parameters inside a ``with`` statement; leaving it gives the very tensors back.

    A model that is moved meanwhile, as a loop of Lightning does, stays on one device.
    """
    before = [(parameter, parameter.data) for parameter in values]
    try:
        for parameter, value in values.items():
            parameter.data = value.to(parameter.device)
        yield
    finally:
        for parameter, value in before:
            parameter.data = value.to(parameter.device)


def _kind_of(module: nn.Module, width: int) -> type[OutputMap] | None:
    if isinstance(module, nn.Linear):
        return LinearMap if module.out_features == width else None
    own = dict(module.named_parameters(recurse=False))
    if "down_proj" in own and own["down_proj"].ndim == 3:
        return ExpertsMap
    if "weight" in own and own["weight"].shape == (width,) and not list(module.children()):
        return NormMap
    return None


def _scale_of(module: nn.Module, output: Tensor, run: Callable[[], Tensor]) -> float | None:
    """What a shift of a module's output is multiplied by on its way to the block's; None where it is not."""
    shift = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(0)) * output.float().std().cpu()
    shift = shift.to(output)
    hook = module.register_forward_hook(
        lambda _module, _args, given: given + shift.to(given) if isinstance(given, Tensor) else None
    )
    try:
        change = (run() - output).float()
    finally:
        hook.remove()
    scale = float((change * shift).sum() / shift.float().square().sum() / (change.numel() / len(shift)))
    error = float((change - scale * shift).square().mean().sqrt() / shift.float().square().mean().sqrt())
    return scale if abs(scale) > _SHIFT_TOLERANCE and error < _SHIFT_TOLERANCE * abs(scale) else None


def _double(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


def _bias(experts: Any) -> Tensor | None:
    return getattr(experts, "down_proj_bias", None)


def _is_transposed(experts: Any) -> bool:
    """Whether weights are ``[experts, in, out]``, as transformers marks them."""
    return bool(getattr(experts, "is_transposed", False))
