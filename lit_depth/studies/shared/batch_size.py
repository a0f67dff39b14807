"""The batch size ``auto``: found once per run, the same for every mask and any number of processes."""

import copy
from pathlib import Path

import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional.engine.memory import affordable_bytes, bytes_per_row
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.store import read_of_run, write_of_run
from lit_depth.studies.shared.processes import on_first_process, wait_for
from lit_depth.studies.shared.run_folder import Run

_MAX_AUTO_BATCH = 64


def settle_batch_size(run: Run, split: str, folder: Path) -> int:
    """`find_batch_size` by the first process, once per run: all processes and a resumed run make the same batches.

    Raises:
        ValueError: For a model that several processes hold together.
    """
    path = folder / "batch_size.json"
    if run.model.is_split:
        raise ValueError("--data.batch_size auto is found by one process alone: with --model.tp_plan give a number")

    def find() -> None:
        if not path.is_file():
            size = find_batch_size(run.model, run.datamodule, split, run.trainer.strategy.root_device)
            write_of_run(path, {"batch_size": size})

    on_first_process(run.trainer, find)
    wait_for(path, "give --data.batch_size")
    return max(1, read_of_run(path, batch_size=int)["batch_size"])


def find_batch_size(model: DepthModule, datamodule: DepthDataModule, split: str, device: torch.device) -> int:
    """Largest power of two, up to 64 samples and ``max_rows``, at which the full model answers without memory trouble.

    It is found by answering the split's first samples once, never per mask: all masks must see the same batches. The
    number of processes does not count, so that their results are those of one, to the last digit; where there are fewer
    batches than processes, some have nothing to do. Beyond some dozens of samples a larger batch no longer gains speed,
    because masks are rows too.
    """
    limit = min(_MAX_AUTO_BATCH, model.hparams["max_rows"] or _MAX_AUTO_BATCH, len(datamodule.eval_dataset(split)))
    size = 1 << max(0, limit.bit_length() - 1)
    trial = copy.copy(datamodule)
    while True:
        trial.batch_size = size
        try:
            model.to(device)
            batch = model.transfer_batch_to_device(next(iter(trial.eval_dataloader(split))), device, 0)
            if not batch["sample_ids"]:  # all bad: nothing to try
                break
            # keys, values and logits must fit a share of the memory, as they must for the masks later
            row = bytes_per_row(
                model.model, model_inputs(batch), model.max_new_tokens, batch.get("answer_ids"), model.num_blocks
            )
            if size * row <= affordable_bytes(model.model):
                model.predict_step(batch)
                break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if size == 1:
            raise ValueError("not even a single sample fits in memory")
        size //= 2
    model.cpu()
    return size
