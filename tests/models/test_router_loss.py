"""The router's loss against its formula, written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lit_depth.models.router_loss import has_experts, router_loss

TEXT = SimpleNamespace(num_experts=4, num_experts_per_tok=2)
MODEL = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: TEXT))


def by_hand(logits: torch.Tensor, real: torch.Tensor) -> float:
    """experts * sum over experts of (choices per token) * (mean probability), over real tokens alone."""
    rows = logits[real.flatten().bool()].softmax(-1)
    chosen = torch.zeros_like(rows).scatter(1, rows.topk(2).indices, 1.0)
    return float(4 * (chosen.mean(0) * rows.mean(0)).sum())


@pytest.mark.parametrize("per_query", [False, True])
def test_it_is_the_formula_summed_over_blocks_without_padding(per_query):
    torch.manual_seed(0)
    logits = [torch.randn(10, 4) for _ in range(3)]
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    given = mask[:, None, :, None].expand(2, 1, 5, 5) if per_query else mask
    expected = sum(by_hand(each, mask) for each in logits)
    assert router_loss(MODEL, logits, given).item() == pytest.approx(expected, rel=1e-5)


def test_experts_that_share_evenly_cost_as_much_as_a_token_has():
    even = torch.zeros(4, 4) + torch.eye(4) * 1e-6 + torch.eye(4).roll(1, 1) * 1e-6
    assert router_loss(MODEL, [even], torch.ones(1, 4)).item() == pytest.approx(2.0, rel=1e-4)


def test_a_dense_model_has_none():
    dense = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace()))
    assert has_experts(MODEL) and not has_experts(dense)
