"""How models without a family of their own are asked: by their chat template, or in plain text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_depth.data import BadSample, DepthDataModule, EvalCollator, Sample
from lit_depth.functional.token_masking.prompt import encode_prompt
from lit_depth.models.loading import load_bundled, load_checkpoint
from lit_depth.models.molmo import MolmoPrompter
from lit_depth.models.prompting import ChatPrompter, Prompter, TextPrompter, prompter_class, prompter_for
from tests.helpers.commands import run
from tests.helpers.tiny_checkpoints import NUM_BLOCKS, PATCHES, write_llama, write_llava

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
SHORT = Sample("1", "1", PICTURE, "What color is it?", ("red",), task="mine", answer_kind="short")
CHOICE = Sample("2", "2", PICTURE, "Which?", ("B",), options=("a cat", "a dog"), task="mine")
CAPTION = Sample("3", "3", PICTURE, "", ("a red cross",), task="mine", answer_kind="caption")
FREE = Sample("4", "4", PICTURE, "Is there a\nred cross?", ("yes",), task="mine", answer_kind="free")
TEXT_CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


def prompter_of(folder) -> Prompter:
    return prompter_for(*load_checkpoint(str(folder)))


def test_a_model_is_asked_in_the_way_of_its_family(llava, llama, tmp_path):
    chat = write_llama(tmp_path, TEXT_CHAT)
    kinds = [type(prompter_of(folder)) for folder in (llava, llama, chat)]
    assert kinds == [ChatPrompter, TextPrompter, ChatPrompter]
    bundled = load_bundled()
    assert type(prompter_for(*bundled)) is MolmoPrompter is prompter_class(bundled[0])
    assert prompter_class(load_checkpoint(str(llama))[0]) is prompter_class(None) is None


# ---- chat template


def test_a_chat_model_gets_its_template_around_question_options_and_instruction(llava):
    prompter = prompter_of(llava)
    image = "<image>" * PATCHES
    expected = [
        (SHORT, "What color is it?\nAnswer in one word or a short phrase."),
        (CHOICE, "Which?\nA. a cat\nB. a dog\nAnswer with the letter of the right option alone."),
        (CAPTION, "Describe the picture in one sentence."),
        (FREE, "Is there a\nred cross?"),
    ]
    for sample, text in expected:
        assert prompter.text(sample) == text
        for shown, tokens in ((sample, f"{image}\n"), (replace(sample, image=None), "")):
            inputs = prompter.encode([shown])
            decoded = prompter.tokenizer.decode(inputs["input_ids"][0])
            assert decoded == f"<|endoftext|>USER: {tokens}{text} ASSISTANT:"  # one start token: the template's
            assert ("pixel_values" in inputs) == bool(tokens)
            assert prompter.num_vision_tokens(inputs).tolist() == [PATCHES * bool(tokens)]


def test_rows_of_a_chat_batch_are_padded_on_the_left_and_answer_as_they_do_alone(llava):
    model, processor = load_checkpoint(str(llava))
    prompter, samples = prompter_for(model, processor), [CHOICE, SHORT, FREE]
    batch = prompter.encode(samples)
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"].all()
    assert prompter.image_inputs == ("pixel_values",) and len(batch["pixel_values"]) == 3
    assert torch.equal(prompter.image_token_positions(batch).sum(1), prompter.num_vision_tokens(batch))
    together = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
    for row, sample in enumerate(samples):
        alone = prompter.encode([sample])
        assert torch.equal(model.generate(**alone, max_new_tokens=4, do_sample=False)[0, -4:], together[row])
        # and so they are taken out of the batch
        for name, value in prompter.row_inputs(batch, row).items():
            torch.testing.assert_close(value, alone[name])


def test_answers_begin_and_end_as_the_template_writes_them(llava, tmp_path):
    prompter = prompter_of(llava)
    whole = prompter.processor.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "text", "text": prompter.text(SHORT)}]},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ]
    )
    prompt = prompter.encode([replace(SHORT, image=None)])["input_ids"][0].tolist()
    (answer,) = prompter.answer_ids(["red"]).tolist()
    assert prompt + answer == prompter.tokenizer(whole, add_special_tokens=False)["input_ids"]
    # a template that ends its prompt with a line end has no space in front of the answer
    text = prompter_of(write_llama(tmp_path, TEXT_CHAT))
    unseen = replace(SHORT, image=None)
    ids = [*text.encode([unseen])["input_ids"][0].tolist(), *text.answer_ids(["red"])[0].tolist()]
    asked = "What color is it?\nAnswer in one word or a short phrase."
    assert text.tokenizer.decode(ids) == f"[user]\n{asked}<|endoftext|>[assistant]\nred<|endoftext|>"


def test_answers_are_padded_on_the_right(llama):
    answers = prompter_of(llama).answer_ids(["red", "a long answer"])
    assert (answers[0] != -100).tolist() == [True, True] + [False] * (answers.shape[1] - 2)
    assert answers[1, -1] == 0  # the end token


def test_a_chat_processor_without_pad_token_is_refused(llava):
    prompter = prompter_of(llava)
    prompter.tokenizer.pad_token = None
    batch = EvalCollator(prompter)([SHORT])
    assert batch["sample_ids"] == []
    (bad,) = batch["bad_samples"]
    assert bad == BadSample("1", bad.reason) and "expected a tokenizer with a pad token" in bad.reason


# ---- plain text


def test_a_text_model_is_asked_in_plain_text(llama):
    prompter = prompter_of(llama)
    samples = [replace(sample, image=None) for sample in (SHORT, CHOICE, CAPTION)]
    texts = [
        "Question: What color is it?\nAnswer:",
        "Question: Which?\nA. a cat\nB. a dog\nAnswer:",
        "Question: Describe the picture in one sentence.\nAnswer:",
    ]
    assert [prompter.text(sample) for sample in samples] == texts
    batch = prompter.encode(samples)
    rows = [prompter.tokenizer(text)["input_ids"] for text in texts]
    assert [row[mask.bool()].tolist() for row, mask in zip(*batch.values())] == rows
    assert [prompter.prompt_length(sample) for sample in samples] == list(map(len, rows))
    assert prompter.num_vision_tokens(batch).tolist() == [0, 0, 0] and not prompter.image_token_positions(batch).any()
    assert prompter.image_places(PICTURE) == []


def test_a_prompt_of_ones_own(llava, llama):
    for folder in (llava, llama):
        prompter = prompter_of(folder)
        raw = prompter.encode_prompt("Is it a cross?", raw=True)
        assert torch.equal(raw["input_ids"], encode_prompt(prompter.processor, "Is it a cross?", raw=True)["input_ids"])
        with pytest.raises(ValueError, match="expected a prompt with text"):
            prompter.encode_prompt(" ")
    chat = prompter_of(llava)
    inputs, expected = chat.encode_prompt(chat.text(SHORT), PICTURE), chat.encode([SHORT])
    assert inputs.keys() == expected.keys() and all(torch.equal(inputs[name], expected[name]) for name in inputs)
    with pytest.raises(ValueError, match="expected a processor that takes images"):
        prompter_of(llama).encode_prompt("Is it?", PICTURE)


# ---- commands


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "llama"])
def test_blocks_of_other_families_are_ranked(family, request, tmp_path):
    options = ["--data.num_samples", 8, "--data.calibration_samples", 8, "--data.batch_size", 4]
    options += ["--data.drop_images", "true"] if family == "llama" else []
    checkpoint = ["--model.checkpoint", request.getfixturevalue(family), "--trainer.accelerator", "cpu"]
    assert run(["importance", *checkpoint, *options, "--output_dir", tmp_path]) == 0
    folder = tmp_path / "importance" / "default"
    scores = json.loads((folder / "layer_importance_scores.json").read_text())
    assert list(scores) == [str(block) for block in range(NUM_BLOCKS)]
    (task,) = json.loads((folder / "importance.json").read_text())["tasks"]
    assert (task["num_samples"], task["num_bad_samples"]) == (8, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["compare", "--policies", "prefix"],
        ["importance"],
        ["consistency"],
        ["search", "--max_blocks_to_remove", 1],
        ["select", "--budget_ms", 10_000, "--policies", "prefix", "--num_requests", 10, "--num_checks", 10],
    ],
    ids=lambda command: command[0],
)
def test_a_task_and_a_metric_of_ones_own_in_every_command(command, llama, tmp_path, capsys):
    own = ["--data.task", "tests.helpers.own_tasks.ColorWords", "--data.metric", "tests.helpers.own_metrics.Remainder"]
    options = ["--data.batch_size", 8, "--trainer.accelerator", "cpu", "--output_dir", tmp_path]
    assert run([*command, "--model.checkpoint", llama, *own, *options]) == 0, capsys.readouterr().err
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text())
    assert "tests.helpers.own_metrics.Remainder" in json.dumps(manifest)
    # another metric is another run
    changed = [*command, "--model.checkpoint", llama, *own[:2], *options]
    assert run(changed) == 2 and "data.metrics" in capsys.readouterr().err


def test_every_question_of_a_task_reaches_the_model(llama):
    data = DepthDataModule(prompter_of(llama), "tests.helpers.own_tasks.ColorWords", num_samples=None, batch_size=20)
    (batch,) = data.eval_dataloader("validation")
    assert len(batch["sample_ids"]) == 20 and batch["bad_samples"] == []
    assert {(sample.task, sample.answer_kind) for sample in batch["samples"]} == {("color_words", "short")}
