"""Training under a mask, in real training runs of a model of four blocks."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Trainer

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, from_mask_id, masked, patch
from lit_depth.functional.healing.answers import with_answers
from lit_depth.models.loading import BUNDLED
from lit_depth.module import model_inputs
from lit_depth.recipes.heal import Heal
from lit_depth.recipes.train_shapes import DepthScaledInit
from tests.helpers.commands import run

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config") / "tiny"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 4}))
    return str(folder)


def new_module(folder, **options):
    torch.manual_seed(0)
    module = DepthModule(folder, from_scratch=True, **options)
    DepthScaledInit().on_fit_start(None, module)
    return module


def new_data():
    return DepthDataModule(train_batch_size=2, train_images=4, calibration_samples=8, batch_size=4)


def fit(module, callback):
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, callbacks=[callback], **QUIET)
    trainer.fit(module, datamodule=new_data())


def changed_blocks(module, before):
    after = module.model.state_dict()
    blocks = find_blocks(module)
    path = next(name for name, each in module.model.named_modules() if each is blocks)
    return [
        block_idx
        for block_idx in range(len(blocks))
        if any(
            not torch.equal(after[name], value)
            for name, value in before.items()
            if name.startswith(f"{path}.{block_idx}.")
        )
    ]


def weights(module):
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def test_skipped_blocks_are_not_trained_and_the_mask_is_left(folder):
    module = new_module(folder, warmup_steps=0)
    before = weights(module)
    fit(module, Heal([1, 2], patch_first=False))
    assert changed_blocks(module, before) == [0, 3]
    assert all("forward" not in vars(block) for block in find_blocks(module))


def test_layer_drop_leaves_the_first_block(folder):
    module = new_module(folder, warmup_steps=0)
    before = weights(module)
    fit(module, Heal([1], patch_first=False, drop=1.0))
    assert changed_blocks(module, before) == [0]


def test_without_learning_the_written_checkpoint_is_the_patched_model(folder, tmp_path):
    module = new_module(folder, learning_rate=0.0)
    data = new_data()
    data.attach(module)
    batches = [
        with_answers(model_inputs(batch), batch["answer_ids"], module.pad_token_id)
        for batch in data.eval_dataloader("calibration")
    ]
    expected = patch(module.model, from_mask_id("1101"), batches).weights
    before = weights(module)
    fit(module, Heal([2], folder=str(tmp_path / "healed")))
    written = DepthModule(str(tmp_path / "healed")).model.state_dict()
    assert expected and any(not torch.equal(before[name], value) for name, value in expected.items())
    for name, value in (before | expected).items():
        torch.testing.assert_close(written[name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_a_trained_checkpoint_is_exported_with_the_blocks_that_it_was_healed_for(folder, tmp_path):
    module = new_module(folder, warmup_steps=0)
    fit(module, Heal([1], folder=str(tmp_path / "healed")))
    few = ["--data.num_samples", "8", "--data.calibration_samples", "8"]
    healed = ["--model.checkpoint", tmp_path / "healed", *few, "--output_dir", tmp_path]
    assert run(["export", *healed, "--num_questions", "2", "--skip", "1", "--out", tmp_path / "small"]) == 0
    assert run(["compare", *healed, "--num_requests", "0", "--active_block_indices", "[[0, 2, 3]]"]) == 0
    chosen = ["--from", tmp_path / "compare/default", "--policy", "blocks 0 2 3", "--num_active_blocks", "3"]
    assert run(["export", *healed, *chosen, "--num_questions", "2", "--out", tmp_path / "again"]) == 0
    small, again = (DepthModule(str(tmp_path / name)).model for name in ("small", "again"))
    ids = torch.arange(2, 14)[None]
    with masked(module.model, from_mask_id("1011")), torch.no_grad():
        expected = module.model.eval()(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, expected, rtol=0, atol=1e-6)
        assert torch.equal(again(ids).logits, small(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"skipped_block_indices": []}, "the blocks to make up for, got none"),
        ({"skipped_block_indices": [1], "drop": 1.5}, "drop"),
        ({"skipped_block_indices": "1"}, "expected skipped_block_indices as"),
    ],
)
def test_wrong_arguments_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        Heal(**arguments)


@pytest.mark.parametrize(("skipped", "expected"), [([4], "4"), ([0], "no block before it")])
def test_a_block_that_cannot_be_healed_is_refused_when_training_starts(folder, skipped, expected):
    with pytest.raises(ValueError, match=expected):
        fit(new_module(folder), Heal(skipped))


def test_adapters_that_learn_nothing_leave_the_patched_model(folder):
    pytest.importorskip("peft", reason="needs the package peft")
    one, other = new_module(folder, learning_rate=0.0), new_module(folder, learning_rate=0.0)
    fit(one, Heal([1], lora_rank=2))
    fit(other, Heal([1]))
    expected = weights(other)
    assert all(torch.equal(value, expected[name]) for name, value in weights(one).items())
    trained = new_module(folder, warmup_steps=0)
    before = weights(trained)
    fit(trained, Heal([1, 2], patch_first=False, lora_rank=2))
    assert changed_blocks(trained, before) == [0, 3]
    after = weights(trained)
    assert all(torch.equal(after[name], value) for name, value in before.items() if ".layers." not in name)
