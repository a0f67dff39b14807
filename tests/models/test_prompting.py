"""How models without a family of their own are asked: by their chat template, or in plain text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Sequence, Split
from transformers import PreTrainedTokenizerFast

import lit_depth.models
from lit_depth.data import BadSample, DepthDataModule, EvalCollator, Sample
from lit_depth.functional.inputs import is_image_input
from lit_depth.functional.token_masking.prompt import encode_prompt
from lit_depth.models.loading import load_bundled, load_checkpoint
from lit_depth.models.molmo import MolmoPrompter
from lit_depth.models.prompting import (
    ChatPrompter,
    PlainPrompter,
    PrefixPrompter,
    Prompter,
    TextPrompter,
    prompter_class,
    prompter_for,
)
from lit_depth.models.serving import check_serves
from tests.helpers.commands import run
from tests.helpers.families import FAMILIES
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


def test_a_family_that_transformers_knows_has_a_prompter_by_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "some_family"
    folder.mkdir()
    (folder / "prompting_some_family.py").write_text(
        "from lit_depth.models.prompting import TextPrompter\n\n\nclass Mine(TextPrompter): ...\n\n\nPROMPTER = Mine\n"
    )
    monkeypatch.setattr(lit_depth.models, "__path__", [*lit_depth.models.__path__, str(tmp_path)])
    (tmp_path / "half").mkdir()  # a folder with something else in it
    kinds = ("some_family", "half", "other", "no-name")
    found = [prompter_class(SimpleNamespace(config=SimpleNamespace(model_type=kind))) for kind in kinds]
    assert [each and each.__name__ for each in found] == ["Mine", None, None, None]


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
    ours = (batch["input_ids"] == model.config.image_token_id).sum(1)
    assert torch.equal(prompter.num_vision_tokens(batch), ours) and ours.all()
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


TYPED = "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
# an answer that is typed, one that is a text, one behind a tag of its own name, and none
ANSWERS = {
    "typed": (TYPED, "", "<|endoftext|>"),
    "a text": ("{{ m.content }}", "", "<|endoftext|>"),
    "joined": ("{{ '' + m.content }}", "", "<|endoftext|>"),
    "a text or nothing": ("{% if m.content is string %}{{ m.content }}{% endif %}", "", "<|endoftext|>"),
    "in a tag": ("<answer>{{ m.content[0].text }}</answer>", "<answer>", "<|endoftext|>"),
    "none": (None, "", "<|endoftext|>"),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_a_template_takes_answers_as_typed_content_or_as_a_text(form, llava):
    written, lead, end = ANSWERS[form]
    answer = "" if written is None else f"[assistant]{written}{{{{ eos_token }}}}"
    model, processor = load_checkpoint(str(llava))
    processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[user]"
        + TYPED
        + "{% else %}"
        + answer
        + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prompter = prompter_for(model, processor)
    check_serves(prompter, model)
    assert prompter.tokenizer.decode(prompter.answer_ids(["red"])[0]) == f"{lead}red{end}"
    (ids,) = prompter.continuation_ids(replace(SHORT, continuations=("red",)))
    assert prompter.tokenizer.decode(ids) == f"{lead}red"


def test_an_answer_ends_in_the_end_token_of_the_model_that_its_template_writes(tmp_path):
    """Whether the tokenizer calls it special or not."""
    template = TEXT_CHAT.replace("{{ eos_token }}", "<|stop|>")
    folder = write_llama(tmp_path, template)
    model, tokenizer = load_checkpoint(str(folder))
    tokenizer.add_tokens(["<|stop|>"])
    model.resize_token_embeddings(len(tokenizer))
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    assert prompter_for(model, tokenizer).answer_ids(["red"])[0, -1] == tokenizer.eos_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    prompter = prompter_for(model, tokenizer)
    assert prompter.answer_ids(["red"])[0, -1] == stop
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = stop
    tokenizer.chat_template = None
    assert prompter_for(model, tokenizer).answer_ids(["red"])[0, -1] == stop


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
    assert prompter.num_vision_tokens(batch).tolist() == [0, 0, 0]
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


# ---- every family


@pytest.fixture(scope="session")
def of_family(tmp_path_factory):
    """Model and processor of a tiny checkpoint of a family, each written once."""
    folders: dict[str, Path] = {}

    def load(name: str):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("family")
            FAMILIES[name].write(folders[name])
        return load_checkpoint(str(folders[name]))

    return load


def runs_here(family) -> bool:
    return all(find_spec(package) for package in family.needs)


ALONE = replace(FREE, image=None, question="Is it so?")
PAIR = replace(SHORT, image=PICTURE.resize((30, 50)), more_images=(PICTURE.resize((64, 64)),), question="The same?")
SEEN = [family.name for family in FAMILIES.values() if family.sees and runs_here(family)]


def check_rows(model, prompter, samples):
    """A row of a batch holds the tokens of its sample alone, and is answered as that is; returns the batch."""

    def answers(inputs):
        return model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]

    batch = prompter.encode(samples)
    together = answers(batch)
    for row, sample in enumerate(samples):
        alone, kept = prompter.encode([sample]), batch["attention_mask"][row].bool()
        assert kept[-1] and torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
        (answer,) = answers(alone)
        assert torch.equal(answer, together[row, : len(answer)])  # which others may go on longer than
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_questions_about_several_images_one_or_none_stand_in_one_batch(name, of_family):
    model, processor = of_family(name)
    prompter = prompter_for(model, processor)
    check_serves(prompter, model)
    samples = [ALONE, SHORT, PAIR]
    batch = check_rows(model, prompter, samples)
    tokens = prompter.num_vision_tokens(batch)
    assert tokens[0] == 0 < tokens[1:].min()
    # any order, and each kind alone
    check_rows(model, prompter, samples[::-1])
    for sample in samples:
        batch = check_rows(model, prompter, [sample, replace(sample, question="And this, which is longer?")])
        assert any(is_image_input(each) for each in batch) == bool(sample.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.sees and runs_here(family)])
def test_text_models_are_asked_in_batches_and_see_no_images(name, of_family):
    model, tokenizer = of_family(name)
    prompter = prompter_for(model, tokenizer)
    check_serves(prompter, model)
    check_rows(model, prompter, [ALONE, replace(CHOICE, image=None)])
    assert not prompter.sees_images
    with pytest.raises(NotImplementedError, match="a model that sees images, .* --data.drop_images true"):
        prompter.encode([SHORT])


@pytest.mark.parametrize(
    ("name", "lead", "end"),
    [
        # the tokenizer's own end token is another in each of these
        ("Gemma 2", "", "<end_of_turn>"),
        ("Phi-3", "", "<|end|>"),
        ("Qwen3", "", "<|im_end|>"),
        ("OLMo", " ", "<|endoftext|>"),
    ],
)
def test_an_answer_ends_as_its_family_ends_a_turn(name, lead, end, of_family):
    prompter = prompter_for(*of_family(name))
    assert prompter.tokenizer.decode(prompter.answer_ids(["red"])[0]) == f"{lead}red{end}"
    prompt = prompter.tokenizer.decode(prompter.encode([ALONE])["input_ids"][0])
    assert ("<think>\n\n</think>\n\n" in prompt) == (name == "Qwen3")


def test_the_first_word_of_an_answer_is_written_as_inside_a_text():
    """SentencePiece puts a mark in front of a text's first word, which no answer has behind its prompt."""
    words = {"▁": 0, "▁Q": 1, ":": 2, "▁red": 3, "red": 4, "\n": 5, "<unk>": 6}
    backend = Tokenizer(WordLevel(words, "<unk>"))
    backend.pre_tokenizer = Sequence([Metaspace(prepend_scheme="first"), Split(Regex(r"\n|:"), "isolated")])
    prompter = TextPrompter(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert prompter._ids("red") == [3] and prompter._ids("Q:\nred") == [1, 2, 5, 4]
    assert prompter._ids_behind("Q:\n", "red") == [4] and prompter._ids_behind("Q:", " red") == [3]


# ---- plain frames


def without_template(llava, family):
    model, processor = load_checkpoint(str(llava))
    processor.chat_template = processor.tokenizer.chat_template = None
    model.config.model_type = family
    return model, processor


@pytest.mark.parametrize(
    ("family", "asked", "described"),
    [
        (
            "llava",
            "USER: {images}What color is it?\nAnswer in one word or a short phrase. ASSISTANT:",
            "USER: {images}Describe the picture in one sentence. ASSISTANT:",
        ),
        (
            "vipllava",
            "###Human: {images}What color is it?\nAnswer in one word or a short phrase.###Assistant:",
            "###Human: {images}Describe the picture in one sentence.###Assistant:",
        ),
        (
            "a base model",
            "{images}Question: What color is it?\nAnswer:",
            "{images}Question: Describe the picture in one sentence.\nAnswer:",
        ),
    ],
)
def test_a_model_without_a_template_is_asked_in_a_plain_frame(family, asked, described, llava):
    model, processor = without_template(llava, family)
    prompter = prompter_for(model, processor)
    assert type(prompter) is PlainPrompter
    check_serves(prompter, model)
    for sample, text in ((SHORT, asked), (CAPTION, described)):
        for shown in ((), (PICTURE,), (PICTURE, PICTURE)):
            several = replace(sample, image=next(iter(shown), None), more_images=shown[1:])
            ids = prompter.encode([several])["input_ids"][0]
            images = ("<image>" * PATCHES + "\n") * len(shown)
            assert prompter.tokenizer.decode(ids) == text.format(images=images)
    assert prompter.tokenizer.decode(prompter.answer_ids(["red"])[0]) == " red<|endoftext|>"
    check_rows(model, prompter, [SHORT, ALONE, PAIR])


def test_a_prefix_names_the_task(of_family):
    prompter = prompter_for(*of_family("PaliGemma"))
    assert type(prompter) is PrefixPrompter
    texts = ["answer en What color is it?", "answer en Which? A. a cat B. a dog", "caption en"]
    assert [prompter.text(sample) for sample in (SHORT, CHOICE, CAPTION)] == texts
    assert prompter.text(FREE) == "answer en Is there a red cross?"
    decoded = prompter.tokenizer.decode(prompter.encode([SHORT])["input_ids"][0])
    assert decoded.replace("<image>", "") == "<bos>answer en What color is it?\n"
    assert prompter.tokenizer.decode(prompter.encode([ALONE])["input_ids"][0]) == "<bos>answer en Is it so?\n"
    assert prompter.tokenizer.decode(prompter.answer_ids(["red"])[0]) == "red<eos>"


def test_a_processor_without_template_or_image_token_is_named(llava):
    model, processor = without_template(llava, "llava")
    del processor.image_token
    with pytest.raises(ValueError, match="expected a processor with a chat template or an image_token, got a Llava"):
        prompter_for(model, processor)


def test_a_template_that_only_the_tokenizer_has(llava):
    model, processor = load_checkpoint(str(llava))
    expected = prompter_for(model, processor).encode([SHORT])
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    found = prompter_for(model, processor).encode([SHORT])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---- reasoning


def test_the_part_behind_the_reasoning_is_the_answer(of_family):
    prompter = prompter_for(*of_family("Gemma 2"))
    texts = [
        "I see </think> no </think> two<end_of_turn>\n<pad><pad>",
        "<start_of_turn>four",
        "</think><start_of_turn>model\nfive<eos>",
    ]
    rows = prompter.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert prompter.decode(rows, "</think>") == [" two\n", "", "model\nfive"]
    assert prompter.decode(rows, "<start_of_turn>model\n") == ["", "", "five"]  # a mark may hold special tokens
    assert prompter.decode(rows)[1] == "four"


def test_an_answer_ends_before_its_first_end_token_whatever_it_is_padded_with(llama):
    prompter = prompter_of(llama)
    (yes, end), (pad,) = prompter.text_ids("redblue")[:2], prompter.text_ids("!")
    rows = torch.tensor([[yes, end, pad, pad], [yes, yes, yes, end], [end, pad, pad, pad], [yes, yes, yes, yes]])
    text = prompter.tokenizer.decode([yes])
    assert prompter.decode(rows, end_tokens=[end]) == [text, 3 * text, "", 4 * text]
    assert prompter.decode(rows[:2], text, [end]) == ["", ""]
    assert prompter.decode(rows[:1]) == [prompter.tokenizer.decode(rows[0])]


# of which a prompt ends in an open thought: QwQ takes thoughts out of answers, R1 writes them as they are
HISTORY = "{% set text = message.content.split('</think>')[-1] %}{{ text }}"
OPEN = {
    "QwQ": (HISTORY, "[assistant]<think>\n", "\n</think>\n\n"),
    "R1, with its thought": ("<think>\n\n</think>\n\n{{ message.content }}", "[assistant]<think>\n", "\n</think>\n\n"),
    "R1": ("{{ message.content }}", "[assistant]<think>", "\n</think>\n\n"),
    "Magistral": ("{{ message.content }}", "[assistant][THINK]", "\n[/THINK]\n\n"),
    "none": ("{{ message.content }}", "[assistant]", ""),
}


@pytest.mark.parametrize("form", OPEN)
def test_a_reference_stands_behind_the_reasoning(form, tmp_path):
    answer, opening, lead = OPEN[form]
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}[user]{{ message.content }}{{ eos_token }}"
        f"{{% else %}}[assistant]{answer}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    )
    prompter = prompter_of(write_llama(tmp_path, template))
    ids = prompter.answer_ids(["red"])[0].tolist()
    assert prompter.tokenizer.decode(ids) == f"{lead}red<|endoftext|>"
    (of_options,) = prompter.continuation_ids(replace(SHORT, image=None, continuations=("red",)))
    assert prompter.tokenizer.decode(of_options) == f"{lead}red"


