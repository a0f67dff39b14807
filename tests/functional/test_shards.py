"""Weights of one process are whole; those of several are in models/test_tensor_parallel."""

from __future__ import annotations

import torch
from torch import nn

from lit_depth.functional.shards import holders_of, least_of_holders, own_part, whole


def test_one_process_holds_all():
    model = nn.Linear(3, 2)
    assert holders_of(model) == 1
    assert least_of_holders(model, 7) == 7
    for each in (whole, own_part):
        assert each(model.weight) is model.weight


def test_a_split_weight_says_what_it_is():
    split = type("Split", (), {"full_tensor": lambda self: torch.ones(4), "to_local": lambda self: torch.ones(2)})()
    assert len(whole(split)) == 4 and len(own_part(split)) == 2
