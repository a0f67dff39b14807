"""Evaluation batches: what a prompter makes of samples; what it refuses costs that sample, an error costs the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_depth.data.collate import EvalCollator
from lit_depth.data.lengths import PromptLimit
from lit_depth.data.task import BadSample, Sample
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.models.molmo import MolmoPrompter


@pytest.fixture(scope="module")
def samples():
    task = ShapesVQA(num_images=3)
    return [task.sample(row, "validation", index) for index, row in enumerate(task.load("validation"))]


def test_evaluation_batch(processor, prompter, samples):
    batch = EvalCollator(prompter)(samples)
    prompts = [f"vqa2: {sample.question}" for sample in samples]
    expected = processor(images=[sample.image for sample in samples], text=prompts, padding_side="left")
    for key, tensor in expected.items():
        assert torch.equal(batch[key], tensor), key
    assert batch["attention_mask"][:, -1].all(), "padding is on the left"
    assert batch["sample_ids"] == [sample.id for sample in samples]
    assert [sample.id for sample in batch["samples"]] == batch["sample_ids"]
    assert all(sample.image is None for sample in batch["samples"])
    assert batch["bad_samples"] == []
    for ids, sample in zip(batch["answer_ids"], samples):
        ids = ids[ids != -100].tolist()
        assert ids[-1] == processor.tokenizer.eos_token_id
        assert processor.tokenizer.decode(ids[:-1]) == f" {sample.references[0]}"


def test_answers_of_different_length_are_padded_on_the_right(prompter):
    samples = [Sample(str(i), "0", None, "?", (answer,)) for i, answer in enumerate(["yes", "a longer answer"])]
    answers = EvalCollator(prompter)(samples)["answer_ids"]
    assert (answers[0] != -100).tolist() == [True, True] + [False] * (answers.shape[1] - 2)
    assert (answers[1] != -100).all()


def test_text_only_batches_have_no_image_tensors(prompter):
    batch = EvalCollator(prompter)([Sample("0", "0", None, "Is there a red cross?", ("no",))])
    assert "images" not in batch and batch["input_ids"].shape[0] == 1


def test_bad_samples_cost_themselves_only(prompter, samples):
    long = Sample("long", "long", None, "word " * 200, ("no",))
    unreadable = BadSample("unreadable", "OSError: truncated file")
    collator = EvalCollator(prompter, PromptLimit(100, "--data.max_prompt_tokens"))
    batch, alone = collator([long, *samples[:2], unreadable]), collator(samples[:2])
    assert batch["sample_ids"] == alone["sample_ids"]
    assert torch.equal(batch["input_ids"], alone["input_ids"])
    assert {bad.id for bad in batch["bad_samples"]} == {"long", "unreadable"}
    assert any("100" in bad.reason for bad in batch["bad_samples"])


def test_a_batch_of_bad_samples_has_no_tensors(prompter):
    batch = EvalCollator(prompter)([BadSample("0", "no reference answer")])
    assert batch["sample_ids"] == [] and len(batch["bad_samples"]) == 1
    assert not any(isinstance(value, torch.Tensor) for value in batch.values())


class Refuses(MolmoPrompter):
    """Refuses one question, in the way it is told to."""

    error: type[Exception] = ValueError

    def _encode(self, texts, images):
        if any("cross" in text for text in texts):
            raise self.error("not this one")
        return super()._encode(texts, images)


@pytest.mark.parametrize("limit", [None, PromptLimit(400, "a test")])
def test_a_value_error_costs_its_sample_and_any_other_error_the_run(processor, limit):
    questions = ["Is there a red square?", "Is there a red cross?", "Is there a red star?"]
    asked = [Sample(str(number), "0", None, question, ("no",)) for number, question in enumerate(questions)]
    refuses = Refuses(processor)
    batch = EvalCollator(refuses, limit)(asked)
    assert batch["sample_ids"] == ["0", "2"] and batch["bad_samples"] == [BadSample("1", "ValueError: not this one")]
    for refuses.error in (TypeError, OSError, KeyError, RuntimeError):
        with pytest.raises(refuses.error, match="not this one"):
            EvalCollator(refuses, limit)(asked)


def test_what_fails_for_the_batch_alone_is_no_samples_fault(processor):
    class Together(MolmoPrompter):
        def encode(self, samples):
            if len(samples) > 1:
                raise ValueError("cannot be stacked")
            return super().encode(samples)

    asked = [Sample(str(number), "0", None, "Is there a red cross?", ("no",)) for number in range(2)]
    with pytest.raises(ValueError, match="cannot be stacked"):
        EvalCollator(Together(processor))(asked)


def test_a_long_prompt_is_refused_before_its_image_is_prepared(processor, samples):
    class Spy(MolmoPrompter):
        def encode(self, samples):
            seen.extend(sample.id for sample in samples)
            return super().encode(samples)

    seen: list[str] = []
    lengths = {sample.id: int(MolmoPrompter(processor).encode([sample])["attention_mask"].sum()) for sample in samples}
    limit = sorted(lengths.values())[len(lengths) // 2]
    batch = EvalCollator(Spy(processor), PromptLimit(limit, "a test"))(samples)
    assert seen == batch["sample_ids"] == [name for name, length in lengths.items() if length <= limit]
    assert 0 < len(seen) < len(samples)
    assert {bad.reason for bad in batch["bad_samples"]} == {
        f"the prompt has {length} tokens, the limit is {limit} (a test)"
        for length in lengths.values()
        if length > limit
    }


def test_a_processor_of_one_image_costs_the_rows_that_have_two(processor, samples):
    class OneImage(MolmoPrompter):
        def _encode(self, texts, images):
            if any(len(shown) > 1 for shown in images):
                raise ValueError("expected one image for each text, got 2")
            return super()._encode(texts, images)

    pair = replace(samples[0], id="pair", more_images=(samples[1].image,))
    batch = EvalCollator(OneImage(processor))([samples[0], pair, samples[2]])
    assert batch["sample_ids"] == [samples[0].id, samples[2].id]
    assert batch["bad_samples"] == [BadSample("pair", "ValueError: expected one image for each text, got 2")]