def test_the_date_that_a_template_is_told_belongs_to_the_run(llava, llama):
    model, processor = load_checkpoint(str(llava))
    assert "date" not in prompter_for(model, processor).settings()
    # where the processor itself reads the clock, and where its tokenizer does
    for part in (processor, load_checkpoint(str(llama))[1]):
        part.chat_template = "{{ strftime_now('%d %b %Y') }}" + TEXT_CHAT
        prompter = prompter_for(model, part)
        assert prompter.settings()["date"] == "2024-07-26" and prompter._framed("Is it?").startswith("26 Jul 2024")


# ---- commands


@pytest.fixture
def quick(tmp_path):
    counts = ["--data.num_samples", 4, "--data.calibration_samples", 4, "--data.batch_size", 2]
    return [*counts, "--trainer.accelerator", "cpu", "--output_dir", tmp_path]


def last_error(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("command", [["importance"], ["tokens"], ["latency"]], ids=lambda command: command[0])
def test_a_text_model_is_not_asked_about_images_unless_they_are_dropped(command, llama, quick, tmp_path, capsys):
    command = [*command, "--model.checkpoint", llama, *quick]
    assert run(command) == 2
    line = last_error(capsys)
    assert "task shapes_vqa: expected a model that sees images" in line and "--data.drop_images true" in line
    # the refused run left nothing that would stand in the way
    assert run([*command, "--data.drop_images", "true"]) == 0
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text())
    assert manifest["arguments"]["data.drop_images"] is True


