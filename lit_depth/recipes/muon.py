"""Muon: AdamW for vectors and embeddings, orthogonalised momentum for the matrices between them."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration: its slope at zero is steep, so small singular values grow fast; the price is
# that they end between about 0.7 and 1.2 instead of at 1 (Jordan et al. 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_UPDATE_RMS = 0.2  # that of a typical AdamW update
# Of Molmo: tables and filters, whose rows are no directions of one space, and the experts' gate.
_NO_MATRICES = ("embed_tokens", "lm_head", "position", "pad_embed", "class_embedding", "patch_embedding", "mlp.gate.")


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring every singular value of a matrix near one, by a Newton-Schulz iteration.

    >>> singular = torch.linalg.svdvals(orthogonalize(torch.diag(torch.tensor([10.0, 1.0, 0.1]))))
    >>> bool(((singular > 0.6) & (singular < 1.3)).all())
    True

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.

    Args:
        matrices: ``[..., rows, columns]``; each is taken by itself.
        steps: Iterations.
    """
    a, b, c = _QUINTIC
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrices else x.mT


class Muon(torch.optim.AdamW):
    """AdamW, except that groups with ``orthogonal: True`` follow their orthogonalised momentum.

    Stacks of matrices (the experts of a block) are taken matrix by matrix. The update of a matrix has the root mean
    square that AdamW's typically has (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2). torch's own
    Muon takes neither stacks nor other parameters.

    Args:
        groups: Parameter groups as for `torch.optim.AdamW`, each with a flag ``orthogonal``.
        momentum: Decay rate of the matrices' Nesterov momentum.
        options: Learning rate, betas and weight decay as for `torch.optim.AdamW`, of groups without their own.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95, **options: Any) -> None:
        super().__init__(groups, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        # matrices of one size are orthogonalised together: they are small and many
        by_size: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    # "step": AdamW looks for it in every state that it loads
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - self.momentum)
                by_size[parameter.shape].append((parameter, parameter.grad.lerp(momentum, self.momentum)))
        for size, pairs in by_size.items():
            directions = orthogonalize(torch.stack([update for _, update in pairs]))
            scale = _UPDATE_RMS * max(size[-2:]) ** 0.5
            for (parameter, _), direction in zip(pairs, directions):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * scale)


def muon_groups(named: Iterable[tuple[str, Tensor]], **of_matrices: Any) -> list[dict[str, Any]]:
    """Divide parameters for `Muon`: first the matrices and stacks of them between the layers, then all others.

    Args:
        named: Names and parameters, as `torch.nn.Module.named_parameters` gives them.
        of_matrices: Options of the matrices' group, such as their learning rate.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in named:
        groups[parameter.ndim >= 2 and not any(word in name for word in _NO_MATRICES)].append(parameter)
    return [{"params": groups[True], "orthogonal": True, **of_matrices}, {"params": groups[False], "orthogonal": False}]
