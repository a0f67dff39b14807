"""Commands leave the caller's model and datamodule as they found them, whether they end or fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.studies.shared.run_folder import given_back
from tests.helpers.commands import SecondShapes

OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
SKIP = list(range(4, 16))
COMMANDS: dict[str, dict[str, Any]] = {
    "compare": {"policies": ["prefix"], "num_active_blocks": [15], "num_requests": 2},
    "importance": {"skip": SKIP[:8], "num_samples": 5, "methods": ["block_influence"]},
    "consistency": {"skip": SKIP, "num_samples": 5},
    "interactions": {"skip": SKIP, "num_samples": 5, "num_held_out": 2},
    "latency": {"num_active_blocks": [15], "num_samples": 3, "new_tokens": 2},
    "search": {"beam_width": 1, "max_blocks_to_remove": 1, "keep": SKIP, "baselines": False},
    "select": {"policies": ["prefix"], "num_active_blocks": [15], "num_requests": 3, "num_checks": 3},
    "tokens": {"num_samples": 1},
}


@pytest.fixture(scope="module")
def module() -> DepthModule:
    """With a mode of its own in one place."""
    made = DepthModule().eval()
    made.model.lm_head.train()
    return made


def data(**options: Any) -> DepthDataModule:
    return DepthDataModule(num_samples=6, calibration_samples=6, **{"batch_size": 3, **options})


def public(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")}


def state(module: DepthModule, datamodule: DepthDataModule) -> dict[str, Any]:
    """All that a caller sees of the two; what is no plain value by its identity."""
    weights = {name: (weight.dtype, weight.device) for name, weight in module.state_dict().items()}
    modes = {name: each.training for name, each in module.named_modules()}
    kept = {"module": {**public(module)}, "datamodule": {**public(datamodule)}, "hparams": dict(module.hparams)}
    device = (module.device, module.dtype, module.model.device, module.model.dtype)
    return {**kept, "weights": weights, "modes": modes, "device": device}


def run(command: str, module: DepthModule, datamodule: DepthDataModule, folder: Path, **options: Any) -> dict[str, Any]:
    arguments = {**COMMANDS[command], **options, "output_dir": str(folder)}
    return getattr(DepthTrainer(**OPTIONS), command)(module, datamodule, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_command_all_is_as_before(module, tmp_path, command):
    datamodule = data(batch_size="auto" if command == "importance" else 3)
    before = state(module, datamodule)
    assert run(command, module, datamodule, tmp_path)["command"] == command
    assert state(module, datamodule) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_command_that_failed_too(module, tmp_path, command):
    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    datamodule = data()
    before = state(module, datamodule)
    hook = module.model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="on purpose"):
            run(command, module, datamodule, tmp_path)
    finally:
        hook.remove()
    assert state(module, datamodule) == before


@pytest.mark.parametrize("command", ["importance", "consistency", "interactions", "latency", "tokens"])
def test_after_a_command_that_was_refused_too(module, tmp_path, command):
    datamodule = data()
    before = state(module, datamodule)
    with pytest.raises(ValueError, match="name"):
        run(command, module, datamodule, tmp_path, name="no/name")
    assert state(module, datamodule) == before


@pytest.mark.slow
def test_latency_leaves_compare_its_samples(module, tmp_path):
    datamodule, trainer = data(), DepthTrainer(**OPTIONS)
    trainer.latency(module, datamodule, **COMMANDS["latency"], output_dir=str(tmp_path))
    result = trainer.compare(module, datamodule, **COMMANDS["compare"], output_dir=str(tmp_path))
    assert result["num_samples"] == 6


class Moves(torch.nn.Module):
    """Says where it is, without a device of that name."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.processor, self.layer, self.hparams = processor, torch.nn.Linear(1, 1), {}
        self.device, self.max_new_tokens, self.num_answered = "cuda:1", 4, 0
        self.requested_masks, self.on_mask, self.reads_lens, self.acceptance = None, lambda: None, False, 0

    def to(self, device: str) -> None:
        self.device = device


def test_what_is_changed_inside_is_given_back(module):
    datamodule, owner = data(), Moves(module.prompter)
    before = [public(datamodule), public(owner)]
    with pytest.raises(KeyboardInterrupt), given_back(owner, datamodule):
        datamodule.attach(owner)
        owner.max_new_tokens = 99
        owner.num_answered = 7
        owner.to("cpu")
        assert not any(each.training for each in owner.modules()) and [public(datamodule), public(owner)] != before
        raise KeyboardInterrupt
    assert owner.num_answered == 7  # the owner's own, which no command sets
    owner.num_answered = 0
    assert [public(datamodule), public(owner)] == before and owner.layer.training


def test_taking_fewer_samples_makes_another_datamodule():
    datamodule = data()
    taken = datamodule.take("validation", 2).take("calibration", 3)
    assert [len(taken.eval_dataset(split)) for split in ("validation", "calibration")] == [2, 3]
    assert [len(datamodule.eval_dataset(split)) for split in ("validation", "calibration")] == [6, 6]


# ---- Lightning's own loops


class Asks(Callback):
    """Notes how many tokens an answer may have."""

    asked: int | None = None

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.asked = pl_module.max_new_tokens


class LongAnswers(SecondShapes):
    max_new_tokens = 7


def test_a_task_is_that_of_the_batches_and_is_given_back(module):
    """Not that of a datamodule which the trainer saw before."""
    before, asks = module.max_new_tokens, Asks()
    trainer = DepthTrainer(callbacks=[asks], limit_predict_batches=1, **OPTIONS)
    trainer.predict(module, datamodule=data(task=LongAnswers()))
    assert asks.asked == 7 and module.max_new_tokens == before
    loader = data(prompter=module.prompter).eval_dataloader()
    trainer.predict(module, loader)
    assert asks.asked == ShapesVQA.max_new_tokens != 7 and module.max_new_tokens == before


def test_a_datamodule_serves_one_module_after_another(module):
    """The processor is that of the module which runs, not of the first."""
    datamodule, trainer = data(), DepthTrainer(limit_val_batches=1, **OPTIONS)
    before = public(datamodule)
    seen = []
    for other in (module, DepthModule()):
        trainer.validate(other, datamodule=datamodule, verbose=False)
        seen.append(trainer.val_dataloaders.collate_fn.prompter is other.prompter)
        assert public(datamodule) == {**before, "trainer": trainer}
    assert seen == [True, True]
