"""ScienceQA: hint, question and lettered choices."""

from __future__ import annotations

from datasets import Features, Image, List

from lit_depth.data.datamodule import EvalDataset
from lit_depth.data.tasks.science_qa_img import ScienceQAImage
from tests.helpers.hub_fixtures import INT8, TEXT, data, draw, write_rows

SPLITS = ("train", "validation", "test")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "image": draw(index),
            "question": f"Which is larger in {index}?",
            "choices": ["a cat", "a cow", "a mouse"],
            "answer": index % 3,
            "hint": "Look at the scale." if index % 2 else "",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "biology",
            "category": "Animals",
            "skill": "Compare",
            "lecture": "",
            "solution": "",
        }
        for index in range(start, start + count)
    ]
    names = ("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = {"image": Image(), "question": TEXT, "choices": List(TEXT), "answer": INT8, "hint": TEXT}
    return rows, Features(features | dict.fromkeys(names, TEXT))


def test_the_first_question_of_the_report_split(folders):
    module = data("science_qa_img", folders / "science_qa_img")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert (sample.task, sample.answer_kind) == ("science_qa_img", "choice")
    assert (task.metric, task.max_new_tokens) == ("MultipleChoiceAccuracy", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "subject", "topic"}


def test_science_qa_gives_hint_question_and_lettered_choices(folders):
    folder = folders / "science_qa_img"
    task = ScienceQAImage()
    hinted = EvalDataset(task.load("validation", str(folder)), task, "validation", [1])[0]
    assert hinted.question == "Look at the scale.\nWhich is larger in 2001?"
    assert hinted.options == ("a cat", "a cow", "a mouse") and hinted.references == ("ABC"[2001 % 3],)
    plain = EvalDataset(task.load("validation", str(folder)), task, "validation", [0])[0]
    assert plain.question == "Which is larger in 2000?"
    molmo = ScienceQAImage(parity="molmo")
    hinted = EvalDataset(molmo.load("validation", str(folder)), molmo, "validation", [1])[0]
    assert hinted.question == "Look at the scale.\nLook at the scale."
    assert (molmo.max_new_tokens, task.max_new_tokens) == (12, 16)


def test_science_qa_leaves_out_rows_without_image(tmp_path):
    rows, features = rows_of("test", 0, 6)
    for row in rows[::2]:
        row["image"] = None
    write_rows(tmp_path / "test.parquet", rows, features)
    write_rows(tmp_path / "validation.parquet", rows_of("validation", 100, 2)[0], features)
    assert [sample.question[-2] for sample in data("science_qa_img", tmp_path).eval_dataset("validation")] == [*"135"]
