"""The command line: LightningCLI over `DepthTrainer`, with errors a user can read."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning.pytorch.cli import LightningCLI

from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.trainer import DepthTrainer


class DepthCLI(LightningCLI):
    """``lit-depth <command>``: builds model, data and trainer from flags and YAML, then calls the trainer's method."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; see ``lit-depth --help``."""
    DepthCLI(
        DepthModule,
        DepthDataModule,
        trainer_class=DepthTrainer,
        trainer_defaults={"logger": False, "enable_checkpointing": False},
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        args=list(sys.argv[1:] if argv is None else argv),
    )
