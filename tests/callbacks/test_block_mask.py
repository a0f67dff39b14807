from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.callbacks.block_mask import BlockMask

SKIPPED = [0, 2]


class TinyModule(LightningModule):
    """Counts, per stage, the block calls that did work, by hooks on the attention of each block."""

    def __init__(self, fail_in: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=4)
        self.model = LlamaForCausalLM(LlamaConfig(**sizes))
        self.fail_in = fail_in
        self.ran: dict[str, set[int]] = {}
        for index, block in enumerate(self.model.model.layers):
            block.self_attn.register_forward_hook(lambda *_, index=index: self.ran[self.stage].add(index))

    def step(self, batch: Tensor, stage: str) -> Tensor:
        self.stage = stage
        self.ran.setdefault(stage, set())
        loss = self.model(batch, labels=batch).loss
        if stage == self.fail_in:
            raise RuntimeError("on purpose")
        return loss

    def training_step(self, batch: Tensor) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Tensor) -> None:
        self.step(batch, "sanity" if self.trainer.sanity_checking else "validate")

    def test_step(self, batch: Tensor) -> None:
        self.step(batch, "test")

    def predict_step(self, batch: Tensor) -> Tensor:
        return self.step(batch, "predict")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(*callbacks: Callback, **kwargs) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(torch.randint(0, 16, (4, 5), generator=torch.Generator().manual_seed(0)), batch_size=2)


def instance_forwards(module: TinyModule) -> list[bool]:
    return ["forward" in block.__dict__ for block in module.model.model.layers]


def test_fit_with_validation_inside_runs_under_the_mask_throughout(loader):
    module = TinyModule()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    # half-way validation: training goes on under the mask after validation has left its own
    trainer(BlockMask(skipped_block_indices=SKIPPED), val_check_interval=1).fit(module, loader, loader)
    assert module.ran == {"sanity": {1, 3}, "train": {1, 3}, "validate": {1, 3}}
    assert instance_forwards(module) == [False] * 4
    after = module.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        is_skipped = any(f"layers.{index}." in name for index in SKIPPED)
        assert torch.equal(after[name], value) == is_skipped, name


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_runs_under_the_mask(loader, stage):
    module = TinyModule()
    getattr(trainer(BlockMask(active_block_indices=[1, 3])), stage)(module, loader)
    assert module.ran == {stage: {1, 3}}
    assert instance_forwards(module) == [False] * 4


@pytest.mark.parametrize("stage", ["sanity", "train", "validate", "test", "predict"])
def test_model_is_restored_after_an_exception(loader, stage):
    module = TinyModule(fail_in=stage)
    loop = {"sanity": "fit", "train": "fit"}.get(stage, stage)
    loaders = (loader, loader) if loop == "fit" else (loader,)
    callback = BlockMask(skipped_block_indices=SKIPPED)
    with pytest.raises(RuntimeError, match="on purpose"):
        getattr(trainer(callback), loop)(module, *loaders)
    assert module.ran[stage] == {1, 3}
    assert instance_forwards(module) == [False] * 4
    # the same callback works again
    module.fail_in = None
    trainer(callback).predict(module, loader)
    assert module.ran["predict"] == {1, 3} and instance_forwards(module) == [False] * 4


def test_dotted_path(loader):
    module = TinyModule()
    trainer(BlockMask(active_block_indices=[3], blocks="model.model.layers")).predict(module, loader)
    assert module.ran == {"predict": {3}}


def test_no_skipped_block_is_the_whole_model(loader):
    module = TinyModule()
    trainer(BlockMask(skipped_block_indices=[])).predict(module, loader)
    assert module.ran == {"predict": {0, 1, 2, 3}}


def test_exactly_one_index_list():
    with pytest.raises(ValueError, match="exactly one .* given neither"):
        BlockMask()
    with pytest.raises(ValueError, match="exactly one .* given both"):
        BlockMask(active_block_indices=[0], skipped_block_indices=[1])


@pytest.mark.parametrize("kwargs", [{"active_block_indices": []}, {"skipped_block_indices": [-1]}])
def test_what_fits_no_model_is_refused_at_once(kwargs):
    with pytest.raises(ValueError, match="at least one active block|index from 0 to 9999, given -1"):
        BlockMask(**kwargs)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"active_block_indices": [4]}, "between 0 and 3, given 4"),
        ({"skipped_block_indices": [0, 1, 2, 3]}, "at least one active block"),
        ({"skipped_block_indices": [1, 1]}, "distinct"),
        ({"skipped_block_indices": [1], "blocks": "model.layers"}, "no module at 'model.layers'"),
    ],
)
def test_indices_are_checked_when_the_model_is_known(loader, kwargs, message):
    with pytest.raises(ValueError, match=message):
        trainer(BlockMask(**kwargs)).predict(TinyModule(), loader)
