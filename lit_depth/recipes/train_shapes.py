"""Callbacks that train the bundled checkpoint, see ``configs/train_shapes.yaml``.

The recipe is for a 3 M parameter model from random weights on two CPU cores: first the vision path alone on labels of
the grid's cells, then packed questions in phases, of which the first train a few blocks, so that what is hard is learnt
in few steps, and the last one all of them, with stochastic depth whose schedule decides which become expendable.
"""

import json
import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lit_depth.data.tasks.shapes_vqa import COLORS, SHAPES, ShapesTrainingSet
from lit_depth.functional import find_blocks, from_indices, masked
from lit_depth.recipes.curriculum import ShapesCurriculum, TrainingPhase, find_phase
from lit_depth.recipes.muon import Muon, muon_groups
from lit_depth.recipes.packing import PackedCollator

# Classes of a cell: shapes and colours, and none; rows and columns of grids of two and of three.
_CLASSES = {"shape": len(SHAPES) + 1, "color": len(COLORS) + 1, "row": 6, "column": 6}


class DepthScaledInit(Callback):
    """Rescale a fresh model before training: residual outputs by 1/sqrt(2 L), token embeddings to a given spread.

    The first keeps the residual stream's variance independent of depth (Radford et al. 2019, GPT-2, section 2.3).

    Args:
        embedding_std: Standard deviation of the token embeddings.
    """

    def __init__(self, embedding_std: float = 0.25) -> None:
        self.embedding_std = embedding_std

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        blocks = find_blocks(pl_module)
        for weight in _output_projections(blocks):
            weight.div_(math.sqrt(2 * len(blocks)))
        model.get_decoder().embed_tokens.weight.normal_(std=self.embedding_std)


class VisionWarmup(Callback):
    """Before the first step, teach the vision tower and the connector what is in every cell of the grid.

    Throw-away linear heads predict the shape and the colour of a cell from every single image token on it, so that a
    token that attention finds by the one also holds the other; and from a token of the overview its row and column,
    which tokens of crops cannot know. Without this the language model learns to ignore the image long before the tower
    shows it anything.

    Args:
        steps: Optimiser steps.
        matrix_learning_rate: Muon's, of matrices; after a short rise it falls in a line to nearly zero, as does the
            other one.
        learning_rate: AdamW's, of everything else.
        output_std: Standard deviation to which the connector's output is scaled afterwards, that of token embeddings:
            what a block adds to larger features would be lost in them.
        seed: Chooses the images, of shapes_vqa alone; with another seed than the data's they are other ones.
    """

    def __init__(
        self,
        steps: int = 600,
        matrix_learning_rate: float = 6e-3,
        learning_rate: float = 2e-3,
        output_std: float = 0.25,
        seed: int = 100,
    ) -> None:
        self.steps, self.output_std, self.seed = steps, output_std, seed
        self.matrix_learning_rate, self.learning_rate = matrix_learning_rate, learning_rate

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        molmo = model.model
        width = model.config.get_text_config().hidden_size
        heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in _CLASSES.items()})
        heads.to(pl_module.device)
        vision = [*molmo.vision_tower.named_parameters(), *molmo.connector.named_parameters()]
        groups = muon_groups(vision, lr=self.matrix_learning_rate, weight_decay=0.0)
        groups[1]["params"] += heads.parameters()
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = Muon(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50) * max(0.02, 1 - step / self.steps))
        for done, batch in enumerate(self._batches(trainer, pl_module), start=1):
            batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            features = molmo.get_image_features(batch["images"], batch["image_masks"]).pooler_output
            logits, labels = _answer_heads(heads, features, batch)
            loss = torch.stack([F.cross_entropy(logits[name], labels[name]) for name in heads]).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if done % 50 == 0 or done == self.steps:
                right = {name: (logits[name].argmax(-1) == labels[name]).float().mean().item() for name in heads}
                told = ", ".join(f"{name} {share:.3f}" for name, share in right.items())
                trainer.print(f"vision warm-up {done}/{self.steps}: loss {loss.item():.3f}, right: {told}")
        with torch.no_grad():
            spread = features[batch["token_cells"] >= 0].std()
            molmo.connector.image_projector.w2.weight.mul_(self.output_std / spread)
        pl_module.zero_grad()

    def _batches(self, trainer: Trainer, pl_module: LightningModule) -> DataLoader:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = ShapesTrainingSet(self.steps * data.train_batch_size, self.seed)
        collator = PackedCollator(pl_module.prompter)
        return DataLoader(images, data.train_batch_size, collate_fn=collator, num_workers=data.num_workers)


