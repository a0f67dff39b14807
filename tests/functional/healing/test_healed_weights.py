"""Healed weights are in the model inside the ``with`` statement, and nowhere else."""

import pytest
import torch
from torch import nn

from lit_depth.functional.healing.healed_weights import HealedWeights


def test_weights_are_applied_and_given_back_bit_for_bit_also_after_an_exception():
    model = nn.Linear(3, 2)
    before, copy, new = model.weight.data, model.weight.data.clone(), torch.arange(6.0).reshape(2, 3)
    healed = HealedWeights(model, torch.tensor([True]), {"weight": new})
    with pytest.raises(RuntimeError, match="on purpose"), healed.applied():
        assert torch.equal(model.weight, new)
        raise RuntimeError("on purpose")
    assert model.weight.data_ptr() == before.data_ptr() and torch.equal(model.weight, copy)
    assert healed.apply() is model and torch.equal(model.weight, new)
