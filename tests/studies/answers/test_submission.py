"""Files for evaluation servers, as these publish their formats."""

from types import SimpleNamespace

import pandas as pd
import pytest

from lit_depth.studies.answers.submission import submissions

IDS = ("test/0/17", "test/1/4")
ROWS = [
    {"mask": mask, "sample": sample, "prediction": answer}
    for mask, answers in {"11": ("yes", "2"), "10": ("no", "B")}.items()
    for sample, answer in zip(IDS, answers)
]
SAMPLES = [SimpleNamespace(id=IDS[0], options=()), SimpleNamespace(id=IDS[1], options=("cat", "dog"))]


@pytest.mark.parametrize(("kind", "key"), [("vqav2", "question_id"), ("docvqa", "questionId")])
def test_lists_of_ids_and_answers(kind, key):
    found = submissions(kind, pd.DataFrame(ROWS), SAMPLES)
    assert found["11"] == [{key: 17, "answer": "yes"}, {key: 4, "answer": "2"}]
    assert found["10"] == [{key: 17, "answer": "no"}, {key: 4, "answer": "B"}]


def test_mmmu_takes_letters_of_options_and_texts_of_open_questions():
    rows = [{"mask": "1", "sample": "test_Art_1", "prediction": "(B) dog"}]
    rows += [{"mask": "1", "sample": "test_Art_2", "prediction": "about 7"}]
    samples = [SimpleNamespace(id="test_Art_1", options=("cat", "dog")), SimpleNamespace(id="test_Art_2", options=())]
    assert submissions("mmmu", pd.DataFrame(rows), samples) == {"1": {"test_Art_1": "B", "test_Art_2": "about 7"}}


def test_ids_that_no_server_knows_are_refused():
    rows = pd.DataFrame([{"mask": "1", "sample": "test/0/a7", "prediction": "x"}])
    with pytest.raises(ValueError, match="expected question ids that are numbers, got 'a7'"):
        submissions("vqav2", rows, [])
