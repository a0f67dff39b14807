"""Run a whole Lightning loop with some transformer blocks skipped."""

from contextlib import ExitStack

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_depth.callbacks.user_module import language_model
from lit_depth.functional.arguments import MAX_UNITS, check_range, checked
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.masking.policies import from_indices
from lit_depth.functional.masking.skip import Phase, masked


class BlockMask(Callback):
    """Skip transformer blocks during fit, validate, test and predict, and give the model back as it was.

    Works with any LightningModule that holds a Hugging Face decoder. The blocks are skipped from the start of a loop
    (sanity checking included) to its end or to the exception that ended it; validation inside fit runs under the same
    mask. Under a distributed strategy that checks gradients, the parameters of skipped blocks count as unused
    (``strategy="ddp_find_unused_parameters_true"``). Not related to the ``BlockMask`` of torch's FlexAttention.

    Args:
        active_block_indices: the blocks that run; give either this or ``skipped_block_indices``.
        skipped_block_indices: the blocks that do not run.
        blocks: dotted path of the block list from the LightningModule, where it cannot be found unambiguously.
        phase: the forwards that the mask applies to, see :func:`~lit_depth.functional.masked`, like the next.
        decode_without_prompt: with ``phase="prefill"``: run the skipped blocks in decode steps.

    Raises:
        ValueError: both or neither of the index lists, a negative index, no active block. At the start of the loop: an
            index out of range or repeated, no active block, or a model that :func:`~lit_depth.functional.masked`
            refuses.

    >>> BlockMask(skipped_block_indices=[0, 3]).skipped_block_indices
    [0, 3]
    """

    @checked
    def __init__(
        self,
        active_block_indices: list[int] | None = None,
        skipped_block_indices: list[int] | None = None,
        blocks: str | None = None,
        phase: Phase = "both",
        decode_without_prompt: bool = False,
    ) -> None:
        super().__init__()
        if (active_block_indices is None) == (skipped_block_indices is None):
            given = "neither" if active_block_indices is None else "both"
            raise ValueError(f"expected exactly one of active_block_indices and skipped_block_indices, got {given}")
        if active_block_indices is not None and not len(active_block_indices):
            raise ValueError("expected at least one active block, got none")
        for indices in (active_block_indices, skipped_block_indices):
            for index in () if indices is None else indices:
                check_range(0, MAX_UNITS - 1, index=index)
        self.active_block_indices = active_block_indices
        self.skipped_block_indices = skipped_block_indices
        self.blocks = blocks
        self.phase: Phase = phase
        self.decode_without_prompt = decode_without_prompt
        self._contexts: list[ExitStack] = []

    def _enter(self, pl_module: LightningModule) -> None:
        model, path = language_model(pl_module, self.blocks)
        num_blocks = len(find_blocks(model, path))
        if self.active_block_indices is not None:
            mask = from_indices(num_blocks, self.active_block_indices)
        else:
            skipped = self.skipped_block_indices or []
            mask = ~from_indices(num_blocks, skipped) if skipped else from_indices(num_blocks, range(num_blocks))
        context = ExitStack()
        context.enter_context(
            masked(model, mask, blocks=path, phase=self.phase, decode_without_prompt=self.decode_without_prompt)
        )
        # validation runs within fit: a stack keeps the outer context until the outer loop ends
        self._contexts.append(context)

    def _leave_all(self) -> None:
        while self._contexts:
            self._contexts.pop().close()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the mask for the whole of a loop; validation within fit enters it once more."""
        self._enter(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the mask of the loop that ends."""
        if self._contexts:
            self._contexts.pop().close()

    on_validation_start = on_test_start = on_predict_start = on_fit_start
    on_validation_end = on_test_end = on_predict_end = on_fit_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave every mask entered so far, whichever loop failed."""
        self._leave_all()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave every mask entered so far: the tuner ends a loop without its end hooks."""
        self._leave_all()
