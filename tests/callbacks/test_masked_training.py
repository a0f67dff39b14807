"""Training under a mask in real training runs; what stands around it is in ``tests/recipes/test_heal.py``."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.callbacks.masked_training import MaskedTraining

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
        self.model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4))
        self.interrupted = False

    def training_step(self, batch, batch_idx):
        if self.interrupted and batch_idx:
            raise RuntimeError("on purpose")
        return self.model(batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(module, **options):
    trainer = Trainer(accelerator="cpu", max_epochs=1, **QUIET, callbacks=[MaskedTraining([1], **options)])
    trainer.fit(module, train_dataloaders=DataLoader(torch.randint(16, (8, 8)), batch_size=2))
    return trainer.callbacks[0]


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_adapters_are_trained_and_merged_in_the_blocks_that_run():
    pytest.importorskip("peft", reason="needs the package peft")
    module = Module()
    before = weights(module)
    callback = fit(module, lora_rank=2)
    assert changed(module, before) == {f"model.{name}" for name in callback.adapters.weights}
    assert len(callback.adapters.weights) == 3 * 7 and not any(".1." in name for name in callback.adapters.weights)
    assert list(module.state_dict()) == list(before)


def test_without_adapters_all_but_the_skipped_block_is_trained():
    module = Module()
    before = weights(module)
    fit(module)
    assert changed(module, before) == {name for name in before if "layers.1." not in name}


def test_a_training_that_fails_leaves_no_adapter_and_no_mask():
    pytest.importorskip("peft", reason="needs the package peft")
    module = Module()
    module.interrupted = True
    before = weights(module)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(module, lora_rank=2)
    assert list(module.state_dict()) == list(before) and not changed(module, before)
    assert all("forward" not in vars(block) for block in module.model.model.layers)


def test_a_training_of_which_only_the_teardown_is_told_merges_nothing():
    pytest.importorskip("peft", reason="needs the package peft")
    module = Module()
    before = weights(module)
    callback = MaskedTraining([1], lora_rank=2)
    trainer = Trainer(accelerator="cpu", max_epochs=1, **QUIET)
    callback.setup(trainer, module, "fit")
    adapters = [weight for weight in module.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in adapters:
            weight.add_(1)
    callback.teardown(trainer, module, "fit")
    assert list(module.state_dict()) == list(before) and not changed(module, before)
    assert all("forward" not in vars(block) for block in module.model.model.layers)


@pytest.mark.parametrize("options", [{"lora_rank": 0}, {"drop": 2.0}])
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskedTraining([1], **options)
