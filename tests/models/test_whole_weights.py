"""Conversion on whole weights: in one process it is the operation itself; several are in test_tensor_parallel."""

from __future__ import annotations

import torch
from torch import nn
from transformers.core_model_loading import Concatenate, Split

from lit_depth.models.whole_weights import OnWhole


def test_in_one_process_it_is_the_operation():
    model = nn.ModuleDict({"q": nn.Linear(3, 4, bias=False), "k": nn.Linear(3, 2, bias=False)})
    fused = torch.arange(18.0).view(6, 3)
    asked = {"source_patterns": ["qk"], "target_patterns": ["q", "k"], "full_layer_name": "q.weight", "model": model}
    found, expected = (operation.convert({"qk": [fused]}, **asked) for operation in (OnWhole(Split(0)), Split(0)))
    assert found.keys() == expected.keys() == {"q", "k"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_it_is_undone_as_the_operation_is():
    assert isinstance(OnWhole(Split(0)).reverse_op, Concatenate)
    assert repr(OnWhole(Split(0))) == "OnWhole(Split(dim=0))"
