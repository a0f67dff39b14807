"""A repository of its own: a tiny LLaVA learns to name the colour of a picture. It knows nothing of lit_depth."""

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

PAD, IMAGE, QUESTION, FIRST_COLOR = 0, 1, 2, 3
COLORS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
SIDE, PATCH = 8, 4
NUM_PATCHES = (SIDE // PATCH) ** 2


def build_model(num_blocks: int = 4) -> LlavaForConditionalGeneration:
    """A LLaVA of random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    vision = CLIPVisionConfig(num_hidden_layers=1, image_size=SIDE, patch_size=PATCH, **sizes)
    text = LlamaConfig(vocab_size=FIRST_COLOR + len(COLORS), num_hidden_layers=num_blocks, pad_token_id=PAD, **sizes)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1)
    )


def build_loader(seed: int, rows: int = 96, batch_size: int = 32) -> DataLoader:
    """Rows of a picture, the question, and the colour as the only labelled token."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for color in torch.randint(len(COLORS), (rows,), generator=generator):
        noise = 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
        ids = torch.tensor([IMAGE] * NUM_PATCHES + [QUESTION, FIRST_COLOR + int(color)])
        labels = torch.where(torch.arange(len(ids)) < len(ids) - 1, -100, ids)
        pixels = COLORS[color][:, None, None] + noise
        data.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": labels}
        )
    return DataLoader(data, batch_size=batch_size)


class ColorReader(pl.LightningModule):
    """Names the colour of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = build_model()  # under any name
        self.accuracy = MulticlassAccuracy(num_classes=len(COLORS), average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.reader(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        output = self.reader(**batch)
        guesses = output.logits[:, -2, FIRST_COLOR:].argmax(dim=-1)
        self.accuracy(guesses, batch["labels"][:, -1] - FIRST_COLOR)
        self.log("val/loss", output.loss)
        self.log("val/accuracy", self.accuracy)
        self.log("val/noise", torch.rand(()))  # would change if somebody else drew random numbers

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def build_trainer(callbacks: list[pl.Callback] | None = None, max_epochs: int = 8) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        callbacks=callbacks, max_epochs=max_epochs, accelerator="cpu", enable_model_summary=False, **quiet
    )


def train(seed: int = 0) -> ColorReader:
    """A module that has seen 96 pictures eight times."""
    pl.seed_everything(seed, verbose=False)
    module = ColorReader()
    build_trainer().fit(module, build_loader(seed=1))
    return module


if __name__ == "__main__":
    build_trainer().validate(train(), build_loader(seed=2))
