"""The map that ends a block is found by trying, and folding a map into it changes the output by just that map."""

import pytest
import torch
from torch import nn

from lit_depth.functional import find_blocks
from lit_depth.functional.healing import outputs
from lit_depth.functional.healing.outputs import ExpertsMap, LinearMap, NormMap, find_output, swapped
from lit_depth.functional.healing.ridge import RidgeFit
from tests.helpers.tiny_models import tiny_model

KINDS = {
    "llama": LinearMap,
    "qwen3": LinearMap,
    "mistral": LinearMap,
    "gpt_neox": LinearMap,
    "falcon": LinearMap,
    "olmoe": ExpertsMap,
    "olmo2": NormMap,
    "gemma2": NormMap,
}


def found(family):
    model = tiny_model(family)
    ids = torch.arange(1, 11).view(2, 5)
    block = find_blocks(model)[1]
    states = []

    @torch.no_grad()
    def run():
        hook = block.register_forward_hook(lambda _m, _a, out: states.append(out if torch.is_tensor(out) else out[0]))
        try:
            model(ids, use_cache=False)
        finally:
            hook.remove()
        return states.pop()

    width = model.config.get_text_config().hidden_size
    return find_output(block, width, run), run, width


@pytest.mark.parametrize("of_outputs", [False, True])
@pytest.mark.parametrize("family", KINDS)
def test_a_folded_map_adds_its_image_to_the_blocks_output(family, of_outputs, monkeypatch):
    if of_outputs:
        monkeypatch.setattr(outputs, "MOST_FEATURES", 1)
    output, run, width = found(family)
    assert type(output) is KINDS[family]
    features = []
    hook = output.module.register_forward_hook(lambda _m, args, given: features.append(output.features(args, given)))
    before = run()
    hook.remove()
    (features,) = features
    generator = torch.Generator().manual_seed(1)
    shape = (width,) if output.by_channel else (features.shape[1], width)
    change = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    weights = dict(output.module.named_parameters(recurse=False))
    new = {weights[name]: value.float() for name, value in output.folded(RidgeFit(change, 0.0, 0.0)).items()}
    with swapped(new):
        after = run()
    image = features.double() * change if output.by_channel else features.double() @ change
    torch.testing.assert_close((after - before).flatten(0, 1).double(), image, rtol=1e-4, atol=1e-5)


def test_a_multiple_on_the_way_to_the_stream_is_seen():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)

        def forward(self, states):
            return states + 0.25 * self.last(states)

    torch.manual_seed(0)
    block, states = Scaled(), torch.randn(1, 6, 4)
    output = find_output(block, 4, lambda: block(states))
    assert output.scale == pytest.approx(0.25)
    change = torch.randn(5, 4).double()
    new = output.folded(RidgeFit(change, 0.0, 0.0))
    before = block(states)
    with swapped({block.last.weight: new["weight"].float(), block.last.bias: new["bias"].float()}):
        torch.testing.assert_close(block(states) - before, (states.double() @ change[:4] + change[4]).float())


def test_a_block_without_such_a_map_is_refused_by_name():
    class Squashed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)

        def forward(self, states):
            return states + self.last(states).tanh()

    block, states = Squashed(), torch.randn(1, 6, 4)
    with pytest.raises(ValueError, match="cannot patch a Squashed"):
        find_output(block, 4, lambda: block(states))


def test_swapped_weights_come_back_after_an_exception():
    layer = nn.Linear(2, 2)
    before = layer.weight.data
    with pytest.raises(RuntimeError), swapped({layer.weight: torch.zeros(2, 2)}):
        assert not layer.weight.any()
        raise RuntimeError
    assert layer.weight.data_ptr() == before.data_ptr()
