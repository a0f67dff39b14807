"""Floating-point operations of a request under the masks of a run."""

import copy
from collections.abc import Sequence

from lit_depth.functional.latency.flops import count_request
from lit_depth.models.quantization import is_quantized
from lit_depth.module import model_inputs
from lit_depth.studies.shared.run_folder import Run


def count_flops(
    run: Run, split: str, masks: Sequence[str], *, new_tokens: int, batch_size: int = 1
) -> dict[str, dict[str, int]]:
    """Operations of the first readable request of a split under every mask, by stage.

    It is run three times, however many masks there are. Nothing is known (empty) where there is no such request, or of
    quantised weights, whose products torch does not count.

    Args:
        run: Its model's masks may be of image tokens, or of one phase.
        masks: Ids, such as ``"1101"``.
        new_tokens: Tokens that the request generates.
    """
    trainer, model = run.trainer, run.model
    if is_quantized(model.model):
        return {}
    each, device = copy.copy(run.datamodule.for_each_task()[0]), trainer.strategy.root_device
    each.batch_size, each.max_new_tokens = batch_size, new_tokens
    batches = (batch for batch in each.eval_dataloader(split) if len(batch["sample_ids"]) == batch_size)
    batch = next(batches, None)
    if batch is None:
        return {}
    model.to(device)
    try:
        with trainer.precision_plugin.forward_context():
            inputs = model_inputs(model.transfer_batch_to_device(batch, device, 0))
            flops = count_request(
                model.model, inputs, model.masked, new_tokens=new_tokens, blocks=model.hparams["blocks"]
            )
    finally:
        model.cpu()
    return {mask: flops.of_mask(mask) for mask in masks}
