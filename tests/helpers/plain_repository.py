"""A plain Lightning repository: a Llama from a config, its own steps and logged values."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

NUM_BLOCKS = 4


class PlainModule(pl.LightningModule):
    """Somebody else's module: nothing in it knows of this package."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=24,
                hidden_size=16,
                intermediate_size=32,
                num_attention_heads=2,
                num_hidden_layers=NUM_BLOCKS,
                initializer_range=0.5,
                attention_dropout=0.3,
            )
        )

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(**batch).loss)
        self.log("val_noise", torch.rand(()))  # would change if the callback drew random numbers

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(unlabelled: Sequence[int] = ()) -> DataLoader:
    """20 rows of 8 tokens, the last 5 labelled, but of these rows none."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 24, (20, 8), generator=generator)
    labels = ids.clone()
    labels[:, :3] = -100
    labels[list(unlabelled)] = -100
    rows = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y} for i, y in zip(ids, labels)]
    return DataLoader(rows, batch_size=6)


def trainer(callbacks=(), **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(callbacks=list(callbacks), enable_model_summary=False, **quiet, **options)


def run(loop: str, callbacks=()) -> tuple[dict[str, float], PlainModule]:
    module = PlainModule()
    pl.seed_everything(7, verbose=False)
    engine = trainer(callbacks, max_epochs=2)
    if loop == "fit":
        engine.fit(module, loader(), loader())
    else:
        getattr(engine, loop)(module, loader(), verbose=False)
    return {name: float(value) for name, value in engine.callback_metrics.items()}, module
