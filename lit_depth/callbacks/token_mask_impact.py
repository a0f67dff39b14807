"""What hiding each token from each block changes, measured on the samples that a LightningModule evaluates."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_depth.callbacks.batch_scores import gather_columns
from lit_depth.callbacks.evaluation import AnyLoopCallback
from lit_depth.callbacks.user_module import block_values, language_model, undisturbed
from lit_depth.functional.arguments import check_least, checked
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.masking.skip import unmasked
from lit_depth.functional.token_masking.distances import token_masking
from lit_depth.models.prompting import Prompter, prompter_class

if TYPE_CHECKING:
    import pandas as pd


class TokenMaskImpact(AnyLoopCallback):
    """Run `lit_depth.functional.token_masking` on rows of the batches of a validation, test or prediction loop.

    The module need not cooperate: the model inputs are taken from its batches (``input_ids``, ``attention_mask``, and
    image tensors with one entry per row), padding is removed, and each row is analysed alone, at its last
    token. Training mode, random state and whatever the module logs stay as they are. A mask of `BlockMask` does not
    apply to the analysis.

    After the loop :attr:`results` holds the table of this process's rows, with a column ``sample`` (0, 1, ... in the
    order of the loop) in front, and it logs

    | key | unit |
    |---|---|
    | ``tokens/block_07_l2`` (one per block) | mean L2 distance of ``Full``: over the tokens of a row, then over the \
rows of all processes |

    which :attr:`summary` holds too.

    Args:
        num_samples: Rows to analyse, by each process.
        num_output_tokens: See `token_masking`.
        after_end: See `token_masking`. Tokens that end an answer are the module's ``end_token_ids`` if it has such,
            else those of the model's generation_config.
        blocks: Dotted path of the block list from the LightningModule, where it cannot be found.

    Raises:
        ValueError: If a number is less than 1. In the loop: if there are no decoder blocks, a batch has no
            ``input_ids``, or the model cannot be analysed (see `token_masking`).

    >>> TokenMaskImpact(num_samples=2).num_samples
    2
    """

    @checked
    def __init__(
        self, num_samples: int = 8, num_output_tokens: int = 1, blocks: str | None = None, after_end: bool = False
    ) -> None:
        super().__init__(blocks)
        check_least(1, num_samples=num_samples, num_output_tokens=num_output_tokens)
        self.num_samples = num_samples
        self.num_output_tokens = num_output_tokens
        self.after_end = after_end
        self.results: pd.DataFrame | None = None
        self.summary: dict[str, float] = {}
        self._frames: list[pd.DataFrame] = []

    def start(self, pl_module: LightningModule, model: nn.Module, path: str) -> None:
        self.results, self.summary, self._frames = None, {}, []

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *place: int) -> bool:
        if not isinstance(batch, Mapping):
            raise ValueError(f"expected batches that are mappings with input_ids, got {type(batch).__name__}")
        if len(self._frames) >= self.num_samples:
            return False
        model, path = language_model(pl_module, self.blocks)
        row_inputs = (prompter_class(model) or Prompter).row_inputs
        ends = getattr(pl_module, "end_token_ids", None)
        options: dict[str, Any] = {"after_end": self.after_end, "end_tokens": ends, "blocks": path}
        # weights of 16 bits are raised for the analysis, which inference mode would not allow
        with undisturbed(pl_module), torch.inference_mode(False), unmasked(find_blocks(model, path)):
            # `row_inputs` says of a batch without rows of tokens what is wrong with it
            for row in range(max(1, len(batch.get("input_ids", ()))))[: self.num_samples - len(self._frames)]:
                frame = token_masking(model, row_inputs(batch, row), self.num_output_tokens, **options)
                frame.insert(0, "sample", len(self._frames))
                self._frames.append(frame)
        return True

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        import pandas as pd

        sums = torch.zeros(self.num_blocks, 2, dtype=torch.float64)
        if self._frames:
            self.results = pd.concat(self._frames, ignore_index=True)
            full = self.results[self.results["variant"] == "Full"].astype({"l2_distance": float})
            means = full.groupby(["layer", "sample"])["l2_distance"].mean()  # NaN for a row of one token
            columns = means.groupby("layer").agg(["sum", "count"])
            sums = torch.from_numpy(columns.to_numpy(dtype=float))
        total, count = gather_columns(pl_module, sums.reshape(-1, 1)).sum(1).view(-1, 2).unbind(1)
        # no row has a mean: 0 / 0
        means_of_all = block_values("tokens/block_{}_l2", total / count)
        self.summary = {name: value for name, value in means_of_all.items() if not math.isnan(value)}
        return self.summary
