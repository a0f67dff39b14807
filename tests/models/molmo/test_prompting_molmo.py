"""Molmo is asked in its own styles: the batches of every dataset are what its processor makes of texts written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lit_depth.data import DepthDataModule, Sample
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.models.loading import load_bundled
from lit_depth.models.molmo import MolmoPrompter, VisionToken, vision_tokens
from lit_depth.models.prompting import prompter_for
from tests.data.conftest import datasets_cache  # noqa: F401  (a fixture for all tests here)
from tests.helpers.hub_datasets import DATASETS, write_dataset
from tests.helpers.tiny_molmo import FAMILIES, tiny_molmo

# style of each dataset, as the release's training mixture calls it
STYLES = {
    "coco_2014_vqa": "vqa2",
    "text_vqa": "text_vqa",
    "okvqa": "okvqa",
    "science_qa_img": "science_qa",
    "doc_qa": "doc_qa",
    "chart_qa": "chart_qa",
    "info_qa": "info_qa",
    "plot_qa": "plot_qa",
    "figure_qa": "figure_qa",
    "dv_qa": "dv_qa",
    "coco_caption": "coco_captioning",
    "tally_qa": "tally_qa",
    "st_qa": "st_qa",
    "shapes_vqa": "vqa2",
}


def picture(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


def written(name: str, sample: Sample) -> str:
    """The text of a sample, put together by hand."""
    style = STYLES.get(name) or ("a_okvqa_mc" if sample.options else "vqa2")
    text = f"{style}: {sample.question}" if sample.question else f"{style}:"
    if sample.options:
        text += "\n" + "".join(f"{'ABCDEFGHIJ'[index]}: {option}\n" for index, option in enumerate(sample.options))
    return text


def assert_same_inputs(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("name", [*DATASETS, "shapes_vqa"])
def test_a_batch_of_every_task_is_what_the_processor_makes_of_its_texts(name, processor, prompter, tmp_path):
    task, path = (ShapesVQA(num_images=8), None) if name == "shapes_vqa" else (name, str(tmp_path))
    if path is not None:
        write_dataset(name, tmp_path)
    options = {"num_samples": 12, "calibration_samples": 8, "batch_size": 6}
    data = DepthDataModule(prompter, task, path=path, **options)
    for split in ("validation", "calibration"):
        samples = list(data.eval_dataset(split))
        batches = list(data.eval_dataloader(split))
        assert samples and sum(len(batch["sample_ids"]) for batch in batches) == len(samples)
        for number, batch in enumerate(batches):
            mine = samples[6 * number : 6 * number + 6]
            texts = [written(name, sample) for sample in mine]
            expected = processor(images=[sample.image for sample in mine], text=texts, padding_side="left")
            assert_same_inputs({key: batch[key] for key in expected}, dict(expected))
            for ids, sample in zip(batch["answer_ids"], mine):
                answer = processor.tokenizer(f" {sample.references[0]}", add_special_tokens=False)["input_ids"]
                assert ids[ids != -100].tolist() == [*answer, processor.tokenizer.eos_token_id]
            assert [prompter.prompt_length(sample) for sample in mine] == batch["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("short", (), "vqa2: What?"),
        ("", (), "vqa2: What?"),
        ("number", (), "vqa2: What?"),
        ("free", (), "What?"),
        ("caption", (), "coco_captioning: What?"),
        ("choice", ("x", "y"), "a_okvqa_mc: What?\nA: x\nB: y\n"),
        ("short", ("x", "y"), "a_okvqa_mc: What?\nA: x\nB: y\n"),
    ],
)
def test_a_task_that_molmo_does_not_know_is_asked_by_its_kind(kind, options, expected):
    asked = Sample("1", "1", None, "What?", ("x",), options=options, task="my_task", answer_kind=kind)
    assert MolmoPrompter(None).text(asked) == expected


def test_vision_tokens_are_counted_row_by_row(processor, prompter):
    asked = [Sample("1", "1", image, "What?", ("x",)) for image in (picture(84, 56), None, picture(5, 5))]
    inputs = prompter.encode(asked)
    patch = processor.tokenizer.convert_tokens_to_ids("<im_patch>")
    assert prompter.num_vision_tokens(inputs).tolist() == (inputs["input_ids"] == patch).sum(1).tolist()
    assert prompter.num_vision_tokens(prompter.encode(asked[1:2])).tolist() == [0]


def test_places_of_an_image_are_those_of_its_tokens(processor, prompter):
    image = picture(84, 56)
    (inputs,) = [prompter.encode([Sample("1", "1", image, "What?", ("x",))])]
    places = prompter.image_places(image)
    assert places == vision_tokens(processor.image_processor, 56, 84) and isinstance(places[0], VisionToken)
    index = inputs["image_input_idx"][0].flatten()
    assert [token.position for token in places] == sorted(index[index >= 0].tolist())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_batch_is_what_the_processor_gives_for_it_alone(processor, prompter, side):
    images = [picture(84, 56), None, picture(300, 40), picture(5, 5)]
    texts = ["Is there a red cross?", "What?", "How many red squares are there in the whole picture?", "Why"]
    batch = dict(processor(images=images, text=texts, padding_side=side))
    assert (batch["image_input_idx"][3] == -1).any() and (batch["attention_mask"] == 0).any()  # or nothing is shown
    batch["labels"] = batch["input_ids"]
    for row, (image, text) in enumerate(zip(images, texts)):
        assert_same_inputs(MolmoPrompter.row_inputs(batch, row), prompter.encode_prompt(text, image))
    whole = {name: value for name, value in batch.items() if name != "attention_mask"}
    assert MolmoPrompter.row_inputs(whole, 0)["input_ids"].shape == batch["input_ids"][:1].shape


@pytest.mark.parametrize("image", [None, picture(84, 56)], ids=["text", "image"])
def test_a_raw_prompt_is_not_framed(processor, prompter, image):
    text = " User: Is there a red cross?\n Assistant: yes"
    expected = processor(images=image, text=text, apply_prompt_format=False)
    assert_same_inputs(prompter.encode_prompt(text, image, raw=True), dict(expected))
    framed = processor(images=image, text="Is it?")
    assert_same_inputs(prompter.encode_prompt("Is it?", image), dict(framed))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_molmo_has_this_prompter(family, processor):
    assert type(prompter_for(tiny_molmo(family), processor)) is MolmoPrompter


def test_the_bundled_checkpoint_is_asked_as_it_was_trained():
    prompter = prompter_for(*load_bundled())
    (row,) = prompter.encode([Sample("1", "1", None, "Is there a red cross?", ("yes",))])["input_ids"]
    assert prompter.tokenizer.decode(row) == "<|endoftext|> User: vqa2: Is there a red cross? Assistant:"
