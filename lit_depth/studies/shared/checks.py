"""Arguments that several commands take, checked."""

from lit_depth.functional.arguments import check_range
from lit_depth.module import DepthModule


def check_whole_blocks(model: DepthModule, command: str) -> None:
    """Raise ValueError for a model whose masks switch sublayers."""
    if model.hparams["granularity"] != "block":
        raise ValueError(
            f"{command} takes whole blocks only: leave out --model.granularity, which importance and consistency know"
        )


def check_shares(confidence: float, max_bad_samples: float) -> None:
    """Raise ValueError for shares that are none, or a confidence that no interval is told with."""
    check_range(0.5, 0.9999, confidence=confidence)
    check_range(0, 1, max_bad_samples=max_bad_samples)
