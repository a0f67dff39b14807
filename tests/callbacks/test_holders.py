"""Trainers and loaders that do not fit processes which hold one model together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lit_depth.callbacks.holders import check_holders, check_same_batches
from lit_depth.data.eval_dataset import BatchShards


def test_a_trainer_of_other_processes_is_refused():
    check_holders(SimpleNamespace(world_size=2, precision="32-true"), 2)
    with pytest.raises(ValueError, match="run the 2 processes that hold the model, got 1: give --trainer.devices"):
        check_holders(SimpleNamespace(world_size=1, precision="32-true"), 2)
    with pytest.raises(ValueError, match="expected --trainer.precision 32-true, got 16-mixed"):
        check_holders(SimpleNamespace(world_size=2, precision="16-mixed"), 2)


def test_batches_that_are_dealt_out_are_refused():
    rows = list(range(8))
    check_same_batches(None)
    check_same_batches([DataLoader(rows), DataLoader(rows, sampler=BatchShards(rows, 2, 0, 1))])
    dealt = DataLoader(rows, sampler=DistributedSampler(rows, 2, 0))
    with pytest.raises(ValueError, match="dealt out to 2 processes: give --trainer.use_distributed_sampler false"):
        check_same_batches([DataLoader(rows), dealt])
