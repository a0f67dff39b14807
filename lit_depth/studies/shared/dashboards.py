"""Results that were logged, side by side in a dashboard: options of ``lit-depth report`` and what they do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--wandb``, ``--entity``, ``--project`` and ``--workspace``."""
    group = parser.add_argument_group("Weights & Biases")
    group.add_argument("--wandb", action="store_true", help="save a workspace and a report there of the folders' runs")
    group.add_argument(
        "--entity", metavar="NAME", help="user or team that owns the project (default: the runs', or you)"
    )
    group.add_argument("--project", metavar="NAME", help="project of the runs (default: the first run's)")
    group.add_argument("--workspace", metavar="NAME", help="name of workspace and report (default: models and tasks)")


def publish(folders: Sequence[Path], given: argparse.Namespace) -> list[str]:
    """Do what the options ask for; lines for the terminal, none without ``--wandb``.

    Raises:
        ValueError: If an option has no sense alone, the package is missing, or the dashboard cannot be made.
    """
    if not given.wandb:
        alone = [name for name in ("entity", "project", "workspace") if getattr(given, name) is not None]
        if alone:
            raise ValueError(f"--{alone[0]} belongs to --wandb: give both")
        return []
    try:
        from lit_depth.integrations import wandb_workspace
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--wandb: expected the package {error.name}; pip install 'lit_depth[wandb-workspaces]'"
        ) from error
    return wandb_workspace.publish_workspace(folders, given.entity, given.project, given.workspace).lines()
