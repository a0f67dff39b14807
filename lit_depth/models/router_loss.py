"""The load-balancing loss of mixtures of experts, for training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func


def has_experts(model: nn.Module) -> bool:
    """Whether the text model is a mixture of experts whose configuration says how many there are."""
    return hasattr(model.config.get_text_config(), "num_experts")  # type: ignore[union-attr,operator]


def router_loss(model: nn.Module, router_logits: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """The auxiliary loss of Switch Transformers (Fedus et al. 2022, eq. 4) for k experts per token, summed over blocks.

    Args:
        model: The mixture of experts.
        router_logits: Of each block that ran, ``[batch * seq, experts]``.
        attention_mask: ``[batch, seq]``, or per query and key ``[batch, 1, seq, seq]``; padding is left out.

    Returns:
        A scalar; k for each block whose experts share the tokens evenly.
    """
    text = model.config.get_text_config()  # type: ignore[union-attr,operator]
    # every real query, and no padded one, attends to the first key
    real = attention_mask[:, 0, :, 0] if attention_mask.ndim == 4 else attention_mask
    losses: list[Tensor] = [
        torch.as_tensor(load_balancing_loss_func((logits,), text.num_experts, text.num_experts_per_tok, real))
        for logits in router_logits
    ]
    return torch.stack(losses).sum()
