"""Proxy scores of block importance while somebody else's Lightning loop validates or tests.

Activation and relative magnitude, block influence (Men et al. 2024, *ShortGPT*), angular distance (Gromov et al. 2024,
*The Unreasonable Ineffectiveness of the Deeper Layers*), gradient and Taylor scores (Molchanov et al. 2019, *Importance
Estimation for Neural Network Pruning*; Michel et al. 2019, *Are Sixteen Heads Really Better than One?*) and attention
entropy (Clark et al. 2019, *What Does BERT Look At?*). Formulas and units stand in `lit_depth.functional.importance`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import find_blocks, masked
from lit_depth.functional.checks import check_least, checked
from lit_depth.functional.importance import METHODS, ProxyScores, check_methods
from lit_depth.functional.scoring import IGNORE, with_answers


class ProxyImportance(Callback):
    """Proxy scores of every block, measured while validating or testing: cheap stand-ins for skipping it.

    After each batch of the loop the model inside the module sees the batch once more: one forward, and one backward if
    a gradient method is asked for, which together cost at most 4 plain forwards. The module's own step is not called,
    and its logged values, training mode, gradients and random state stay as they are, though Lightning runs the loop
    without gradients. At the end of the loop it logs

    | key | unit |
    |---|---|
    | ``importance/taylor/block_07`` (one per method and block) | see `lit_depth.functional.importance` |

    and keeps the same numbers in :attr:`importance`: method -> float64 ``[num_blocks]``. Scores belong to all samples
    of the loop together, whatever the batch size and the number of processes. Gradient methods keep one float32
    gradient of the blocks' weights in memory until the loop ends.

    The scores are those of the whole model: a mask that `BlockMask` set around the loop is lifted meanwhile.

    Args:
        methods: Some of `lit_depth.functional.importance.METHODS`; all by default, which needs labels.
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

        By default the batch is a mapping whose tensors are all inputs of the model, ``labels`` aside. Of the evaluation
        batches of this package, the reference answers (``answer_ids``) are what is labelled.
        """
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"expected a batch that maps names to model inputs, given {type(batch).__name__}; override inputs_of"
            )
        inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        answers = inputs.pop("answer_ids", None)
        if answers is None:
            return inputs, inputs.pop("labels", None)
        prompt = torch.full_like(inputs["input_ids"], IGNORE)
        # which token fills up the answers does not matter: nothing sees it
        return with_answers(inputs, answers, pad=0), torch.cat([prompt, answers], dim=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        blocks = find_blocks(pl_module, self.blocks)
        # the outermost one: modules come from the outside in
        models = (module for module in pl_module.modules() if isinstance(module, PreTrainedModel))
        model = next((model for model in models if any(part is blocks for part in model.modules())), pl_module)
        self._scores, self._seen = ProxyScores(model, self.methods, blocks), 0

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
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            with _whole(pl_module, len(self._scores.blocks), self.blocks):
                self._scores.update(inputs, labels)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores, self._scores = self._scores, None  # its gradients go
        if scores is None or trainer.sanity_checking:
            return
        if trainer.world_size > 1:
            scores.reduce(
                lambda part: trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").to(part.device)
            )
        self.importance = scores.compute()
        width = max(2, len(str(len(scores.blocks) - 1)))
        for method, values in self.importance.items():
            for block_idx, value in enumerate(values.tolist()):
                self.log(f"importance/{method}/block_{block_idx:0{width}d}", value)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def _whole(pl_module: LightningModule, num_blocks: int, blocks: str | None) -> AbstractContextManager[Any]:
    """Every block runs, whatever mask is set around; blocks that cannot be skipped have none."""
    try:
        return masked(pl_module, [True] * num_blocks, blocks=blocks)
    except ValueError:
        return nullcontext()
