"""Proxy scores of block importance while somebody else's Lightning loop validates or tests.

Their formulas, units and sources stand in `lit_depth.functional.importance.proxies`.
"""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_depth.callbacks.evaluation import EvaluationCallback
from lit_depth.callbacks.user_module import accepted, block_values, inputs_and_labels, undisturbed
from lit_depth.functional import find_blocks
from lit_depth.functional.arguments import checked
from lit_depth.functional.importance.proxies import METHODS, ProxyScores, check_methods
from lit_depth.functional.masking.skip import unmasked


class ProxyImportance(EvaluationCallback):
    """Proxy scores of every block, measured while validating or testing: cheap stand-ins for skipping it.

    After each batch of the loop the model inside the module sees the batch once more: one forward, and one backward if
    a gradient method is asked for, which together cost at most 4 plain forwards. The module's own step is not called,
    and its logged values, training mode, gradients and random state stay as they are, though Lightning runs the loop
    without gradients. At the end of the loop it logs

    | key | unit |
    |---|---|
    | ``importance/taylor/block_07`` (one per method and block) | see `lit_depth.functional.importance.proxies` |

    and keeps the same numbers in :attr:`importance`: method -> float64 ``[num_blocks]``. Scores belong to all samples
    of the loop together, whatever the batch size and the number of processes. Gradient methods keep one float32
    gradient of the blocks' weights in memory until the loop ends.

    The scores are those of the whole model: a mask that `BlockMask` set around the loop is lifted meanwhile.

    Args:
        methods: Some of `lit_depth.functional.importance.proxies.METHODS`; all by default, which needs labels.
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_batches: Batches to use per loop and process; None = all.

    Raises:
        ValueError: Unknown methods, or a ``max_batches`` below 1. When the loop starts: no blocks, or gradient methods
            for a quantised model. In the loop: no labels for gradient methods, no attention weights for the entropy.

    To read other batches than mappings of model inputs with ``labels``, override `inputs_of`.

    Example:
        >>> callback = ProxyImportance(["block_influence", "taylor"], max_batches=8)
        >>> callback.methods
        ('block_influence', 'taylor')
    """

    @checked
    def __init__(
        self, methods: Sequence[str] = METHODS, blocks: str | None = None, max_batches: int | None = None
    ) -> None:
        super().__init__(blocks, max_batches)
        self.methods = check_methods(methods)
        self.importance: dict[str, Tensor] | None = None
        self._scores: ProxyScores | None = None

    def inputs_of(self, pl_module: LightningModule, batch: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        """Model inputs of a batch, and labels ``[batch, seq]`` (-100 = ignored) or None.

        By default as `lit_depth.callbacks.user_module.inputs_and_labels`.
        """
        return inputs_and_labels(pl_module, batch, "override inputs_of")

    def start(self, pl_module: LightningModule, model: nn.Module, path: str) -> None:
        self._scores = ProxyScores(model, self.methods, find_blocks(model, path))

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *place: int) -> bool:
        scores = self._scores
        assert scores is not None
        inputs, labels = self.inputs_of(pl_module, batch)
        if not inputs:
            return False
        with undisturbed(pl_module), trainer.precision_plugin.forward_context(), unmasked(scores.blocks):
            scores.update(accepted(scores.model, inputs), labels)
        return True

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        scores, self._scores = self._scores, None  # its gradients go
        assert scores is not None
        if trainer.world_size > 1:
            scores.reduce(
                lambda part: trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").to(part.device)
            )
        self.importance = scores.compute()
        found: dict[str, float] = {}
        for method, values in self.importance.items():
            found |= block_values(f"importance/{method}/block_{{}}", values)
        return found
