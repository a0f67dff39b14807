"""MMMU: multiple choice and open questions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from datasets import Features, Image

import lit_depth.metrics
from lit_depth.data import get_task
from lit_depth.data.rows import PLACE, Place
from lit_depth.data.tasks.mmmu import MMMU, SUBJECTS
from lit_depth.models.molmo import MolmoPrompter
from tests.helpers.hub_fixtures import TEXT, data, draw

SPLITS = ("dev", "validation")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "id": f"{split}_Art_{index}",
            "question": f"<image 1> What is {index}?",
            "options": "['1/3', \"a cat's tail\", '<image 2>']" if index % 3 else "[]",
            "explanation": "",
            **{f"image_{number}": draw(10 * index + number) if number <= 2 else None for number in range(1, 8)},
            "img_type": "['Plots']",
            "answer": "B" if index % 3 else "['1/3', '0.33']",
            "topic_difficulty": "Easy",
            "question_type": "multiple-choice" if index % 3 else "open",
            "subfield": "Drawing",
        }
        for index in range(start, start + count)
    ]
    features = {name: TEXT for name in rows[0]} | {f"image_{number}": Image() for number in range(1, 8)}
    return rows, Features(features)


def test_the_first_question_of_the_report_split(folders):
    module = data("mmmu", folders / "mmmu")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert (sample.task, sample.answer_kind) == ("mmmu", "short")
    assert (task.metric, task.max_new_tokens) == ("MMMUAccuracy", 32)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "question_type", "subfield"}


@pytest.mark.parametrize("options", [["a", "", "c"], ["", "b"], ["a", "b", "", "", "e"]])
def test_prompt_and_metric_give_an_option_the_same_letter(options):
    """The dataset's letter counts empty options, so the prompt and the metric do."""
    task = get_task("mmmu")
    for index, letter in enumerate("ABCDE"[: len(options)]):
        row = {"image_1": b"x", "question": "Which?", "options": str(options), "question_type": "multiple-choice"}
        place = Place("validation", 0, 0, "image", replace(task.layouts[0], question_id=None))
        sample = task.sample({**row, "answer": letter, PLACE: place}, "validation", 0)
        assert f"\n{letter}: {options[index]}\n" in MolmoPrompter(None).text(sample)
        for other in "ABCDE"[: len(options)]:
            score = lit_depth.metrics.MMMUAccuracy.score(other, sample.references, sample.options)
            assert score == float(other == letter)


def test_mmmu_has_choices_and_open_questions(folders):
    samples = list(data("mmmu", folders / "mmmu").eval_dataset("validation"))
    closed, opened = (
        next(s for s in samples if s.meta["question_type"] == kind) for kind in ("multiple-choice", "open")
    )
    assert closed.question.startswith("<image 1> What is")
    assert closed.options == ("1/3", "a cat's tail", "<image 2>") and closed.references == ("B",)
    assert opened.question.startswith("<image 1>")
    assert opened.options == () and opened.references == ("1/3", "0.33")


def test_mmmu_reads_all_subjects_of_the_other_repository():
    assert MMMU(repository="MMMU/MMMU").config == SUBJECTS and len(SUBJECTS) == 30
    assert MMMU(repository="MMMU/MMMU", config="Art").config == "Art"
    assert MMMU().config is None