def _answer_heads(
    heads: nn.ModuleDict, features: Tensor, batch: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits of every head for the tokens that it is asked about, ``[tokens, classes]``, and their labels."""
    cells = batch["token_cells"]
    rows, columns = batch["grids"].T[:, :, None]
    labels = {
        "shape": batch["cell_shapes"].gather(1, cells.clamp(min=0)),
        "color": batch["cell_colors"].gather(1, cells.clamp(min=0)),
        # the first of two rows is another place than the first of three
        "row": cells // columns + 3 * (rows - 2),
        "column": cells % columns + 3 * (columns - 2),
    }
    on_cell = cells >= 0
    on_overview = on_cell.clone()
    on_overview[:, batch["image_input_idx"].shape[2] :] = False
    asked = {name: on_overview if name in ("row", "column") else on_cell for name in heads}
    logits = {name: head(features[asked[name]]) for name, head in heads.items()}
    return logits, {name: labels[name][asked[name]] for name in heads}


class TrainInPhases(Callback):
    """Train through the phases of the datamodule's `ShapesCurriculum`: their blocks alone, by Muon, at their rates.

    Within a phase, stochastic depth (Huang et al. 2016): each step skips block l with probability
    ``peak * sin^2(pi * l / (L - 1))``: never the first or the last block, most often the middle. What this leaves
    behind is a model whose ends are critical and whose middle is cheap; the profile is made by the schedule and says
    nothing about other models.

    Blocks that join after the first phase start as the identity, by output projections of zero, so that they do not
    disturb what the others have learnt.

    AdamW's learning rate, betas and weight decay are the module's.

    Args:
        matrix_learning_rate: Muon's, of matrices.
        seed: Seed of the draws of skipped blocks.
    """

    def __init__(self, matrix_learning_rate: float = 4e-3, seed: int = 0) -> None:
        self.matrix_learning_rate = matrix_learning_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.phases: list[TrainingPhase] = []
        self._context = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        task = data.task
        if not isinstance(task, ShapesCurriculum):
            raise ValueError(f"expected data.task as a ShapesCurriculum, got a {type(task).__name__}")
        if trainer.world_size > 1 or trainer.ckpt_path:
            raise ValueError("expected one process and no checkpoint to resume: phases count steps from the first one")
        needed = task.num_steps * data.train_batch_size
        if data.train_images != needed:
            raise ValueError(
                f"expected data.train_images {needed} for {task.num_steps} steps of {data.train_batch_size} images, "
                f"got {data.train_images}"
            )
        for phase in task.phases:
            _blocks_of(phase, len(find_blocks(pl_module)))
        self.phases = task.phases
        # as LightningCLI itself puts an optimiser into a module
        pl_module.configure_optimizers = partial(self._configure_optimizers, pl_module)  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop("configure_optimizers", None)

    def _configure_optimizers(self, pl_module: LightningModule) -> OptimizerLRScheduler:
        options = pl_module.hparams
        optimizer = Muon(
            muon_groups(pl_module.named_parameters(), lr=self.matrix_learning_rate),
            lr=options["learning_rate"],
            betas=options["betas"],
            weight_decay=options["weight_decay"],
        )
        schedule = LambdaLR(optimizer, self.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_at(self, step: int) -> float:
        """The factor of the learning rates at a step of the training."""
        number, step = find_phase(self.phases, step)
        return self.phases[number].rate_at(step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number, step = find_phase(self.phases, trainer.global_step)
        phase, blocks = self.phases[number], find_blocks(pl_module)
        runs = _blocks_of(phase, len(blocks))
        if step == 0:
            trainer.print(f"phase {number + 1}/{len(self.phases)}: {int(runs.sum())} blocks, {phase.steps} steps")
            earlier = [_blocks_of(each, len(blocks)) for each in self.phases[:number]]
            if earlier:
                joining = runs & ~torch.stack(earlier).any(0)
                _silence([block for block, joins in zip(blocks, joining) if joins])
        angle = torch.arange(len(blocks)) * math.pi / (len(blocks) - 1)
        kept = torch.rand(len(blocks), generator=self.generator) >= phase.peak_at(step) * angle.sin() ** 2
        self._context.enter_context(masked(pl_module, runs & kept))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._context.close()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        self._context.close()


def _blocks_of(phase: TrainingPhase, num_blocks: int) -> Tensor:
    """The phase's blocks as a mask, bool ``[num_blocks]``."""
    return from_indices(num_blocks, range(num_blocks) if phase.blocks is None else phase.blocks)


@torch.no_grad()
def _silence(blocks: Iterable[nn.Module]) -> None:
    for block in blocks:
        for weight in _output_projections(block):
            weight.zero_()


def _output_projections(module: nn.Module) -> list[nn.Parameter]:
    """What writes into the residual stream, of attention and MLPs."""
    return [weight for name, weight in module.named_parameters() if "o_proj" in name or "down_proj" in name]


class ExportCheckpoint(Callback):
    """Write the trained model and its processor in the released layout, and the training curve beside them.

    Args:
        folder: Where to write.
        dtype: Number format of the stored weights.
        curve_every: Steps averaged into one point of ``training_curve.json``.
    """

    def __init__(self, folder: str, dtype: str = "float16", curve_every: int = 20) -> None:
        self.folder, self.dtype, self.curve_every = folder, dtype, curve_every
        self._losses: list[float] = []
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._losses.append(float(trainer.callback_metrics["train/answer_loss"]))
        if len(self._losses) % 100 == 0:
            trainer.print(f"step {len(self._losses)}: answer loss {sum(self._losses[-100:]) / 100:.3f}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        stored = getattr(torch, self.dtype)
        weights = {name: value.to(stored) for name, value in model.state_dict().items()}
        model.save_pretrained(self.folder, state_dict=weights)
        pl_module.processor.save_pretrained(self.folder)  # type: ignore[union-attr,operator]
        starts = range(0, len(self._losses), self.curve_every)
        note = {
            "steps": len(self._losses),
            "seconds": round(time.monotonic() - self._start, 1),
            "steps_per_point": self.curve_every,
            "answer_loss": [round(mean(self._losses[start : start + self.curve_every]), 4) for start in starts],
        }
        (Path(self.folder) / "training_curve.json").write_text(json.dumps(note) + "\n")
        trainer.print(f"checkpoint written to {self.folder}")
