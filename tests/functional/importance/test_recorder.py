"""What is seen of blocks during one forward: sums over the tokens that are not padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_depth.functional.importance.methods import TABLE
from lit_depth.functional.importance.recorder import BlockRecorder

MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])


class Scale(nn.Module):
    """A block that multiplies; it gives attention weights that are even."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.attention = factor, Even()

    def forward(self, hidden_states):
        self.attention(hidden_states)
        return hidden_states * self.factor


class Even(nn.Module):
    def forward(self, hidden_states):
        batch, length = hidden_states.shape[:2]
        return hidden_states, torch.full((batch, 2, length, length), 1 / length)


def watched(names: list[str], states: torch.Tensor, factors=(2.0, -1.0)) -> BlockRecorder:
    blocks = nn.ModuleList(Scale(factor) for factor in factors)
    with BlockRecorder(blocks, MASK, [TABLE[name] for name in names]) as watch:
        for block in blocks:
            states = block(states)
    assert not any(block._forward_hooks or block.attention._forward_hooks for block in blocks)
    return watch


def test_sums_are_over_tokens_and_rows_that_are_no_padding():
    states = torch.ones(2, 3, 4)
    states[0, 0] = torch.nan  # padding
    names = ["activation_magnitude", "angular_distance", "angular_distance_last_token", "attention_entropy"]
    watch = watched(names, states)
    watch.check(None)
    totals = watch.totals()
    assert list(totals) == names
    # five tokens, two rows; norms of 2 x (2, 2, 2, 2), and half a turn in the second block
    assert totals["activation_magnitude"].tolist() == [[20.0, 20.0], [5.0, 5.0]]
    assert totals["angular_distance"].tolist() == [[0.0, 5.0], [5.0, 5.0]]
    assert totals["angular_distance_last_token"].tolist() == [[0.0, 2.0], [2.0, 2.0]]
    torch.testing.assert_close(totals["attention_entropy"][0], 5 * torch.tensor([3.0, 3.0]).double().log())


def test_what_is_not_finite_names_its_first_block():
    with pytest.raises(ValueError, match="finite hidden states, got NaN or infinite ones first from block 1"):
        watched(["block_influence"], torch.ones(2, 3, 4), factors=(1.0, torch.inf, 1.0)).check(None)


def test_a_block_that_did_not_run_and_another_shape_are_named():
    blocks = nn.ModuleList([Scale(1.0), Scale(1.0)])
    with BlockRecorder(blocks, MASK, [TABLE["block_influence"]]) as watch:
        blocks[0](torch.ones(2, 3, 4))
        with pytest.raises(ValueError, match="block 1 sees tokens of shape"):
            blocks[1](torch.ones(2, 5, 4))
    watch = BlockRecorder(blocks, MASK, [])
    with pytest.raises(ValueError, match=r"blocks \[0, 1\] fired none"):
        watch.check(None)