@pytest.mark.slow
def test_settings_of_prompts_belong_to_the_run(of_family, quick, tmp_path, capsys):
    folder = tmp_path / "qwen"
    FAMILIES["Qwen2-VL"].write(folder)
    command = ["importance", "--model.checkpoint", folder, *quick]
    smaller = ["--model.processor_kwargs", '{"max_pixels": 256}', "--model.answer_after", "</think>"]
    assert run([*command, *smaller]) == 0
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text())
    arguments = manifest["arguments"]
    assert arguments["model.processor_kwargs"] == {"max_pixels": 256} and arguments["model.answer_after"] == "</think>"
    assert arguments["prompter"] == {"class": "ChatPrompter", "chat_template_kwargs": {}}
    assert manifest["model"]["processor"]["processor"]["image_processor"]["size"]["longest_edge"] == 256
    for other, name in ((smaller[2:], "processor_kwargs"), (smaller[:2], "answer_after")):
        assert run([*command, *other]) == 2 and f"another model.{name}" in last_error(capsys)
    # thousands of tokens are more than the model's context
    large = ["--model.processor_kwargs", '{"size": {"shortest_edge": 65536, "longest_edge": 70000}}', "--name", "large"]
    assert run([*command, *large]) == 2
    smaller = "of images: --model.processor_kwargs makes them smaller)"
    assert f"{smaller}, the model's context is 512" in last_error(capsys)
    # or than it was limited to
    assert run([*command, "--data.max_prompt_tokens", 30, "--name", "short"]) == 2
    assert f"{smaller}, the limit is 30 (--data.max_prompt_tokens)" in last_error(capsys)


