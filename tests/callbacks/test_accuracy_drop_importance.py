"""AccuracyDropImportance in somebody else's repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lit_depth.callbacks import AccuracyDropImportance, BlockMask
from lit_depth.callbacks.accuracy_drop_importance import score_every_block, token_accuracy
from lit_depth.functional import MaskTrie, leave_one_out
from tests.helpers.plain_repository import NUM_BLOCKS, PlainModule, loader, run, trainer
from tests.helpers.pruning import pruned_copy


@pytest.mark.parametrize("loop", ["fit", "validate", "test"])
def test_the_modules_own_values_and_weights_are_unchanged(loop):
    plain, module_without = run(loop)
    watched, module_with = run(loop, [AccuracyDropImportance()])
    assert {name: watched[name] for name in plain} == plain
    added = {f"importance/block_{i:02d}" for i in range(NUM_BLOCKS)} | {"importance/full"}
    assert watched.keys() - plain.keys() == added
    states = zip(module_without.state_dict().values(), module_with.state_dict().values())
    assert all(torch.equal(a, b) for a, b in states)


def test_importance_equals_physically_pruned_models():
    callback = AccuracyDropImportance()
    logged, module = run("validate", [callback])
    module.eval()

    def accuracy(model) -> float:
        with torch.no_grad():
            rows = [(model(**b).logits[:, :-1].argmax(-1) == b["labels"][:, 1:])[:, 2:] for b in loader()]
        return torch.cat(rows).float().mean(1).mean().item()

    full = accuracy(module.model)
    assert callback.full == pytest.approx(full, abs=1e-6)
    for block_idx, mask in enumerate(leave_one_out(NUM_BLOCKS)):
        expected = full - accuracy(pruned_copy(module.model, mask))
        assert float(callback.importance[block_idx]) == pytest.approx(expected, abs=1e-6)
        assert logged[f"importance/block_{block_idx:02d}"] == pytest.approx(expected, abs=1e-6)
    assert callback.scores.shape == (1 + NUM_BLOCKS, 20)


def test_a_score_function_and_a_limit_of_batches():
    seen = []

    def score(pl_module, batch):
        seen.append(len(batch["input_ids"]))
        return -pl_module.model(**batch).loss.expand(len(batch["input_ids"]))

    callback = AccuracyDropImportance(score_fn=score, max_batches=2)
    run("validate", [callback])
    assert seen == [6] * (2 * (1 + NUM_BLOCKS)) and callback.scores.shape == (1 + NUM_BLOCKS, 12)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda module, batch: torch.zeros(()), r"shape \[batch\]"),
        (lambda module, batch: torch.full((6,), torch.nan), "6 NaN or infinite, no block skipped"),
    ],
)
def test_useless_scores_are_refused(score, message):
    with pytest.raises(ValueError, match=message):
        run("validate", [AccuracyDropImportance(score_fn=score)])


def batch_of(module) -> dict[str, torch.Tensor]:
    return next(iter(loader()))


def test_one_pass_gives_the_scores_of_one_mask_after_another(monkeypatch):
    module = PlainModule()
    together = score_every_block(module, batch_of(module))
    assert torch.equal(score_every_block(module, batch_of(module), token_accuracy), together)
    # logits of few masks at once
    monkeypatch.setattr("lit_depth.callbacks.batch_scores._MAX_LOGITS_BYTES", 1)
    assert torch.equal(score_every_block(module, batch_of(module)), together)
    assert together.std(dim=0).max() > 0  # the masks do differ


def test_one_pass_runs_every_distinct_prefix_once():
    module, calls = PlainModule(), []
    for block in module.model.model.layers:
        block.self_attn.register_forward_hook(lambda *_: calls.append(1))
    score_every_block(module, batch_of(module))
    masks = torch.cat([torch.ones(1, NUM_BLOCKS, dtype=torch.bool), leave_one_out(NUM_BLOCKS)])
    assert len(calls) <= MaskTrie(masks).block_forwards == 10


def test_a_model_that_cannot_be_driven_is_scored_one_by_one(monkeypatch):
    module = PlainModule()
    together = score_every_block(module, batch_of(module))
    monkeypatch.setattr("lit_depth.callbacks.batch_scores.check_drivable", lambda *_: "it is odd")
    with pytest.warns(UserWarning, match="one after another: LlamaForCausalLM: it is odd"):
        assert torch.equal(score_every_block(module, batch_of(module)), together)


TWO_PROCESSES = """
import sys
import torch
from tests.helpers.plain_repository import PlainModule, loader, trainer
from torch.utils.data import DataLoader, Subset
from lit_depth.callbacks import AccuracyDropImportance, BeamSearchAblation

callback, search = AccuracyDropImportance(), BeamSearchAblation(max_removed=1, racing=False)
# 14 samples for the first process, 6 for the second: 3 batches and 1
class Uneven(PlainModule):
    def val_dataloader(self):
        rows = range(14) if self.global_rank == 0 else range(14, 20)
        return DataLoader(Subset(loader(range(int(sys.argv[2]), 20)).dataset, rows), batch_size=6)
    def validation_step(self, batch, batch_idx):
        pass
engine = trainer([callback, search], devices=2, strategy="ddp", use_distributed_sampler=False)
engine.validate(Uneven(), verbose=False)
found = {"scores": callback.scores, "importance": callback.importance, "full": torch.tensor(search.full)}
torch.save(found, f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_labelled", [20, 14])  # with 14, the second process has no score
def test_two_processes_with_uneven_numbers_of_batches_gather_all_scores(tmp_path, num_labelled):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "functional"), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(num_labelled)],
        check=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    callback = AccuracyDropImportance()
    trainer([callback]).validate(
        PlainModule(), DataLoader(loader().dataset[:num_labelled], batch_size=6), verbose=False
    )
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 2
    for file in files:
        found = torch.load(file, weights_only=True)
        assert found["scores"].shape == (1 + NUM_BLOCKS, 20)
        scores = found["scores"].sort(dim=1).values  # NaN comes last
        assert torch.equal(scores[:, :num_labelled], callback.scores.sort(dim=1).values)
        assert scores[:, num_labelled:].isnan().all()
        torch.testing.assert_close(found["importance"], callback.importance, rtol=0, atol=1e-6)
        assert float(found["full"]) == pytest.approx(callback.full, abs=1e-6)


def test_a_mask_around_the_loop_is_replaced_not_combined_with():
    plain, _ = run("validate", [AccuracyDropImportance()])
    skipping, _ = run("validate", [BlockMask(skipped_block_indices=[1]), AccuracyDropImportance()])
    names = [name for name in plain if name.startswith("importance/")]
    assert {name: skipping[name] for name in names} == {name: plain[name] for name in names}
    assert skipping["val_loss"] != plain["val_loss"]


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match="labels.*score_fn"):
        token_accuracy(PlainModule(), {"input_ids": torch.zeros(1, 2, dtype=torch.long)})
