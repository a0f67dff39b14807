"""Another value anywhere gives another digest; a sample finds another model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lit_depth.functional import fingerprints
from lit_depth.functional.fingerprints import weights_digest, weights_sample


def model() -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20, dtype=torch.bfloat16))
    found.register_buffer("scalar", torch.tensor(3))
    found.register_buffer("flags", torch.tensor([True, False]))
    found.register_buffer("transposed", torch.arange(12.0).view(3, 4).t())
    found.register_buffer("empty", torch.zeros(0))
    return found


def test_every_value_counts() -> None:
    """Each of the 1,900 numbers is changed in turn by the smallest step that its format has."""
    original = model()
    before, seen = weights_digest(original), set()
    for name, value in original.state_dict().items():
        flat = value.view(-1) if value.is_contiguous() else value.t().view(-1)
        for index in range(0, flat.numel(), 1 if flat.numel() < 50 else 97):
            kept = flat[index].clone()
            flat[index] = ~kept if kept.dtype == torch.bool else kept + (1 if kept.dtype == torch.long else 1e-2)
            seen.add(weights_digest(original))
            assert weights_digest(original) != before, (name, index)
            flat[index] = kept
    assert weights_digest(original) == before and len(seen) > 30


@pytest.mark.parametrize("digest", [weights_digest, weights_sample])
def test_another_model_name_shape_or_type_is_another(digest) -> None:
    original = model()
    found = {digest(original), digest(copy.deepcopy(original))}
    assert len(found) == 1
    torch.manual_seed(1)
    for other in (
        nn.Sequential(original[0]),
        nn.Sequential(nn.Linear(40, 30), original[1]),
        copy.deepcopy(original).double(),
        nn.ModuleDict({"a": original[0], "1": original[1]}),
        nn.Sequential(nn.Linear(40, 30, device="meta")),
        nn.Sequential(nn.Linear(30, 40, device="meta")),
    ):
        found.add(digest(other))
    assert len(found) == 7


def test_large_weights_are_read_in_parts_and_by_threads(monkeypatch) -> None:
    """The digest says nothing about how it was taken."""
    large = nn.Linear(500, 300)
    whole = {weights_digest(large)}
    monkeypatch.setattr(fingerprints, "_CHUNK_BYTES", 1000)
    threads = torch.get_num_threads()
    for count in (1, 4):
        torch.set_num_threads(count)
        whole.add(weights_digest(large))
    torch.set_num_threads(threads)
    assert len(whole) == 2  # parts are hashed one by one; threads change nothing
