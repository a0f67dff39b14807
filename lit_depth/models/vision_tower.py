"""What has to be set right in a vision tower of transformers before it is used."""

from __future__ import annotations

from torch import nn
from transformers import Phi4MultimodalVisionConfig


def attend_both_ways(model: nn.Module) -> None:
    """Let every patch see all others in the tower of Phi-4-multimodal, whose attention says that it is causal.

    With sdpa, transformers 5.24 then attends causally wherever no patch of a batch is padding, and both ways where one
    is: what a picture says depends on the pictures beside it. Its eager attention always attends both ways.
    """
    for module in model.modules():
        if isinstance(getattr(module, "config", None), Phi4MultimodalVisionConfig) and hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]  # no parameter and no module, whatever nn.Module says
