"""BeamSearchAblation in a plain Lightning repository: somebody else's module, steps and logged values."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lit_depth.callbacks import AccuracyDropImportance, BeamSearchAblation
from lit_depth.functional import ablation_masks
from tests.helpers.plain_repository import NUM_BLOCKS, PlainModule, loader, run, trainer
from tests.helpers.pruning import pruned_copy
from tests.helpers.zeroing import zeroed_copy


def accuracy(model) -> float:
    """Mean over samples of the share of right tokens, by plain forwards of a model as it is."""
    with torch.no_grad():
        rows = [(model(**b).logits[:, :-1].argmax(-1) == b["labels"][:, 1:])[:, 2:] for b in loader()]
    return torch.cat(rows).float().mean(1).mean().item()


@pytest.mark.parametrize("loop", ["fit", "validate", "test"])
def test_the_modules_own_values_and_weights_are_unchanged(loop):
    plain, module_without = run(loop)
    watched, module_with = run(loop, [BeamSearchAblation(beam_width=2, max_removed=2)])
    assert {name: watched[name] for name in plain} == plain
    added = {"ablation/full_score", "ablation/removed_1_score", "ablation/removed_2_score"}
    assert watched.keys() - plain.keys() == added
    states = zip(module_without.state_dict().values(), module_with.state_dict().values())
    assert all(torch.equal(a, b) for a, b in states)
    assert [m.training for m in module_with.modules()] == [m.training for m in module_without.modules()]


def test_scores_are_those_of_physically_pruned_models():
    callback = BeamSearchAblation(beam_width=6, max_removed=3)  # nothing falls out of such a beam
    logged, module = run("validate", [callback])
    module.eval()
    assert logged["ablation/full_score"] == pytest.approx(accuracy(module.model), abs=1e-6)
    for size, level in enumerate(callback.result.levels, 1):
        expected = {
            removed: accuracy(pruned_copy(module.model, ablation_masks(NUM_BLOCKS, [removed])[0]))
            for removed in itertools.combinations(range(NUM_BLOCKS), size)
        }
        assert {a.removed: a.score for a in level.ablations} == pytest.approx(expected, abs=1e-6)
        assert logged[f"ablation/removed_{size}_score"] == pytest.approx(max(expected.values()), abs=1e-6)
        assert all(ablation.num_samples == 20 for ablation in level.ablations)


def test_scores_of_sublayers_are_those_of_models_whose_halves_add_zeros():
    callback = BeamSearchAblation(beam_width=28, max_removed=2, granularity="sublayer")
    logged, module = run("validate", [callback])
    module.eval()
    for size, level in enumerate(callback.result.levels, 1):
        expected = {
            removed: accuracy(zeroed_copy(module.model, ablation_masks(2 * NUM_BLOCKS, [removed])[0]))
            for removed in itertools.combinations(range(2 * NUM_BLOCKS), size)
        }
        assert {a.removed: a.score for a in level.ablations} == pytest.approx(expected, abs=1e-6)
        assert logged[f"ablation/removed_{size}_score"] == pytest.approx(max(expected.values()), abs=1e-6)


def test_halves_of_blocks_of_an_unknown_form_are_refused_before_the_loop():
    module = Silent()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    module.model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=24, **sizes))
    callback = BeamSearchAblation(max_removed=1, granularity="sublayer")
    with pytest.raises(ValueError, match="cannot skip half of a GPTNeoXLayer: .*skip whole blocks instead"):
        trainer([callback]).validate(module, loader(), verbose=False)
    assert callback.full is None


def test_single_blocks_are_those_of_importance():
    search, importance = BeamSearchAblation(max_removed=1, keep=[2]), AccuracyDropImportance()
    run("validate", [search, importance])
    (level,) = search.result.levels
    assert search.full == pytest.approx(importance.full, abs=1e-6)
    assert {a.removed[0]: search.full - a.score for a in level.ablations} == pytest.approx(
        {block: float(importance.importance[block]) for block in (0, 1, 3)}, abs=1e-6
    )


class Rows(Dataset):
    """Samples that know their number."""

    def __len__(self) -> int:
        return 600

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.full((4,), index % 24), "index": torch.tensor(index)}


class Refilled(DataLoader):
    """Fills the same tensors again for each batch."""

    def __iter__(self):
        buffer: dict[str, torch.Tensor] = {}
        for batch in super().__iter__():
            for name, value in batch.items():
                buffer.setdefault(name, value).copy_(value)
            yield buffer


class Simulated:
    """A score that knows which blocks are skipped; block 0 and 1 cost much, 2 and 3 little, but not together."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, pl_module, batch) -> torch.Tensor:
        layers = pl_module.model.model.layers
        removed = tuple(i for i, block in enumerate(layers) if "forward" in vars(block))
        self.seen += [(removed, int(index)) for index in batch["index"]]
        return self.scores(removed)[batch["index"]]

    @staticmethod
    def scores(removed: tuple[int, ...]) -> torch.Tensor:
        ease = torch.rand(600, generator=torch.Generator().manual_seed(0))
        own = torch.rand(600, generator=torch.Generator().manual_seed(sum(2**i for i in removed)))
        cost = sum((0.7, 0.6, 0.1, 0.0)[i] for i in removed) + (0.8 if {2, 3} <= set(removed) else 0.0)
        return (ease + 0.05 * own < 0.95 - cost).float()


