"""Files that evaluation servers of published benchmarks take: one answer to each question, by the question's id."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from lit_depth.data import Task
from lit_depth.metrics.mmmu import parse_mmmu_choice

Format = Literal["vqav2", "docvqa", "mmmu"]
# tasks whose questions a server takes
_OF_TASK: Mapping[str, Format] = {"coco_2014_vqa": "vqav2", "doc_qa": "docvqa", "info_qa": "docvqa", "mmmu": "mmmu"}


def format_of(task: Task) -> Format | None:
    """The format in which a task's answers are submitted; None = there is none.

    >>> from lit_depth.data.tasks import get_task
    >>> format_of(get_task("doc_qa")), format_of(get_task("shapes_vqa"))
    ('docvqa', None)
    """
    return _OF_TASK.get(task.name)


def submissions(kind: Format, records: Any, samples: Iterable[Any]) -> dict[str, Any]:
    """Content of the file to submit of every mask.

    - ``vqav2``: ``[{"question_id": 1, "answer": "yes"}]`` (https://visualqa.org/challenge.html),
    - ``docvqa``: ``[{"questionId": 1, "answer": "1998"}]`` (https://rrc.cvc.uab.es/?ch=17),
    - ``mmmu``: ``{"test_Art_1": "B"}`` (https://github.com/MMMU-Benchmark/MMMU), of an option its letter; an answer
      that names none stands as it is.

    Args:
        kind: The format.
        records: Records of all masks: a frame with ``mask``, ``sample`` and ``prediction``.
        samples: What was asked.

    Raises:
        ValueError: If a question has no id of the kind that the server knows.
    """
    options = {sample.id: getattr(sample, "options", ()) for sample in samples}
    write: Callable[[list[tuple[str, str, Any]]], Any] = {"vqav2": _vqav2, "docvqa": _docvqa, "mmmu": _mmmu}[kind]
    found = {}
    for mask, rows in records.groupby("mask"):
        pairs = zip(rows["sample"], rows["prediction"])
        found[str(mask)] = write([(question_id(name), answer, options.get(name, ())) for name, answer in pairs])
    return found


def question_id(sample: str) -> str:
    """The dataset's own id of a question, which stands last in that of its sample.

    >>> question_id("test/12/262148000"), question_id("validation_Art_1")
    ('262148000', 'validation_Art_1')
    """
    return sample.rpartition("/")[2]


def _vqav2(answers: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    return [{"question_id": _number(name), "answer": answer} for name, answer, _ in answers]


def _docvqa(answers: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    return [{"questionId": _number(name), "answer": answer} for name, answer, _ in answers]


def _mmmu(answers: list[tuple[str, str, Any]]) -> dict[str, str]:
    return {
        name: (parse_mmmu_choice(answer, options) if options else None) or answer for name, answer, options in answers
    }


def _number(name: str) -> int:
    if not name.isdecimal():
        raise ValueError(
            f"expected question ids that are numbers, got {name!r}: give no --submission, or name the "
            "column: --data.columns.id NAME"
        )
    return int(name)
