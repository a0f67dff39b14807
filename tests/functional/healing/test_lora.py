"""Adapters in the kept blocks: nothing before the first step, the trained function when they are merged."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import FalconConfig, GPT2Config, LlamaConfig, OlmoeConfig, Qwen2MoeConfig

from lit_depth.functional import from_mask_id, masked
from lit_depth.functional.healing.lora import adapted, check_peft

SIZES = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=24),
    "falcon": FalconConfig(**SIZES),  # whose layers are a class of its own
    "olmoe": OlmoeConfig(**SIZES, **EXPERTS),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES, **EXPERTS, num_key_value_heads=2, moe_intermediate_size=8, shared_expert_intermediate_size=8
    ),
}
MASK = from_mask_id("1011")
IDS = torch.arange(24).reshape(3, 8) % 15 + 1


@pytest.fixture(params=CONFIGS)
def model(request):
    pytest.importorskip("peft", reason="needs the package peft")
    torch.manual_seed(0)
    return Auto.from_config(CONFIGS[request.param]).eval()


@torch.no_grad()
def logits(model):
    with masked(model, MASK):
        return model(IDS, use_cache=False).logits


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_without_a_step_the_model_is_the_same_bit_for_bit(model):
    before, expected, random = weights(model), logits(model), torch.get_rng_state()
    with adapted(model, MASK):
        assert torch.equal(logits(model), expected)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits(model), expected) and torch.equal(torch.get_rng_state(), random)
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_merge_that_is_interrupted_leaves_no_adapter(model, monkeypatch):
    from peft.tuners.lora import LoraModel

    def interrupted(_tuner):
        raise KeyboardInterrupt

    before = weights(model)
    monkeypatch.setattr(LoraModel, "merge_and_unload", interrupted)
    with pytest.raises(KeyboardInterrupt), adapted(model, MASK):
        pass
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_what_was_trained_is_merged_into_the_kept_blocks_alone(model):
    before, expected = weights(model), logits(model)
    with adapted(model, MASK, rank=4) as adapters:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert sum(weight.numel() for weight in trained) == adapters.num_parameters
        with torch.no_grad():
            for weight in trained:
                weight += 0.1 * torch.randn_like(weight)
        adapted_logits = logits(model)
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == set(adapters.weights) and not any(".1." in name for name in changed)
    kept = [name for name in before if any(f".{block}." in name for block in (0, 2, 3)) and before[name].ndim > 1]
    # a router is no linear layer
    assert changed == {name for name in kept if not name.endswith("mlp.gate.weight")}
    torch.testing.assert_close(logits(model), adapted_logits, rtol=1e-5, atol=1e-5)
    assert (adapted_logits - expected).abs().max() > 0.01


def test_an_exception_takes_adapters_away_unmerged(model):
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), adapted(model, MASK):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(weight.requires_grad)
        raise KeyboardInterrupt
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_what_cannot_be_adapted_is_refused():
    pytest.importorskip("peft", reason="needs the package peft")
    other = Auto.from_config(GPT2Config(vocab_size=16, n_embd=16, n_layer=4, n_head=2))
    with pytest.raises(ValueError, match="cannot adapt a GPT2Block: .* train all of its weights instead"):
        with adapted(other, MASK):
            pass
    tied = Auto.from_config(CONFIGS["llama"])
    tied.model.layers[2].mlp.up_proj.weight = tied.model.layers[1].mlp.up_proj.weight
    with pytest.raises(ValueError, match="up_proj.weight: it is shared with"), adapted(tied, MASK):
        pass
    assert not any("lora" in type(module).__module__ for model in (other, tied) for module in model.modules())


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'lit_depth\[lora\]'"):
        check_peft()