class Silent(PlainModule):
    def validation_step(self, batch, batch_idx):
        pass


def test_racing_spends_fewer_batches_and_chooses_the_same():
    found, seen = {}, {}
    for racing in (True, False):
        score = Simulated()
        callback = BeamSearchAblation(beam_width=1, max_removed=2, score_fn=score, racing=racing)
        trainer([callback]).validate(Silent(), Refilled(Rows(), batch_size=12), verbose=False)
        found[racing], seen[racing] = callback.result, score.seen
    for result in found.values():
        assert [level.best.removed for level in result.levels] == [(3,), (1, 3)]
    # every sample of every mask once: batches are neither torn nor mixed up by the loader
    masks = [(), (0,), (1,), (2,), (3,), (0, 3), (1, 3), (2, 3)]
    assert sorted(seen[False]) == sorted((removed, index) for removed in masks for index in range(600))
    assert len(seen[True]) == len(set(seen[True])) and set(seen[True]) < set(seen[False])
    assert len(seen[False]) - len(seen[True]) <= found[True].saved  # whole batches
    for level in found[False].levels:
        for ablation in level.ablations:
            assert ablation.score == pytest.approx(float(Simulated.scores(ablation.removed).mean()), abs=1e-6)
    level = found[True].levels[0]
    assert found[True].saved > 600 and {a.removed for a in level.ablations if a.dropped_on} >= {(0,), (1,)}


def test_a_limit_of_batches():
    callback = BeamSearchAblation(max_removed=1, max_batches=2)
    run("validate", [callback])
    assert {ablation.num_samples for ablation in callback.result.levels[0].ablations} == {12}


TWO_PROCESSES = """
import pickle, sys
import torch
from tests.helpers.plain_repository import PlainModule, loader, trainer
from torch.utils.data import DataLoader, Subset
from lit_depth.callbacks import BeamSearchAblation

callback = BeamSearchAblation(beam_width=2, max_removed=3, racing=sys.argv[2] == "racing")
# 14 samples for the first process, 6 for the second: 3 batches and 1
class Uneven(PlainModule):
    def val_dataloader(self):
        rows = range(14) if self.global_rank == 0 else range(14, 20)
        return DataLoader(Subset(loader().dataset, rows), batch_size=6)
trainer([callback], devices=2, strategy="ddp", use_distributed_sampler=False).validate(Uneven(), verbose=False)
with open(f"{sys.argv[1]}/{torch.distributed.get_rank()}.pkl", "wb") as file:
    pickle.dump((callback.full, callback.result), file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("racing", ["racing", "full"])
def test_two_processes_with_uneven_numbers_of_batches_find_what_one_finds(tmp_path, racing):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(script), str(tmp_path), racing],
        check=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    callback = BeamSearchAblation(beam_width=2, max_removed=3, racing=racing == "racing")
    run("validate", [callback])
    files = sorted(tmp_path.glob("*.pkl"))
    assert len(files) == 2
    for file in files:
        full, result = pickle.loads(file.read_bytes())
        assert full == pytest.approx(callback.full, abs=1e-6)
        for level, expected in zip(result.levels, callback.result.levels, strict=True):
            assert level.beam == expected.beam and level.evaluations == expected.evaluations
            scores = {ablation.removed: ablation.score for ablation in expected.ablations}
            assert {ablation.removed: ablation.score for ablation in level.ablations} == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "expected beam_width of at least 1, got 0"),
        ({"max_batches": 0}, "expected max_batches of at least 1, got 0"),
        ({"max_removed": 4}, r"between 1 and 3 of 4 units \(one has to stay\), got 4"),
        ({"keep": [0, 1], "max_removed": 3}, "between 1 and 2 of 4 units, of which 2 are kept, got 3"),
        ({"keep": [0, 1, 2, 3]}, "a unit that may be removed"),
        ({"max_removed": 1, "delta": 0.0}, "delta between 0 and 1"),
        ({"max_removed": 1, "score_fn": lambda module, batch: torch.full((6,), torch.nan)}, "6 NaN or infinite"),
        (
            {"max_removed": 1, "score_fn": lambda module, batch: torch.full((len(batch["labels"]),), 1.5)},
            "accuracy between 0 and 1, got 1.5",
        ),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run("validate", [BeamSearchAblation(**options)])
