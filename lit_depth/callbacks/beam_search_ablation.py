"""Which blocks cost least when they are removed together: beam search in any Lightning repository."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_depth.callbacks.batch_scores import ScoreFn, gather_columns, report_left_out, score_masks
from lit_depth.callbacks.evaluation import EvaluationCallback
from lit_depth.functional import MaskScores, SearchResult, beam_search, find_blocks
from lit_depth.functional.arguments import check_least, check_share, checked
from lit_depth.functional.masking.sublayers import check_halves
from lit_depth.functional.masks import Granularity, MaskSet, units_of
from lit_depth.functional.search.ablations import free_units

_ROUND = 64  # samples per round of racing


class BeamSearchAblation(EvaluationCallback):
    """Search for the blocks that cost least when they are removed together, at the end of validation or testing.

    During the loop batches are kept on the CPU; after it `lit_depth.functional.beam_search` scores them again under
    every mask that it looks at, without touching the module's own step, metrics, logged values, training mode or random
    state. With the default score all masks of a round share one pass. It logs

    | key | unit |
    |---|---|
    | ``ablation/full_score`` | mean score of the full model |
    | ``ablation/removed_1_score``, ``ablation/removed_2_score``, ... | mean score without the best 1, 2, ... blocks |

    and keeps which blocks these are, and all else, in :attr:`result` (a `lit_depth.functional.SearchResult`;
    ``reference_logprob`` is not measured: NaN), and the full model's score in :attr:`full`. Rows without labelled
    tokens have no score and are left out, with a warning.

    Args:
        beam_width: Ablations that are kept, and extended by one more block, at each number of removed blocks.
        max_removed: Largest number of removed blocks.
        keep: Blocks that are never removed.
        score_fn: ``score_fn(pl_module, batch) -> [batch]`` in [0, 1], higher is better. Default: the share of labelled
            tokens that the module's Hugging Face model gets right, `lit_depth.callbacks.batch_scores.token_accuracy`.
        blocks: Dotted path of the decoder blocks, where they cannot be found.
        max_batches: Batches with a score to use per loop and process; None = all.
        granularity: What is removed: a ``block``, or with ``sublayer`` its attention (unit 2i of block i) or its MLP
            (unit 2i + 1). ``keep`` and the result count in units.
        racing: Spend no more batches on an ablation whose place is settled. Batches are taken whole, in an order drawn
            for each number of removed blocks; the guarantees take their samples for drawn one by one, so they do not
            hold for samples that the loader has sorted.
        epsilon: Difference of the score, at least 0, that does not matter to racing.
        delta: Probability, between 0 and 1, that one of the sets of tied ablations lacks the best.
        seed: Seed of the orders of the batches.

    With several processes each scores its own batches, and all see all scores after every round. A sample counts as
    often as the loop's sampler deals it out.

    Raises:
        ValueError: If a number is out of its range. At the start of the loop: if more blocks are to be removed than may
            go, or halves of blocks of an unknown form; no decoder blocks, or several lists of them. In the loop: if the
            default score cannot read a batch, or scores or logits are not finite. At its end: if a score lies outside
            [0, 1], or no row was labelled.

    Example:
        >>> BeamSearchAblation(beam_width=2, max_removed=3).beam_width
        2
    """

    @checked
    def __init__(
        self,
        beam_width: int = 3,
        max_removed: int = 4,
        keep: Sequence[int] = (),
        score_fn: ScoreFn | None = None,
        blocks: str | None = None,
        max_batches: int | None = None,
        granularity: Granularity = "block",
        racing: bool = True,
        epsilon: float = 0.02,
        delta: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(blocks, max_batches)
        check_least(1, beam_width=beam_width, max_removed=max_removed)
        check_least(0, epsilon=epsilon, seed=seed)
        check_share(delta=delta)
        self.beam_width = beam_width
        self.max_removed = max_removed
        self.keep = list(keep)
        self.score_fn = score_fn
        self.granularity = granularity
        self.racing = racing
        self.epsilon = epsilon
        self.delta = delta
        self.seed = seed
        self.result: SearchResult | None = None
        self.full: float | None = None
        self._batches: list[_Batch] = []
        self._full: list[Tensor] = []  # scores of the full model
        self._num_left_out = 0
        self._num_units = 0

    def start(self, pl_module: LightningModule, model: nn.Module, path: str) -> None:
        self._batches, self._full, self._num_left_out = [], [], 0
        # fail before the loop, not after it
        if self.granularity == "sublayer":
            check_halves(find_blocks(model, path))
        self._num_units = units_of(self.num_blocks, self.granularity)
        free_units(self._num_units, self.max_removed, self.keep)

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *place: int) -> bool:
        full = MaskSet.full(self._num_units, self.granularity)
        with trainer.precision_plugin.forward_context():
            scores = score_masks(pl_module, batch, full, self.score_fn, self.blocks)[0]
        has_score = ~scores.isnan()
        self._num_left_out += int((~has_score).sum())
        if not has_score.any():
            return False
        self._full.append(scores[has_score])
        # a loader may fill the same tensors again
        kept = apply_to_collection(move_data_to_device(batch, "cpu"), Tensor, torch.clone)
        self._batches.append(_Batch(kept, place[1], has_score))
        return True

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        batches, self._batches = self._batches, []
        score = partial(score_masks, score_fn=self.score_fn, blocks=self.blocks, granularity=self.granularity)
        scores = _BatchScores(pl_module, batches, score, self.seed)
        num_left_out = int(gather_columns(pl_module, torch.tensor([[self._num_left_out]])).sum())
        report_left_out(num_left_out, num_left_out + scores.num_samples)
        if not scores.num_samples:
            return {}
        self.full = float(gather_columns(pl_module, torch.cat([torch.zeros(0), *self._full])[None]).mean())
        with trainer.precision_plugin.forward_context():
            self.result = beam_search(
                scores,
                self._num_units,
                scores.num_samples,
                beam_width=self.beam_width,
                max_removed=self.max_removed,
                keep=self.keep,
                racing=self.racing,
                epsilon=self.epsilon,
                delta=self.delta,
                batch=_ROUND,
                seed=self.seed,
            )
        removed = {f"ablation/removed_{size}_score": each.best.score for size, each in enumerate(self.result.levels, 1)}
        return {"ablation/full_score": self.full, **removed}


class _Batch(NamedTuple):
    """A batch of the loop, kept on the CPU, the index of its loader, and which of its rows have a score."""

    content: Any
    dataloader_idx: int
    has_score: Tensor

    @property
    def size(self) -> int:
        return int(self.has_score.sum())


class _BatchScores:
    """The `lit_depth.functional.search.beam.Evaluate` over whole batches, each scored once under every mask asked for.

    To a search samples are alike, and known by the order in which it asks for them. So the first that it asks for with
    a number of removed blocks is the first sample of the first batch, and so on, in a random order of the batches that
    is drawn for this number: none is torn.

    The batches are those of this process; a sample is a row with a score.
    """

    def __init__(
        self,
        pl_module: LightningModule,
        batches: list[_Batch],
        score: Callable[[LightningModule, Any, Tensor], Tensor],
        seed: int,
    ) -> None:
        self.pl_module, self.score = pl_module, score
        counts = gather_columns(pl_module, torch.tensor([[len(batches)]])).flatten().tolist()
        sizes = torch.tensor([[batch.size for batch in batches]], dtype=torch.long)  # without a batch too
        all_sizes = iter(gather_columns(pl_module, sizes).flatten().tolist())
        owners = [(rank, number) for rank, count in enumerate(counts) for number in range(count)]
        # of all processes: (rank, number there, size)
        self.dealt = [(*owner, next(all_sizes)) for owner in owners]
        self.num_samples = sum(size for _, _, size in self.dealt)
        own = [index for index, (rank, _, _) in enumerate(self.dealt) if rank == pl_module.global_rank]
        self.own = {index: batches[self.dealt[index][1]] for index in own}
        self.generator = np.random.default_rng(seed)
        # by the number of removed blocks: the order of the batches, and the place of each position of the search in it
        self.levels: dict[int, tuple[NDArray[np.int64], dict[int, int]]] = {}
        self.scores: dict[tuple[int, str], NDArray[np.float64]] = {}  # of a batch under a mask

    def __call__(self, masks: Tensor, positions: Sequence[int]) -> MaskScores:
        """Scores ``[masks, positions]``; a collective of all processes, which ask for the same."""
        names = MaskSet.of(masks).ids
        size = int((~masks[0]).sum())
        if size not in self.levels:
            self.levels[size] = self.generator.permutation(len(self.dealt)), {}
        order, place_of = self.levels[size]
        # a position takes the next free place when it is first asked for, so that batches are spent one after another
        places = np.array([place_of.setdefault(position, len(place_of)) for position in positions])
        ends = np.cumsum([self.dealt[index][2] for index in order])
        turns = np.searchsorted(ends, places, side="right")
        needed, within = order[turns], places - np.concatenate([[0], ends])[turns]
        lacking = {
            int(index): [row for row, name in enumerate(names) if (index, name) not in self.scores]
            for index in np.unique(needed)
        }
        if any(lacking.values()):
            self._score({index: rows for index, rows in lacking.items() if rows}, masks, names)
        found = np.empty((len(names), len(places)))
        for index in lacking:
            columns = needed == index
            for row, name in enumerate(names):
                found[row, columns] = self.scores[index, name][within[columns]]
        return MaskScores(found)

    def _score(self, lacking: dict[int, list[int]], masks: Tensor, names: Sequence[str]) -> None:
        """Score batches under the masks that they lack: each process its own, then all get them all."""
        mine = [self._score_batch(index, masks[rows]).flatten() for index, rows in lacking.items() if index in self.own]
        flat = gather_columns(self.pl_module, torch.cat([torch.zeros(0), *mine])[None]).flatten().double().numpy()
        # one process after another, and of each in the order in which it went through them
        for index in sorted(lacking, key=lambda index: self.dealt[index][0]):
            rows, size = lacking[index], self.dealt[index][2]
            taken, flat = flat[: len(rows) * size].reshape(len(rows), size), flat[len(rows) * size :]
            self.scores |= {(index, names[row]): values for row, values in zip(rows, taken)}

    def _score_batch(self, index: int, masks: Tensor) -> Tensor:
        module, (content, dataloader_idx, has_score) = self.pl_module, self.own[index]
        batch = module.transfer_batch_to_device(content, module.device, dataloader_idx)
        return self.score(module, batch, masks)[:, has_score]
