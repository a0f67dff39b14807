"""Train the masked model before it is written: low-rank adapters, or all weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_depth.callbacks.masked_training import MaskedTraining
from lit_depth.data import DepthDataModule
from lit_depth.functional.healing.healed_weights import HealedWeights
from lit_depth.functional.healing.lora import check_peft
from lit_depth.functional.healing.outputs import swapped
from lit_depth.functional.model_state import evaluation_mode, only_these_require_grad
from lit_depth.module import DepthModule, adamw
from lit_depth.studies.shared.run_folder import Run

Method = Literal["lora", "full"]

SPLIT = "train"
# what the command takes where nothing is given
NUM_STEPS, LEARNING_RATE, LORA_RANK = 150, 1e-3, 16
# as in configs/heal.yaml; of few steps half
_WARMUP_STEPS, _GRADIENT_CLIP = 10, 1.0


class Training(NamedTuple):
    """How a model is trained to make up for skipped blocks; images and adapters are drawn by the datamodule's seed."""

    method: Method
    num_steps: int
    num_images: int
    learning_rate: float
    lora_rank: int | None
    betas: tuple[float, float]
    weight_decay: float
    router_loss: float
    train_collator: str

    @classmethod
    def of(
        cls,
        heal: str,
        num_steps: int | None,
        learning_rate: float | None,
        lora_rank: int | None,
        model: DepthModule,
        data: DepthDataModule,
    ) -> Training | None:
        """The training that the arguments of the command ask for; None = none.

        Raises:
            ValueError: If arguments are given that ``heal`` does not use.
        """
        trains = heal in get_args(Method)
        _refuse_unused("lora or full", trains, heal_steps=num_steps, heal_learning_rate=learning_rate)
        _refuse_unused("lora", heal == "lora", lora_rank=lora_rank)
        if not trains:
            return None
        method: Method = "lora" if heal == "lora" else "full"
        steps = NUM_STEPS if num_steps is None else num_steps
        rate = LEARNING_RATE if learning_rate is None else learning_rate
        rank = (LORA_RANK if lora_rank is None else lora_rank) if method == "lora" else None
        of_model = {name: model.hparams[name] for name in ("betas", "weight_decay", "router_loss")}
        num_images = steps * data.train_batch_size
        return cls(method, steps, num_images, rate, rank, **of_model, train_collator=data.train_collator)

    def entry(self) -> dict[str, Any]:
        """As JSON."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def _refuse_unused(methods: str, is_used: bool, **options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not is_used:
            raise ValueError(f"--{name} goes with --heal {methods}: leave it out, or give --heal {methods}")


class _Trained(LightningModule):
    """The model of a `DepthModule` in a training of its own: the module's trainer and hooks are left alone."""

    def __init__(self, module: DepthModule, training: Training) -> None:
        super().__init__()
        self.model, self.loss, self.how = module.model, module.training_loss, training

    def on_fit_start(self) -> None:
        self.model.train()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss, parts = self.loss(batch)
        self.log("answer loss", parts["train/answer_loss"], prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        how = self.how
        return adamw(self, how.learning_rate, how.betas, how.weight_decay, min(_WARMUP_STEPS, how.num_steps // 2))


class _Bar(TQDMProgressBar):
    """Lightning's, with a text like those of the sweeps before and behind it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.text)


def check_training(training: Training, model: DepthModule, data: DepthDataModule) -> None:
    """Refuse what cannot be trained before the work is done.

    Raises:
        ValueError: If the task has no train split, no collator makes batches of it for this model, or the model was
            placed by ``device_map`` or holds weights in float16.
        ImportError: Adapters without peft.
    """
    if training.method == "lora":
        check_peft()
    if model.is_placed:
        raise ValueError(
            f"--heal {training.method} trains on the trainer's device: expected --model.device_map null, or --heal "
            "patch, which trains nothing"
        )
    if training.method == "full" and model.model.dtype == torch.float16:
        raise ValueError(
            "--heal full: float16 loses the steps of AdamW: give --model.dtype bfloat16 or float32, or --heal lora"
        )
    prepared = copy.copy(data)
    prepared.attach(model)
    try:
        _batches(training, prepared)
    except ValueError as error:
        raise ValueError(
            f"--heal {training.method} trains on the {SPLIT} split: {error}; --heal patch needs no such split"
        ) from error


def train(run: Run, mask: Tensor, start: Mapping[str, Tensor], training: Training) -> HealedWeights:
    """Weights that make up for skipped blocks; the run's model is given back as it was, bit for bit.

    A training that was interrupted begins anew.

    Args:
        mask: bool ``[num_blocks]``, True = the block runs.
        start: Weights to begin with in place of the model's, by name.

    Raises:
        ValueError: If weights that are not finite come of it, or adapters fit nowhere.
    """
    module = run.model
    parameters = dict(module.model.named_parameters())
    copies = {weight: start.get(name, weight.data).detach().clone() for name, weight in parameters.items()}
    try:
        with swapped(copies), _as_found(module.model), only_these_require_grad(module.model, list(copies)):
            _fit(run, mask, training)
            trained = {name: weight.data for name, weight in parameters.items()}
    finally:
        module.to(run.trainer.strategy.root_device)  # Lightning takes what it trained from the device
    found = {name: trained[name].to(weight.device) for name, weight in parameters.items()}
    changed = {name: value for name, value in found.items() if not torch.equal(value, parameters[name].data)}
    if not all(bool(value.isfinite().all()) for value in changed.values()):
        raise ValueError(
            f"--heal {training.method}: expected finite weights, the training came to others: give a smaller "
            f"--heal_learning_rate than {training.learning_rate:g}"
        )
    return HealedWeights(module.model, mask, changed)


def _fit(run: Run, mask: Tensor, training: Training) -> None:
    device, data = run.trainer.strategy.root_device, run.datamodule
    blocks = run.model.hparams["blocks"]
    masked = MaskedTraining(
        (~mask).nonzero().flatten().tolist(),
        seed=data.seed,
        lora_rank=training.lora_rank,
        blocks=None if blocks is None else f"model.{blocks}",
    )
    shown = run.trainer.progress_bar_callback is not None
    bars = [_Bar(f"Healing ({training.method}), {data.task.name}, {SPLIT} split")] if shown else []
    trainer = Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        plugins=[LightningEnvironment()],  # one process, and under SLURM no checkpoint that Lightning finds by itself
        max_epochs=1,
        gradient_clip_val=_GRADIENT_CLIP,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=shown,
        default_root_dir=str(run.folder),
        callbacks=[masked, *bars],
    )
    with isolate_rng(include_cuda=device.type == "cuda"):
        torch.manual_seed(data.seed)
        trainer.fit(_Trained(run.model, training), train_dataloaders=_batches(training, data))


def _batches(training: Training, data: DepthDataModule) -> DataLoader:
    """As many batches of the train split as there are steps.

    Raises:
        ValueError: If the task gives another number of images than it is asked for, or does not say how many.
    """
    taken = copy.copy(data)
    taken.train_images = training.num_images
    batches = taken.train_dataloader()
    # the model card tells this number
    count = len(batches.dataset) if isinstance(batches.dataset, Sized) else "a stream"
    if count != training.num_images:
        raise ValueError(
            f"expected {training.num_images} images of {data.task.name}, got {count}: give fewer --heal_steps or a "
            "smaller --data.train_batch_size"
        )
    return batches


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Modes, gradients and buffers are afterwards what they were; inside, no parameter has a gradient yet."""
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    for weight, _ in gradients:
        weight.grad = None
    try:
        with evaluation_mode(model):
            yield
    finally:
        for weight, gradient in gradients:
            weight.grad = gradient
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
