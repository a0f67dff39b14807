"""The Trainer with one method per command, so that LightningCLI shows each as a subcommand."""

from __future__ import annotations

from lightning.pytorch import Trainer


class DepthTrainer(Trainer):
    """Lightning's Trainer, with the studies of this package as further entry points."""
