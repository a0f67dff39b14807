"""Proxy scores of block importance while somebody else's Lightning loop validates or tests.

Activation and relative magnitude, block influence (Men et al. 2024, *ShortGPT*), angular distance (Gromov et al. 2024,
*The Unreasonable Ineffectiveness of the Deeper Layers*), gradient and Taylor scores (Molchanov et al. 2019, *Importance
Estimation for Neural Network Pruning*; Michel et al. 2019, *Are Sixteen Heads Really Better than One?*) and attention
entropy (Clark et al. 2019, *What Does BERT Look At?*). Formulas and units stand in
`lit_depth.functional.importance.proxies`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_depth.callbacks.user_module import accepted, block_key, inputs_and_labels, language_model, undisturbed
from lit_depth.functional import find_blocks
from lit_depth.functional.arguments import check_least, checked
from lit_depth.functional.importance.proxies import METHODS, ProxyScores, check_methods
from lit_depth.functional.masking.skip import unmasked


class ProxyImportance(Callback):
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
        num_batches: Batches to use per loop (and process); None = all.

    Raises:
        ValueError: Unknown methods, or a ``num_batches`` below 1. When the loop starts: no blocks, or gradient methods
            for a quantised model. In the loop: no labels for gradient methods, no attention weights for the entropy.

    To read other batches than mappings of model inputs with ``labels``, override `inputs_of`.

    Example:
        >>> callback = ProxyImportance(["block_influence", "taylor"], num_batches=8)
        >>> callback.methods
        ('block_influence', 'taylor')
    """

    log: Callable[..., None]  # Lightning gives every callback the module's method

    @checked
    def __init__(
        self, methods: Sequence[str] = METHODS, blocks: str | None = None, num_batches: int | None = None
    ) -> None:
        check_least(1, num_batches=num_batches)
        self.methods = check_methods(methods)
        self.blocks = blocks
        self.num_batches = num_batches
        self.importance: dict[str, Tensor] | None = None
        self._scores: ProxyScores | None = None
        self._seen = 0

    def inputs_of(self, pl_module: LightningModule, batch: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        """Model inputs of a batch, and labels ``[batch, seq]`` (-100 = ignored) or None.

        By default as `lit_depth.callbacks.user_module.inputs_and_labels`.
        """
        return inputs_and_labels(pl_module, batch, "override inputs_of")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, path = language_model(pl_module, self.blocks)
        self._scores, self._seen = ProxyScores(model, self.methods, find_blocks(model, path)), 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or (self.num_batches is not None and self._seen >= self.num_batches):
            return
        assert self._scores is not None
        self._seen += 1
        inputs, labels = self.inputs_of(pl_module, batch)
        if not inputs:  # every sample of the batch was bad
            return
        scores = self._scores
        with undisturbed(pl_module), trainer.precision_plugin.forward_context(), unmasked(scores.blocks):
            scores.update(accepted(scores.model, inputs), labels)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores, self._scores = self._scores, None  # its gradients go
        if scores is None or trainer.sanity_checking:
            return
        if trainer.world_size > 1:
            scores.reduce(
                lambda part: trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").to(part.device)
            )
        self.importance = scores.compute()
        for method, values in self.importance.items():
            for block_idx, value in enumerate(values.tolist()):
                self.log(f"importance/{method}/block_{block_key(block_idx, len(scores.blocks))}", value)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
