"""Muon against singular value decompositions, torch's AdamW, and a hand-written step."""

import copy

import pytest
import torch
from torch import nn

from lit_depth.models.loading import new_model
from lit_depth.recipes.muon import Muon, muon_groups, orthogonalize


def quintic(singular: torch.Tensor, steps: int = 5) -> torch.Tensor:
    for _ in range(steps):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """What the iteration does, seen from the singular values: they change, the singular vectors stay."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ torch.diag(quintic(s / s.norm())) @ vh


@pytest.mark.parametrize("size", [(7, 7), (4, 9), (9, 4), (1, 5)])
def test_orthogonalize_changes_the_singular_values_alone(size):
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(matrix).double(), by_svd(matrix), atol=1e-4, rtol=1e-4)


def test_every_matrix_of_a_stack_is_taken_by_itself():
    stack = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 10, 100])[:, None, None]
    torch.testing.assert_close(orthogonalize(stack), torch.stack([orthogonalize(matrix) for matrix in stack]))
    torch.testing.assert_close(orthogonalize(10 * stack), orthogonalize(stack))
    assert torch.linalg.svdvals(orthogonalize(stack)).sub(1).abs().max() < 0.4


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 8)
        self.experts = nn.Parameter(torch.randn(2, 8, 4))
        self.lm_head = nn.Linear(4, 6)


def test_the_bundled_models_matrices_are_told_from_its_tables():
    model, _ = new_model("bundled")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, rest = ([names[id(p)] for p in group["params"]] for group in muon_groups(model.named_parameters()))
    assert len(matrices) + len(rest) == len(names)
    # by what the modules are: linear layers and stacks of experts, but not the table of routes and the output head
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    linear -= {name for name in linear if "patch_embedding" in name}  # a filter over pixels
    stacks = {name for name, parameter in model.named_parameters() if parameter.ndim == 3 and "experts" in name}
    assert set(matrices) == linear | stacks


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_steps_are_adamw_for_the_rest_and_orthogonalised_momentum_for_the_matrices():
    torch.manual_seed(0)
    model, twin = (lambda m: (m, copy.deepcopy(m)))(Tiny())
    rate, decay = 0.02, 0.1
    ours = Muon(muon_groups(model.named_parameters()), lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    matrices = {name for name, p in twin.named_parameters() if name in ("hidden.weight", "experts")}
    rest = [p for name, p in twin.named_parameters() if name not in matrices]
    reference = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    momenta = {name: torch.zeros_like(twin.get_parameter(name)) for name in matrices}
    for seed in range(3):
        set_gradients(model, seed), set_gradients(twin, seed)
        ours.step()
        reference.step()
        for name in matrices:
            parameter = twin.get_parameter(name)
            momenta[name] = 0.95 * momenta[name] + 0.05 * parameter.grad
            update = 0.05 * parameter.grad + 0.95 * momenta[name]
            direction = by_svd(update) if update.ndim == 2 else torch.stack([by_svd(matrix) for matrix in update])
            # the larger side is 8 for both
            parameter.data = (1 - rate * decay) * parameter.data - rate * 0.2 * 8**0.5 * direction.float()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name), atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own Muon since 2.9")
def test_agrees_with_torchs_own_on_a_matrix():
    torch.manual_seed(0)
    start = torch.randn(24, 40)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = (
        Muon([{"params": [ours], "orthogonal": True}], **options),
        torch.optim.Muon([theirs], momentum=0.95, adjust_lr_fn="match_rms_adamw", **options),
    )
    for _ in range(5):
        ours.grad = torch.randn(24, 40)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # theirs iterates in bfloat16
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved and moved > 0.3


def test_a_schedule_moves_both_groups_and_a_saved_state_continues():
    torch.manual_seed(0)
    model = Tiny()
    optimizer = Muon(muon_groups(model.named_parameters()), lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005]
    set_gradients(model, 0)
    optimizer.step()
    twin = copy.deepcopy(model)
    other = Muon(muon_groups(twin.named_parameters()), lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (twin, other)):
        set_gradients(each, 1)
        its.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name)), name
