"""What a DepthModule says of its answers, and where they end."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional.engine.api import answer_masks
from lit_depth.models.loading import BUNDLED
from lit_depth.module import model_inputs
from lit_depth.studies.shared.identity import model_identity


@pytest.fixture
def module() -> DepthModule:
    return DepthModule("bundled")


def first_batch(module, size=4):
    return next(iter(DepthDataModule(module.prompter, batch_size=size, num_samples=size).eval_dataloader()))


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "router_loss"])
def test_rates_are_finite(name):
    with pytest.raises(ValueError, match=f"expected a finite {name} of at least 0, got inf"):
        DepthModule(**{name: float("inf")})


def test_an_answer_ends_with_an_end_token_of_the_model_or_the_tokenizer(module):
    tokenizer, batch = module.tokenizer, first_batch(module)
    assert module.end_token_ids == [tokenizer.eos_token_id]
    (texts,) = module.predict_step(batch).texts
    words = [tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"] for text in texts]
    module.model.generation_config.eos_token_id = [words[0][0], words[1][0]]
    assert module.end_token_ids == sorted({tokenizer.eos_token_id, words[0][0], words[1][0]})
    inputs, full = model_inputs(batch), torch.ones(1, module.num_blocks, dtype=torch.bool)
    halves = full.repeat(1, 2)
    for masks, granularity in ((full, "block"), (halves, "sublayer")):
        tokens, _ = answer_masks(
            module.model, inputs, masks, max_new_tokens=4, eos_token_id=module.end_token_ids, pad_token_id=1,
            granularity=granularity,
        )  # fmt: skip
        assert tokens[0, :2].tolist() == [[words[0][0], 1, 1, 1], [words[1][0], 1, 1, 1]]
    module.tokenizer.eos_token = None
    assert module.end_token_ids == sorted({words[0][0], words[1][0]})


def test_the_decoding_configuration_is_part_of_the_identity(module):
    module.model.generation_config.repetition_penalty = 1.3
    found = module.decoding_configuration()
    assert (
        found
        == json.loads(json.dumps(found))
        == {
            "greedy": True,
            "max_new_tokens": 16,
            "end_token_ids": [module.tokenizer.eos_token_id],
            "pad_token_id": module.tokenizer.pad_token_id,
            "generation_config": {"repetition_penalty": 1.3},
        }
    )
    identity = model_identity(module)
    assert identity["decoding"] == {key: value for key, value in found.items() if key != "max_new_tokens"}
    module.use_task(3)  # the task's own number stands among the arguments of a run
    assert module.decoding_configuration()["max_new_tokens"] == 3
    assert model_identity(module) == identity
    module.model.generation_config.repetition_penalty = 1.0
    assert model_identity(module) != identity


def test_rows_are_filled_with_some_token_even_without_any_of_the_tokenizer(module):
    assert module.pad_token_id == module.tokenizer.pad_token_id
    module.tokenizer.pad_token = None
    assert module.pad_token_id == module.tokenizer.eos_token_id
    module.tokenizer.eos_token = None
    module.model.generation_config.eos_token_id = 7
    assert module.pad_token_id == 7
    module.model.generation_config.eos_token_id = None
    assert module.pad_token_id == 0


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"quantization": "int8"}, {"device_map": "cpu"}])
def test_new_weights_are_neither_converted_nor_placed_and_that_is_said(option):
    with pytest.raises(ValueError, match="from_scratch true makes new weights and loads none: leave out"):
        DepthModule(from_scratch=True, **option)


def test_a_loop_that_ends_leaves_the_model_where_it_is_to_stay(monkeypatch):
    moved = []
    monkeypatch.setattr(LightningModule, "cpu", lambda self: moved.append(self) or self)
    module = DepthModule(from_scratch=True)
    with pytest.raises(KeyboardInterrupt), module.staying_on_device():
        module.cpu()
        assert not moved
        raise KeyboardInterrupt
    assert moved == [module]
    module.cpu()
    assert moved == [module, module]


def test_a_plan_may_be_for_gpus_elsewhere_but_for_no_device_that_is_none():
    assert DepthModule(meta=True, device_map="cuda:1").hparams["device_map"] == "cuda:1"
    with pytest.raises(ValueError, match="--model.device_map: expected auto, balanced, .* got 'gpuu'"):
        DepthModule(meta=True, device_map="gpuu")


def test_a_checkpoint_that_says_use_cache_false_is_masked_in_decode_steps(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(BUNDLED, folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "use_cache": False}))
    found = []
    for source in (folder, BUNDLED):
        module = DepthModule(str(source), phase="decode")
        half = torch.arange(module.num_blocks) >= module.num_blocks // 2
        masks = torch.stack([half, torch.ones_like(half)])
        options = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, "phase": "decode"}
        found.append(answer_masks(module.model, model_inputs(first_batch(module)), masks, **options)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0][0], found[0][1])


def test_loggers_keep_the_arguments_of_an_optimiser_only_where_one_is_used(module):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)
    of_an_optimiser = {"learning_rate", "betas", "weight_decay", "warmup_steps", "router_loss"}
    assert of_an_optimiser <= set(module.hparams_initial)
    module.trainer = trainer
    for state, kept in ((TrainerFn.FITTING, of_an_optimiser), (TrainerFn.PREDICTING, set())):
        trainer.state.fn = state
        assert of_an_optimiser & set(module.hparams_initial) == kept and "checkpoint" in module.hparams_initial