@pytest.mark.slow
def test_numbers_too_large_for_float16_are_named_by_mask_and_sample(llama, quick, tmp_path, capsys):
    model, tokenizer = load_checkpoint(str(llama))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(3000.0 if "down_proj" in name else 100.0 if "up_proj" in name else 1.0)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "hot")
    command = ["--model.checkpoint", tmp_path / "hot", "--data.drop_images", "true", *quick]
    assert run(["importance", *command]) == 0
    sweeps = (["importance"], ["compare"], ["answers"], ["search", "--max_blocks_to_remove", 1])
    for each in sweeps:
        assert run([*each, *command, "--model.dtype", "float16", "--name", "half"]) == 2
        line = last_error(capsys)
        assert re.search("logits are NaN or infinite for mask [01]{4}, sample [a-z]+-0-.*: .*dtype bfloat16", line)
    asked = ["--prompt", "Is it red?", "--model.dtype", "float16", *quick[-2:]]
    assert run(["tokens", *asked, "--model.checkpoint", tmp_path / "hot"]) == 2
    assert re.search("expected finite hidden states, but .*, in prompt .*: .*dtype bfloat16", last_error(capsys))
    for method, what in (("block_influence", "hidden states"), ("gradient", "loss on labelled tokens")):
        each = ["importance", "--methods", f"[{method}]", "--name", method, "--model.dtype", "float16"]
        assert run([*each, *command]) == 2
        line = last_error(capsys)
        assert re.search(f"expected (a )?finite {what}, got .*, in samples [a-z]+-0-.*: .*dtype bfloat16", line)


