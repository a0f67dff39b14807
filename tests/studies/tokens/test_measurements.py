"""Where token masking is computed, and which tokens are hidden together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lit_depth.studies.tokens.measurements import find_device, spans_of

TRAINER = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))


def test_the_device_is_the_trainers_unless_one_is_named():
    assert find_device(None, TRAINER) == torch.device("cpu") == find_device("cpu", TRAINER)
    for name in ("abc", "cuda:99", "cpu:x"):
        with pytest.raises(ValueError, match=f"device: expected cpu, cuda or cuda:1 .*{name}"):
            find_device(name, TRAINER)


@pytest.mark.parametrize(
    ("kinds", "spans"),
    [
        (["start", "text"], {}),
        (["start", "text", "text"], {"text": [1]}),
        (["vision", "vision", "vision"], {"image": [0, 1]}),
        (["start", "vision", "text", "vision", "text"], {"image": [1, 3], "text": [2]}),
        ([], {}),
    ],
)
def test_the_final_token_belongs_to_no_span(kinds, spans):
    assert spans_of(kinds) == spans
