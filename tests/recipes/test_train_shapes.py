"""The recipe's callbacks, in real training runs of a model of four blocks."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, from_indices, masked
from lit_depth.models.loading import BUNDLED
from lit_depth.module import model_inputs
from lit_depth.recipes import train_shapes
from lit_depth.recipes.curriculum import ShapesCurriculum, TrainingPhase
from lit_depth.recipes.train_shapes import DepthScaledInit, TrainInPhases, VisionWarmup
from tests.helpers.house import ROOT
from tests.helpers.tiny_models import tiny_model

BLOCKS, IMAGES = 4, 2
MIXTURE = {"color": 0.5, "hop": 0.5}
LOOKING = TrainingPhase(2, MIXTURE, blocks=[0, 3])
STILL = TrainingPhase(1, MIXTURE, rate=(0.0, 0.0))  # nothing moves at a rate of zero


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config") / "tiny"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": BLOCKS}))
    return str(folder)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        self.values.append(float(trainer.callback_metrics["train/answer_loss"]))


def new_module(folder, seed=0) -> DepthModule:
    torch.manual_seed(seed)
    module = DepthModule(folder, from_scratch=True)
    DepthScaledInit().on_fit_start(None, module)
    return module


def fit(module, phases, *callbacks, **options) -> list[float]:
    steps = sum(phase.steps for phase in phases)
    given = {"task": ShapesCurriculum(phases), "train_batch_size": IMAGES, "train_images": steps * IMAGES} | options
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, losses],
    )
    trainer.fit(module, datamodule=DepthDataModule(**given))
    return losses.values


def changed(before, module) -> set[int]:
    return {
        index
        for index, block in enumerate(find_blocks(module))
        if any(not torch.equal(value, before[index][name]) for name, value in block.state_dict().items())
    }


def blocks_now(module) -> list[dict]:
    return [{name: value.clone() for name, value in block.state_dict().items()} for block in find_blocks(module)]


def test_a_phase_trains_only_its_blocks(folder):
    module = new_module(folder)
    before = blocks_now(module)
    fit(module, [LOOKING], TrainInPhases())
    assert changed(before, module) == {0, 3}
    before = blocks_now(module)
    fit(module, [TrainingPhase(2, MIXTURE)], TrainInPhases())
    assert changed(before, module) == {0, 1, 2, 3}


def test_blocks_that_join_begin_as_the_identity(folder):
    module = new_module(folder)
    fit(module, [LOOKING, STILL], TrainInPhases())
    data = DepthDataModule(module.prompter, num_samples=4)
    inputs = model_inputs(next(iter(data.eval_dataloader())))
    module.eval()
    with torch.no_grad():
        everything = module.model(**inputs).logits
        with masked(module, from_indices(BLOCKS, [0, 3])):
            before = module.model(**inputs).logits
        with masked(module, from_indices(BLOCKS, [0, 1, 2])):
            without_a_trained_one = module.model(**inputs).logits
    torch.testing.assert_close(everything, before)
    assert (everything - without_a_trained_one).abs().max() > 0.01
    assert all((block.self_attn.q_proj.weight != 0).any() for block in find_blocks(module)), "only outputs are zero"


def test_the_same_seeds_give_the_same_losses(folder):
    phases = [TrainingPhase(2, MIXTURE, blocks=[0, 3]), TrainingPhase(4, MIXTURE, dropout=(0.6, 0.6))]
    first = fit(new_module(folder), phases, TrainInPhases())
    assert first == fit(new_module(folder), phases, TrainInPhases()) and len(first) == 6
    others = (
        fit(new_module(folder, seed=1), phases, TrainInPhases()),
        fit(new_module(folder), phases, TrainInPhases(), seed=1),
        fit(new_module(folder), phases, TrainInPhases(seed=2)),
    )
    assert all(other != first for other in others)


def test_learning_rates_follow_the_phases(folder):
    seen = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_) -> None:
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    phases = [TrainingPhase(2, MIXTURE, warmup_steps=2), TrainingPhase(2, MIXTURE, rate=(0.75, 0.25))]
    module = new_module(folder)
    fit(module, phases, TrainInPhases(matrix_learning_rate=8e-3), Rates())
    factors = [0.5, 1.0, 0.75, 0.5]
    rate = module.hparams["learning_rate"]
    assert [value for pair in seen for value in pair] == pytest.approx(
        [value for factor in factors for value in (8e-3 * factor, rate * factor)]
    )
    assert "configure_optimizers" not in vars(module), "the module is given back as it was"


def test_the_warm_up_trains_the_vision_path_alone_and_scales_its_output(folder):
    module = new_module(folder)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    fit(module, [STILL], VisionWarmup(steps=2), TrainInPhases())
    moved = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("vision_tower" in name or "connector" in name for name in moved)
    data = DepthDataModule(module.prompter, train_batch_size=16, train_images=16)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        features = module.model.model.get_image_features(batch["images"], batch["image_masks"]).pooler_output
    assert float(features[batch["token_cells"] >= 0].std()) == pytest.approx(0.25, rel=0.15)


def test_heads_are_asked_about_their_own_tokens():
    # one image of 2 x 3 cells, of two crops of four tokens: the overview and a crop
    batch = {
        "token_cells": torch.tensor([[0, 2, -1, 5, 1, 4, -1, -1]]),
        "cell_shapes": torch.tensor([[0, 1, 2, 3, 4, 5]]),
        "cell_colors": torch.tensor([[6, 5, 4, 3, 2, 1]]),
        "grids": torch.tensor([[2, 3]]),
        "image_input_idx": torch.zeros(1, 2, 4),
    }
    heads = nn.ModuleDict({name: nn.Identity() for name in ("shape", "color", "row", "column")})
    features = torch.arange(8.0)[None, :, None]
    logits, labels = train_shapes._answer_heads(heads, features, batch)
    assert logits["shape"].flatten().tolist() == [0, 1, 3, 4, 5] and logits["row"].flatten().tolist() == [0, 1, 3]
    assert labels["shape"].tolist() == [0, 2, 5, 1, 4] and labels["color"].tolist() == [6, 4, 1, 5, 2]
    assert labels["row"].tolist() == [0, 0, 1] and labels["column"].tolist() == [3, 5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 30}, "train_images 4 for 2 steps of 2 images, got 30"),
        ({"task": "shapes_vqa"}, "expected data.task as a ShapesCurriculum, got a ShapesVQA"),
    ],
)
def test_mistakes_end_before_the_first_step(folder, options, message):
    with pytest.raises(ValueError, match=message):
        fit(new_module(folder), [LOOKING], TrainInPhases(), **options)


def test_unknown_blocks_are_refused_before_the_first_step(folder):
    with pytest.raises(ValueError, match="16"):
        fit(new_module(folder), [TrainingPhase(1, MIXTURE, blocks=[0, 16])], TrainInPhases())


def test_the_shipped_recipe_counts_its_own_images():
    recipe = yaml.safe_load((ROOT / "configs" / "train_shapes.yaml").read_text())["data"]
    phases = [TrainingPhase(**phase) for phase in recipe["task"]["init_args"]["phases"]]
    assert recipe["train_images"] == ShapesCurriculum(phases).num_steps * recipe["train_batch_size"]
    assert phases[-1].rate[1] == 0 and phases[-1].blocks is None


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model("llama")


def test_blocks_are_dropped_as_often_as_the_phase_says(monkeypatch):
    module, masks = Module(), []
    monkeypatch.setattr(train_shapes, "masked", lambda model, mask: masks.append(mask) or torch.no_grad())
    callback = TrainInPhases()
    callback.phases = [TrainingPhase(4000, MIXTURE, blocks=[0, 1, 3], dropout=(0.5, 0.5))]
    for step in range(4000):
        trainer = SimpleNamespace(global_step=step, print=lambda text: None)
        callback.on_train_batch_start(trainer, module, None, step)
        callback.on_train_batch_end()
    dropped = 1 - torch.stack(masks).double().mean(0)
    assert dropped[0] == dropped[3] == 0 and dropped[2] == 1
    assert float(dropped[1]) == pytest.approx(0.5 * math.sin(math.pi / 3) ** 2, abs=4 * 0.5 / math.sqrt(4000))


def test_outputs_of_blocks_are_scaled_by_the_depth():
    module = Module()
    before = {name: value.clone() for name, value in find_blocks(module.model).named_parameters()}
    DepthScaledInit(embedding_std=0.25).on_fit_start(None, module)
    for name, value in find_blocks(module.model).named_parameters():
        scale = math.sqrt(8) if "o_proj" in name or "down_proj" in name else 1.0
        torch.testing.assert_close(value * scale, before[name])
    assert float(module.model.get_decoder().embed_tokens.weight.std()) == pytest.approx(0.25, rel=0.1)
