"""How many experts a token goes to, chosen when a mixture of experts is loaded."""

from __future__ import annotations

from typing import Any

# names of the field, and of the number of experts, by which families configure their routers
_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def set_experts_per_token(config: Any, experts_per_token: int | None) -> None:
    """Change a configuration so that the model made from it routes each token to so many experts.

    The router's scores stay what they are: the best ``experts_per_token`` of them are taken, and weighted as the family
    weights them.

    Args:
        config: Of a model, or of one with a text model inside.
        experts_per_token: At least 1; None = leave it as it is.

    Raises:
        ValueError: If the text model has no experts, or fewer than asked for.

    >>> from transformers import OlmoeConfig
    >>> config = OlmoeConfig(num_experts=8, num_experts_per_tok=4)
    >>> set_experts_per_token(config, 2)
    >>> config.num_experts_per_tok
    2
    """
    if experts_per_token is None:
        return
    text = config.get_text_config(decoder=True)
    name = next((name for name in _PER_TOKEN if isinstance(getattr(text, name, None), int)), None)
    num_experts = next((count for each in _EXPERTS if isinstance(count := getattr(text, each, None), int)), 0)
    if name is None or num_experts < 1:
        raise ValueError(
            f"expected no --model.experts_per_token for a {text.model_type} model, whose blocks have no experts to "
            f"choose from, got {experts_per_token}; leave it out"
        )
    if not 1 <= experts_per_token <= num_experts:
        raise ValueError(
            f"expected experts_per_token from 1 to {num_experts}, the experts of a block, got {experts_per_token}"
        )
    setattr(text, name, experts_per_token)
