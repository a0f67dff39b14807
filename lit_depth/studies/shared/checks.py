"""Arguments that several commands take, checked."""

from __future__ import annotations

from lit_depth.module import DepthModule


def check_whole_blocks(model: DepthModule, command: str) -> None:
    """Raise ValueError for a model whose masks switch sublayers."""
    if model.hparams["granularity"] != "block":
        raise ValueError(
            f"{command} takes whole blocks only: leave out --model.granularity, which importance and consistency know"
        )


def check_shares(confidence: float, max_bad_samples: float) -> None:
    """Raise ValueError for shares that are none."""
    if not 0 < confidence < 1 or not 0 <= max_bad_samples <= 1:
        raise ValueError(
            f"confidence and max_bad_samples must lie between 0 and 1, got {confidence} and {max_bad_samples}"
        )
