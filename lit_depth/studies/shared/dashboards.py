"""Results that were logged, side by side in a dashboard: options of ``lit-depth report`` and what they do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_depth.integrations.run_notes import NOTE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--wandb``, ``--entity``, ``--project`` and ``--workspace``."""
    group = parser.add_argument_group("Weights & Biases")
    group.add_argument("--wandb", action="store_true", help="save a workspace and a report there of the folders' runs")
    group.add_argument(
        "--entity", metavar="NAME", help="user or team that owns the project (default: the runs', or you)"
    )
    group.add_argument("--project", metavar="NAME", help="project of the runs (default: the first run's)")
    group.add_argument("--workspace", metavar="NAME", help="name of workspace and report (default: models and tasks)")


def check_arguments(given: argparse.Namespace) -> None:
    """Refuse options that have no sense alone, before anything is done.

    Raises:
        ValueError: Naming the first one.
    """
    alone = [name for name in ("entity", "project", "workspace") if getattr(given, name) is not None]
    if alone and not given.wandb:
        raise ValueError(f"--{alone[0]} belongs to --wandb: give both")


def publish(folders: Sequence[Path], given: argparse.Namespace) -> list[str]:
    """Do what the options ask for; lines for the terminal, none without ``--wandb``.

    Folders that were logged nowhere are named and left out.

    Raises:
        ValueError: If none was logged, the package is missing, or the dashboard cannot be made.
    """
    if not given.wandb:
        return []
    logged = [folder for folder in folders if (folder / NOTE).is_file()]
    try:
        from lit_depth.integrations import wandb_workspace
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--wandb: expected the package {error.name}; pip install 'lit_depth[wandb-workspaces]'"
        ) from error
    # of folders none of which was logged, the first one says what to do
    published = wandb_workspace.publish_workspace(logged or folders[:1], given.entity, given.project, given.workspace)
    left_out = [f"not logged, so left out: {folder}" for folder in folders if folder not in logged]
    return [*published.lines(), *left_out]
