"""Prompts with their answers behind them are read as `reference_logprob` reads them."""

import torch

from lit_depth.functional import reference_logprob
from lit_depth.functional.healing.answers import with_answers
from lit_depth.functional.inputs import with_positions
from tests.helpers.tiny_models import tiny_batch, tiny_model


def test_the_labels_have_the_log_probability_of_the_reference():
    model = tiny_model("llama")
    inputs = tiny_batch(model)
    answers = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
    batch = with_answers(inputs, answers, pad_token_id=0)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**with_positions(model, batch)).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    counts = labels != -100
    expected = reference_logprob(model, inputs, answers, pad_token_id=0)
    torch.testing.assert_close((chosen * counts).sum(1) / counts.sum(1), expected)


def test_types_of_tokens_go_on_as_text_and_images_stay():
    ids = torch.tensor([[5, 6]])
    inputs = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids, "position_ids": ids, "pixel_values": ids}
    batch = with_answers(inputs, torch.tensor([[7]]), pad_token_id=0)
    assert batch["token_type_ids"].tolist() == [[5, 6, 0]]
    assert batch["pixel_values"] is ids and "position_ids" not in batch
