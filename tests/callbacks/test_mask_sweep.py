"""MaskSweep in Lightning's predict loop: one score per (mask, sample), whatever the batches or interruptions."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback

import lit_depth.metrics
from lit_depth import DepthModule, DepthTrainer
from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.functional import mask_id, masked, prefix, random
from lit_depth.metrics.base import SampleMetric
from lit_depth.module import model_inputs
from tests.helpers.own_metrics import remainder

MASKS = [torch.ones(16, dtype=torch.bool), prefix(16, 5), random(16, 8, seed=0)]


class PartlyBroken(ShapesVQA):
    """Some rows cannot be read."""

    broken: tuple[int, ...] = ()

    def sample(self, row, split, index):
        if index in self.broken:
            raise OSError("image file is truncated")
        return super().sample(row, split, index)


@pytest.fixture(scope="module")
def module() -> DepthModule:
    torch.manual_seed(0)
    module = DepthModule(from_scratch=True)
    module.model.eval()
    with torch.no_grad():  # wide enough that different masks give different answers
        module.model.lm_head.weight.mul_(20)
    return module


@pytest.mark.parametrize("metric", ["Nope", "exact_match", "base", "clean_prediction"])
def test_what_is_no_metric_is_refused(tmp_path, metric):
    with pytest.raises(ValueError, match=f"expected the name of a metric in lit_depth.metrics, .* got '{metric}'"):
        MaskSweep(MASKS, tmp_path, metric)


def data(module, batch_size=4, num_samples=11, task=None) -> DepthDataModule:
    task = task or ShapesVQA(num_images=8)
    return DepthDataModule(module.prompter, task, batch_size=batch_size, num_samples=num_samples)


def sweep(module, folder, masks=MASKS, metric="ExactMatch", max_bad_samples=0.01, callbacks=(), **options) -> MaskSweep:
    callback = MaskSweep(masks, folder, metric, max_bad_samples)
    trainer = DepthTrainer(
        callbacks=[callback, *callbacks],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.predict(module, data(module, **options).eval_dataloader("validation"), return_predictions=False)
    return callback


def test_a_metric_that_does_not_fit_the_answers_is_named(module, tmp_path):
    with pytest.raises(
        ValueError, match="VQAAccuracy does not fit sample .*at least 10 .*; give another --data.metric"
    ):
        sweep(module, tmp_path, metric="VQAAccuracy")


def test_answers_are_those_of_each_mask_alone(module, tmp_path):
    records = sweep(module, tmp_path).records.set_index(["mask", "sample"])
    assert len(records) == len(MASKS) * 11
    for batch in data(module, batch_size=11).eval_dataloader("validation"):
        inputs = model_inputs(batch)
        for mask in MASKS:
            with masked(module.model, mask):
                tokens = module.model.generate(
                    **inputs, max_new_tokens=ShapesVQA.max_new_tokens, do_sample=False, eos_token_id=0, pad_token_id=1
                )
            texts = module.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for sample, text in zip(batch["samples"], texts):
                record = records.loc[(mask_id(mask), sample.id)]
                assert record["prediction"] == " ".join(text.split()) and record["image"] == sample.image_id


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch_size(module, tmp_path):
    frames = [sweep(module, tmp_path / str(size), batch_size=size).records for size in (1, 8, 11)]
    for frame in frames[1:]:
        # log-probabilities of about -50: float32 keeps seven digits
        pd.testing.assert_frame_equal(frame, frames[0], check_exact=False, atol=1e-5, rtol=1e-6)
        assert frame["prediction"].equals(frames[0]["prediction"])


@pytest.mark.slow
def test_interrupted_anywhere_and_continued_equals_uninterrupted(module, tmp_path):
    whole = sweep(module, tmp_path / "whole").records
    head, *lines = (tmp_path / "whole" / "rank0.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 33
    for kept, tail in [(0, b""), (5, b'{"mask": "11'), (12, b""), (20, lines[20][:-1]), (33, b"")]:
        folder = tmp_path / str(kept)
        folder.mkdir()
        # as if two processes had worked on it before
        (folder / "rank0.jsonl").write_bytes(head + b"".join(lines[: kept // 2]))
        (folder / "rank1.jsonl").write_bytes(head + b"".join(lines[kept // 2 : kept]) + tail)
        again = sweep(module, folder)
        pd.testing.assert_frame_equal(again.records, whole, check_exact=False, atol=1e-5, rtol=1e-6)
        written = sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl"))
        assert written - 2 - (1 if tail else 0) == 33  # nothing was evaluated twice


def test_finished_work_runs_no_model(module, tmp_path, monkeypatch):
    sweep(module, tmp_path)
    monkeypatch.setattr(module.model, "forward", lambda *a, **k: pytest.fail("the model ran"))
    assert len(sweep(module, tmp_path).records) == 33


def test_repeated_masks_are_evaluated_once(module, tmp_path):
    assert len(sweep(module, tmp_path, masks=[MASKS[1], MASKS[1]]).records) == 11


def test_bad_samples_are_recorded_and_left_out_of_every_mask(module, tmp_path):
    task = PartlyBroken(num_images=8)
    task.broken = (3, 9)
    callback = sweep(module, tmp_path, task=task, num_samples=None, max_bad_samples=0.5)
    assert len(callback.bad_samples) == 2 and all("truncated" in reason for reason in callback.bad_samples.values())
    assert len(callback.records) == len(MASKS) * 30
    callback.check_complete(30)
    _, *lines = [json.loads(line) for line in (tmp_path / "rank0.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines].count("bad") == 2


def test_too_many_bad_samples_stop_the_run(module, tmp_path):
    task = PartlyBroken(num_images=8)
    task.broken = tuple(range(32))
    with pytest.raises(ValueError, match="4 of 11 samples .* allowed are 1.0%.*truncated.*--max_bad_samples 0.37"):
        sweep(module, tmp_path, task=task)


def test_nan_logits_are_reported_with_mask_and_sample(module, tmp_path):
    weight = module.model.lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        with pytest.raises(ValueError, match="NaN or infinite for mask 1{16}, sample validation-0-"):
            sweep(module, tmp_path)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_sigterm_ends_the_loop_of_a_script_too(module, tmp_path):
    """Lightning's handler only sets a flag, which no evaluation of its own reads."""

    class Told(Callback):
        def on_predict_batch_start(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        sweep(module, tmp_path, callbacks=[Told()])
    assert stop.value.code == 143
    assert len(sweep(module, tmp_path).records) == 33


def test_records_outside_of_a_run_belong_to_their_weights(module, tmp_path):
    """Another model in the same folder neither takes them over nor adds to them."""
    sweep(module, tmp_path)
    before = (tmp_path / "rank0.jsonl").read_bytes()
    weight = module.model.lm_head.weight
    try:
        with torch.no_grad():
            weight.mul_(2)
        with pytest.raises(ValueError, match="rank0.jsonl belongs to another run"):
            sweep(module, tmp_path)
    finally:
        with torch.no_grad():
            weight.div_(2)
    assert (tmp_path / "rank0.jsonl").read_bytes() == before


def test_masks_of_another_model_are_refused(module, tmp_path):
    with pytest.raises(ValueError, match="16 blocks, got 4"):
        sweep(module, tmp_path, masks=[torch.ones(4, dtype=torch.bool)])


def test_a_batch_of_one_text_question_needs_no_image(module):
    processor = module.processor
    batch = dict(processor(images=[None], text=["hello"]))
    batch |= {"answer_ids": torch.tensor([[5, 0]]), "sample_ids": ["x"], "samples": [], "bad_samples": []}
    predictions = module.predict_step(batch)
    assert predictions.mask_ids == ["1" * 16] and len(predictions.texts[0]) == 1


def test_one_mask_alone(module, tmp_path):
    frame = sweep(module, tmp_path / "alone", masks=[MASKS[1]]).records
    among = sweep(module, tmp_path / "among").records
    among = among[among["mask"] == mask_id(MASKS[1])].reset_index(drop=True)
    # without the full model there is nothing to agree with
    assert set(among) - set(frame) == {"first_difference", "reference_agreement"}
    pd.testing.assert_frame_equal(frame, among[list(frame)], check_exact=False, atol=1e-5, rtol=1e-6)


def test_the_metric_sees_the_options_of_each_sample(module, tmp_path, monkeypatch):
    class Choices(ShapesVQA):
        def sample(self, row, split, index):
            return replace(super().sample(row, split, index), options=(f"option {index}", "other"))

    def score(prediction, references, options=()):
        seen.append((references, options))
        return 0.0

    seen: list[tuple] = []
    monkeypatch.setattr(lit_depth.metrics.ExactMatch, "score", staticmethod(score))
    task = Choices(num_images=8)
    records = sweep(module, tmp_path, masks=[MASKS[1]], task=task, num_samples=3).records
    assert len(records) == len(seen) == 3
    batches = data(module, num_samples=3, task=task).eval_dataloader("validation")
    assert seen == [(sample.references, sample.options) for batch in batches for sample in batch["samples"]]
    assert len({options for _, options in seen}) == 3


def test_nan_under_one_mask_names_that_mask(module, tmp_path):
    """Only block 7 is broken: masks that skip it are fine, and the error names one that does not."""
    weight = module.model.model.language_model.layers[7].input_layernorm.weight
    kept = weight.detach().clone()
    without = torch.arange(16) != 7
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        assert len(sweep(module, tmp_path / "fine", masks=[without]).records) == 11
        with pytest.raises(ValueError, match="NaN or infinite for mask 1{16}, sample validation-0-"):
            sweep(module, tmp_path / "broken", masks=[without, torch.ones(16, dtype=torch.bool)])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.slow
def test_a_metric_of_a_whole_corpus_scores_each_mask_against_the_same_references(module, tmp_path):
    whole = sweep(module, tmp_path / "whole", metric="CIDErD").records
    assert whole["score"].notna().all() and "references" not in whole
    samples = {sample.id: sample for batch in data(module).eval_dataloader("validation") for sample in batch["samples"]}
    for mask in map(mask_id, MASKS):
        mine = whole[whole["mask"] == mask].set_index("sample").loc[list(samples)]
        _, expected = lit_depth.metrics.cider_d(
            list(mine["prediction"]), [sample.references for sample in samples.values()]
        )
        assert mine["score"].tolist() == pytest.approx(expected, abs=1e-12)
    # scores belong to all samples together: other batches, and an interruption anywhere, give the same
    pd.testing.assert_frame_equal(sweep(module, tmp_path / "ones", metric="CIDErD", batch_size=1).records, whole)
    file = tmp_path / "ones" / "rank0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for kept in (1, 3, len(lines) // 2, len(lines) - 1):
        folder = tmp_path / f"resumed{kept}"
        folder.mkdir()
        (folder / "rank0.jsonl").write_text("".join(lines[:kept]))
        pd.testing.assert_frame_equal(sweep(module, folder, metric="CIDErD", batch_size=1).records, whole)


def test_answers_without_a_choice_are_counted(module, tmp_path, monkeypatch):
    class Letters(lit_depth.metrics.MultipleChoiceAccuracy):
        @staticmethod
        def parses(prediction, options=()):
            return bool(prediction)

        @staticmethod
        def score(prediction, references, options=()):
            return 0.0

    monkeypatch.setattr(lit_depth.metrics, "MultipleChoiceAccuracy", Letters)
    found = sweep(module, tmp_path, metric="MultipleChoiceAccuracy")
    assert found.records["parse_failed"].dtype == bool
    unread = [not prediction for prediction in found.records["prediction"]]
    assert found.records["parse_failed"].tolist() == unread and any(unread)
    assert found.told["parse_failed"] == found.records.groupby("mask")["parse_failed"].mean().to_dict()
    assert set(found.told["parse_failed"]) == set(map(mask_id, MASKS))
    assert sweep(module, tmp_path / "other").told == {}


@pytest.mark.parametrize("metric", ["Remainder", "Remainders"])
def test_a_metric_of_the_users_own(module, tmp_path, metric):
    records = sweep(module, tmp_path, masks=MASKS[:2], metric=f"tests.helpers.own_metrics.{metric}").records
    assert records["score"].tolist() == [remainder(prediction) for prediction in records["prediction"]]
    assert records["score"].nunique() > 1


class WithOptions(ShapesVQA):
    """Questions about pictures, every third without its picture, with options of different lengths."""

    name, metric = "with_options", "acc"
    answer_by = "likelihood"

    def sample(self, row, split, index):
        sample = super().sample(row, split, index)
        image = None if index % 3 == 0 else sample.image
        options = ("red", "two", "a blue circle", "yes")[: 3 + index % 2]
        return replace(sample, image=image, options=options, references=("ABC"[index % 3],))


@torch.no_grad()
def option_logprobs(module, sample, mask) -> list[float]:
    """Each option behind the question alone: one forward without padding and without the engine."""
    found = []
    for option in sample.options:
        asked = replace(sample, options=(), continuations=(), answer_kind="short")
        inputs = module.prompter.encode([asked])
        inputs = {name: inputs[name] for name in model_inputs(inputs)}
        tokens = torch.tensor([module.tokenizer(" " + option, add_special_tokens=False)["input_ids"]])
        length, ids = inputs["input_ids"].shape[1], torch.cat([inputs["input_ids"], tokens], dim=1)
        with masked(module.model, mask):
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logprobs = module.model(**inputs, use_cache=False).logits[0, length - 1 : -1].log_softmax(-1)
        found.append(float(logprobs.gather(1, tokens.T).sum()))
    return found


def test_options_are_chosen_by_log_likelihood_with_and_without_images(module, tmp_path):
    task = WithOptions(num_images=8)
    callback = sweep(module, tmp_path, task=task, metric="acc", num_samples=6)
    records = callback.records.set_index(["mask", "sample"])
    dataset = data(module, task=task, num_samples=6).eval_dataset("validation")
    assert {len(sample.images) for sample in dataset} == {0, 1}
    for sample in dataset:
        right = "ABC".index(sample.references[0])
        for mask in MASKS:
            values = option_logprobs(module, sample, mask)
            by_length = [value / len(option) for value, option in zip(values, sample.options)]
            record = records.loc[(mask_id(mask), sample.id)]
            best = max(range(len(values)), key=values.__getitem__)
            assert record["prediction"] == "ABCD"[best] and record["score"] == record["acc"] == (best == right)
            assert record["acc_norm"] == (by_length.index(max(by_length)) == right)
            num_tokens = len(module.tokenizer(" " + sample.options[right], add_special_tokens=False)["input_ids"])
            # a float32 logarithm of 44 has steps of 4e-6
            assert record["reference_logprob"] == pytest.approx(values[right] / num_tokens, rel=1e-6, abs=1e-5)
    assert set(callback.told) == {"acc", "acc_norm"}


def test_options_interrupted_and_continued_equal_uninterrupted(module, tmp_path):
    task = WithOptions(num_images=8)
    whole = sweep(module, tmp_path / "whole", task=task, metric="acc", num_samples=6).records
    lines = (tmp_path / "whole" / "rank0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "rank1.jsonl").write_bytes(b"".join(lines[:8]) + b'{"mask": "11')
    again = sweep(module, tmp_path / "killed", task=task, metric="acc", num_samples=6).records
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


def test_options_do_not_depend_on_the_number_of_processes_or_the_batch_size(module):
    task, found = WithOptions(num_images=8), []
    module.request_masks(MASKS)
    for size, num_processes in ((2, 1), (2, 2), (5, 1)):
        of_sample = {}
        for rank in range(num_processes):
            datamodule = data(module, task=task, num_samples=5, batch_size=size)
            for batch in datamodule.eval_dataloader("validation", shard=(rank, num_processes)):
                outputs = module.predict_step(batch)
                of_sample |= dict(zip(outputs.sample_ids, zip(*outputs.likelihoods)))
        found.append(of_sample)
    module.requested_masks = None
    assert found[0] == found[1]
    for sample, of_masks in found[0].items():
        for one, other in zip(of_masks, found[2][sample]):
            assert [each.logprob for each in one] == pytest.approx([each.logprob for each in other], rel=1e-6, abs=1e-5)


def test_a_metric_of_generated_answers_is_refused_for_log_likelihood(module, tmp_path):
    with pytest.raises(ValueError, match="expected a metric of log-probabilities, such as acc or acc_norm, got Exact"):
        sweep(module, tmp_path, task=WithOptions(num_images=8), num_samples=2)


def test_a_metric_of_texts_is_refused_for_generated_answers(module, tmp_path):
    with pytest.raises(ValueError, match="expected a metric of generated answers, got TokenLogProbability"):
        sweep(module, tmp_path, metric="logprob_per_token", num_samples=2)


class Percent(SampleMetric):
    """A metric that forgot to say that its scores go to 100."""

    value = 70.0

    @classmethod
    def score(cls, prediction, references, options=()):
        return cls.value


@pytest.mark.parametrize("value", [70.0, -1.0, float("nan")])
def test_a_score_outside_of_what_its_metric_says_is_named_with_its_sample(module, tmp_path, monkeypatch, value):
    monkeypatch.setattr(Percent, "value", value)
    told = rf"expected scores of Percent from 0 to 1 \(its max_score\), got {value} for sample validation-"
    with pytest.raises(ValueError, match=told):
        sweep(module, tmp_path, metric=f"{__name__}.Percent")
    monkeypatch.setattr(Percent, "max_score", 100.0, raising=False)
    monkeypatch.setattr(Percent, "value", 70.0)
    assert set(sweep(module, tmp_path / "whole", metric=f"{__name__}.Percent").records["score"]) == {70.0}


class HalfOpen(ShapesVQA):
    """Every second question is open."""

    def sample(self, row, split, index):
        sample = super().sample(row, split, index)
        if int(sample.id.rpartition("-")[2]) % 2:
            return replace(sample, references=("42",))
        return replace(sample, options=("red", "two"), references=("B",))


def test_the_second_reading_sees_the_whole_answer_and_an_open_question_keeps_its_score(module, tmp_path, monkeypatch):
    written = "It may be 42.\nOption B"  # of which the official reading sees the first line
    monkeypatch.setattr(type(module.prompter), "decode", lambda self, rows, *_, **__: [written] * len(rows))
    records = sweep(module, tmp_path, task=HalfOpen(num_images=8), metric="MMMUAccuracy").records
    is_open = records["sample"].str.rpartition("-")[2].astype(int) % 2 == 1
    assert 0 < is_open.sum() < len(records)
    assert set(records["prediction"]) == {"It may be 42."}
    assert (records["score"] == is_open).all() and (records["parse_failed"] == ~is_open).all()
    assert (records["chat_choice"] == 1.0).all() and not records["chat_choice_parse_failed"].any()


def test_a_second_metric_has_to_score_each_answer(tmp_path):
    with pytest.raises(ValueError, match="scores each answer by itself, got cider"):
        MaskSweep(MASKS, tmp_path, also=["cider"])
    assert MaskSweep(MASKS, tmp_path, "multiple_choice", also=[]).also == {}
