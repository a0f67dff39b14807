"""Scores of rows without labels, of the package's own batches, and scores that are not finite."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from lit_depth.callbacks import AccuracyDropImportance, BeamSearchAblation
from lit_depth.callbacks.accuracy_drop_importance import score_every_block
from lit_depth.callbacks.batch_scores import score_masks, token_accuracy
from lit_depth.functional import leave_one_out
from tests.helpers.plain_repository import NUM_BLOCKS, PlainModule, loader, trainer
from tests.helpers.pruning import pruned_copy

UNLABELLED = [0, 7, *range(12, 18)]  # one row of the first and of the second batch, and the whole third
LABELLED = [row for row in range(20) if row not in UNLABELLED]


class Silent(PlainModule):
    def validation_step(self, batch, batch_idx): ...


def accuracies(model) -> torch.Tensor:
    """Of every row of the whole data set, by plain forwards of a model as it is."""
    with torch.no_grad():
        rows = [(model(**batch).logits[:, :-1].argmax(-1) == batch["labels"][:, 1:])[:, 2:] for batch in loader()]
    return torch.cat(rows).float().mean(1)


@pytest.mark.parametrize("score_fn", [None, token_accuracy])
def test_rows_without_labels_are_left_out_of_every_mean(score_fn):
    module = Silent()
    drop = AccuracyDropImportance(score_fn)
    search = BeamSearchAblation(max_removed=1, racing=False, score_fn=score_fn)
    with pytest.warns(UserWarning, match=r"8 of 20 rows have no labelled token .* are left out of the scores"):
        trainer([drop, search]).validate(module, loader(UNLABELLED), verbose=False)
    (level,) = search.result.levels
    found = {ablation.removed[0]: ablation.score for ablation in level.ablations}
    full = accuracies(module.model.eval())[LABELLED]
    assert drop.full == pytest.approx(full.mean().item(), abs=1e-6) == search.full
    assert drop.scores.shape == (1 + NUM_BLOCKS, 20)
    assert drop.scores[:, UNLABELLED].isnan().all() and drop.scores[:, LABELLED].isfinite().all()
    for block_idx, mask in enumerate(leave_one_out(NUM_BLOCKS)):
        scores = accuracies(pruned_copy(module.model, mask))[LABELLED]
        torch.testing.assert_close(drop.scores[1 + block_idx, LABELLED], scores)
        assert float(drop.importance[block_idx]) == pytest.approx((full.mean() - scores.mean()).item(), abs=1e-6)
        assert found[block_idx] == pytest.approx(scores.mean().item(), abs=1e-6)
    assert {ablation.num_samples for ablation in level.ablations} == {len(LABELLED)}


def test_a_limit_counts_batches_with_a_score():
    rows = loader(UNLABELLED).dataset
    batches = DataLoader([rows[12], rows[13], rows[1], rows[14], rows[2], rows[3]], batch_size=1)
    drop = AccuracyDropImportance(max_batches=2)
    search = BeamSearchAblation(max_removed=1, max_batches=2, racing=False)
    trainer([drop, search]).validate(Silent(), batches, verbose=False)
    assert drop.scores[0].isnan().tolist() == [True, True, False, True, False]
    assert {ablation.num_samples for ablation in search.result.levels[0].ablations} == {2}


@pytest.mark.parametrize("make", [AccuracyDropImportance, lambda: BeamSearchAblation(max_removed=1)])
def test_a_loop_without_labels_says_so(make):
    callback = make()
    with pytest.raises(ValueError, match="labelled tokens to score: 20 of 20 rows have no labelled token .*score_fn"):
        trainer([callback]).validate(Silent(), loader(range(20)), verbose=False)
    assert callback.full is None


def test_no_forward_is_spent_on_a_batch_without_labels():
    module, calls = PlainModule(), []
    module.model.register_forward_hook(lambda *_: calls.append(1))
    (batch, *_) = loader(range(6))
    scores = score_every_block(module, batch)
    assert scores.isnan().all() and scores.shape == (1 + NUM_BLOCKS, 6) and not calls


def test_a_label_of_the_first_token_is_no_label():
    """Nothing stands before it that could foretell it."""
    (batch, *_) = loader()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    assert token_accuracy(PlainModule(), batch).isnan().all()
    batch["labels"][2, 1] = batch["input_ids"][2, 1]
    assert token_accuracy(PlainModule(), batch).isfinite().tolist() == [False, False, True, False, False, False]


def test_a_score_of_ones_own_may_rate_rows_without_labels():
    callback = AccuracyDropImportance(lambda module, batch: batch["input_ids"].float().mean(1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no labelled token.*")
        trainer([callback]).validate(Silent(), loader(UNLABELLED), verbose=False)
    assert callback.scores.isfinite().all()


def rows_as(values: list[float]):
    return lambda module, batch: torch.tensor(values)


@pytest.mark.parametrize(
    ("score_fn", "message"),
    [
        # row 0 is not labelled, row 1 is
        (rows_as([torch.nan, torch.nan, 0, 0, 0, 0]), "scores of score_fn, got 1 NaN or infinite, no block skipped"),
        (rows_as([torch.inf, 0, 0, 0, 0, 0]), "got 1 NaN or infinite, no block skipped"),
        (rows_as([0, 0, 0]), r"tensor of shape \[batch\], here \[6\], got \[3\]"),
        (lambda module, batch: [0.0] * 6, r"tensor of shape \[batch\], here \[6\], got list"),
    ],
)
def test_scores_that_mean_nothing_are_refused(score_fn, message):
    (batch, *_) = loader([0])
    with pytest.raises(ValueError, match=message):
        score_every_block(PlainModule(), batch, score_fn)


def test_a_row_has_a_score_under_all_masks_or_none():
    def score(module, batch):
        skips = "forward" in vars(module.model.model.layers[2])
        return torch.tensor([torch.nan if skips else 0.5, *[0.5] * 5])

    (batch, *_) = loader([0])
    with pytest.raises(ValueError, match="got 1 NaN or infinite, block 2 skipped"):
        score_every_block(PlainModule(), batch, score)


@pytest.mark.parametrize("together", [True, False])
def test_logits_that_are_not_finite_are_reported_with_their_mask(together, monkeypatch):
    module, (batch, *_) = PlainModule(), loader([4])
    if not together:
        monkeypatch.setattr("lit_depth.callbacks.batch_scores.check_drivable", lambda *_: "it is odd")
    module.model.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    masks = torch.tensor([[True, True, False, True], [False, True, True, True], [True] * NUM_BLOCKS])
    with pytest.raises(ValueError, match="logits at labelled tokens, got 5 NaN or infinite, block 0 skipped"):
        score_masks(module, batch, masks)
    assert score_masks(module, batch, masks[:1]).isnan().tolist() == [[False] * 4 + [True, False]]


def test_what_the_engine_cannot_do_falls_back_and_what_the_model_cannot_do_comes_up(monkeypatch):
    module, (batch, *_) = PlainModule(), loader()
    expected = score_every_block(module, batch)

    def fail(*args, **options):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("lit_depth.callbacks.batch_scores.sweep_forward", fail)
    with pytest.warns(UserWarning, match="one after another: LlamaForCausalLM: RuntimeError: shapes do not fit"):
        assert torch.equal(score_every_block(module, batch), expected)
    monkeypatch.undo()

    def refuse(*args):
        raise KeyError("on purpose")

    module.model.model.norm.register_forward_hook(refuse)
    with pytest.warns(UserWarning, match="KeyError"), pytest.raises(KeyError, match="on purpose"):
        score_every_block(module, batch)


def test_reference_answers_of_the_packages_own_batches_are_labelled():
    """A left-padded prompt, the answer apart and padded on the right: as the same tokens labelled, each row alone."""
    module = PlainModule()
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [0, 0, 11, 12]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
        "answer_ids": torch.tensor([[9, 10], [13, -100]]),
        "sample_ids": ["a", "b"],
    }
    module.model.eval()
    alone = [([5, 6, 7, 8, 9, 10], 2), ([11, 12, 13], 1)]
    for block_idx, mask in enumerate([torch.ones(NUM_BLOCKS).bool(), *leave_one_out(NUM_BLOCKS)]):
        model, right = pruned_copy(module.model, mask), []
        for tokens, labelled in alone:
            guesses = model(torch.tensor([tokens])).logits[0, :-1].argmax(-1)
            right.append((guesses == torch.tensor(tokens[1:]))[-labelled:].float().mean())
        assert score_every_block(module, batch)[block_idx].tolist() == torch.stack(right).tolist()
