"""DocVQA: several answers to a question about a page."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import INT64, TEXT, data, draw, index_of

SPLITS = ("train", "validation")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "questionId": str(49000 + index),
            "question": f"What is the date on page {index}?",
            "question_types": ["handwritten"],
            "image": draw(index // 2),
            "docId": 14000 + index // 2,
            "ucsf_document_id": "xyz",
            "ucsf_document_page_no": "1",
            "answers": ["May 3", "3 May"],
            "data_split": split,
        }
        for index in range(start, start + count)
    ]
    features = {"questionId": TEXT, "question": TEXT, "question_types": List(TEXT), "image": Image(), "docId": INT64}
    names = ("ucsf_document_id", "ucsf_document_page_no", "data_split")
    return rows, Features(features | {"answers": List(TEXT)} | dict.fromkeys(names, TEXT))


def test_the_first_question_of_the_report_split(folders):
    module = data("doc_qa", folders / "doc_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"What is the date on page {index_of(SPLITS, sample)}?"
    assert sample.references == ("May 3", "3 May")
    assert (sample.task, sample.answer_kind) == ("doc_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ANLS", 64)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "question_types"}