@pytest.mark.parametrize(
    ("prompt", "continuations", "context", "expected"),
    [
        ("the cat is", (" red", " blue"), "the cat is", [" red", " blue"]),
        ("the cat is ", ("red", "blue"), "the cat is", [" red", " blue"]),
        ("", ("red",), None, ["red"]),
    ],
)
def test_plain_prompts_are_split_as_lm_evaluation_harness_does(prompt, continuations, context, expected):
    """Tokens of both together less as many as the prompt has; white space at its end goes to the continuation."""
    model, processor = load_bundled()
    prompter = prompter_for(model, processor)
    sample = Sample("1", "1", None, "", ("A",), continuations=continuations, prompt=prompt)
    tokenizer = processor.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = [start] if context is None else tokenizer(context)["input_ids"]
    inputs = prompter.encode([sample])
    assert inputs["input_ids"].tolist() == [ids] and prompter.prompt_length(sample) == len(ids)
    wanted = [tokenizer((context or "") + text)["input_ids"][len(ids) if context else 0 :] for text in expected]
    assert prompter.continuation_ids(sample) == wanted


def test_a_plain_prompt_with_an_image_is_refused():
    prompter = prompter_for(*load_bundled())
    sample = Sample("1", "1", Image.new("RGB", (8, 8)), "", ("A",), prompt="What?")
    with pytest.raises(ValueError, match="expected plain prompts without images"):
        prompter.encode([sample])


@pytest.mark.parametrize("until", [(" red",), ("circle", "?"), ("e r", ""), ("never there",), ()])
def test_a_text_ends_an_answer_with_the_token_that_completes_it(llama, until):
    prompter = prompter_for(*load_checkpoint(str(llama)))
    texts = ["the red circle is red", "is there a circle?", "red", "", "the red circle " * 12 + "is red?"]
    ids = [prompter.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    stop = prompter.stops(until)
    for row in ids:
        expected = [
            any(end and end in prompter.tokenizer.decode(row[:count]) for end in until)
            for count in range(1, len(row) + 1)
        ]
        first = expected.index(True) if True in expected else None
        found = [bool(stop(torch.tensor([row[:count]]))) for count in range(1, len(row) + 1)]
        assert (found.index(True) if True in found else None) == first
    assert stop(torch.tensor([row[:1] for row in ids if row])).shape == (sum(map(bool, ids)),)
