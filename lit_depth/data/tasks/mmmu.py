"""MMMU: college-level questions of thirty subjects, multiple choice or open."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout, QuestionRows, answer_texts
from lit_depth.functional.choices import MAX_OPTIONS, option_letters

# configurations of ``MMMU/MMMU``, one for each subject
_SUBJECTS = """
Accounting Agriculture Architecture_and_Engineering Art Art_Theory Basic_Medical_Science Biology Chemistry
Clinical_Medicine Computer_Science Design Diagnostics_and_Laboratory_Medicine Economics Electronics
Energy_and_Power Finance Geography History Literature Manage Marketing Materials Math Mechanical_Engineering
Music Pharmacy Physics Psychology Public_Health Sociology
"""
SUBJECTS = tuple(_SUBJECTS.split())


class MMMU(HubTask):
    """MMMU with the first image of each question; dev (150 questions) for calibration, validation (900) for report.

    A multiple-choice question has `options` and a letter as its reference; an open one has neither, and is left out
    where options are chosen by log-likelihood. The repository
    ``MMMU/MMMU`` works too: all its subjects are read, unless ``config`` names some.
    """

    name = "mmmu"
    metric = "MMMUAccuracy"
    max_new_tokens = 32
    repository = "lmms-lab-encoder/MMMU"
    splits = {"calibration": "dev", "validation": "validation"}
    layouts = (
        Layout(
            image="image_1",
            answer="answer",
            further=("options", "question_type"),
            question_id="id",
            meta=("question_type", "subfield"),
        ),
    )

    def __init__(self, repository: str | None = None, config: str | list[str] | None = None, **options: Any) -> None:
        if repository == "MMMU/MMMU" and config is None:
            config = list(SUBJECTS)
        super().__init__(repository, config, **options)

    def load(self, split: str, path: str | None = None) -> QuestionRows:
        """Return the questions of a role, see `HubTask.load`; only those with options where one is to be chosen."""
        return self._answered_by(super().load(split, path), split)

    def stream(self, split: str, num_samples: int, path: str | None = None) -> QuestionRows:
        """Return the first questions of a role, see `HubTask.stream`; of these only some, as in `load`."""
        return self._answered_by(super().stream(split, num_samples, path), split)

    def _answered_by(self, questions: QuestionRows, split: str) -> QuestionRows:
        if self.answer_by == "generation":
            return questions
        kept = [place for place, row in enumerate(questions.without_images()) if row["question_type"] != "open"]
        rank_zero_warn(
            f"mmmu: {len(questions) - len(kept)} of {len(questions)} questions of the {split} split are open: they are "
            "left out, as there are no options to choose from"
        )
        return replace(questions, rows=np.array(questions.rows)[kept], numbers=np.array(questions.numbers)[kept])

    def options(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        if entry["question_type"] == "open":
            return ()
        options = answer_texts(entry["options"], keep_empty=True)
        while options and not options[-1]:  # fills a list up; one in the middle has a letter of its own
            options = options[:-1]
        if not 2 <= len(options) <= MAX_OPTIONS:
            raise ValueError(f"expected 2 to {MAX_OPTIONS} options, got {len(options)}")
        return options

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        answers, options = answer_texts(entry["answer"]), self.options(entry)
        if answers == ("?",):  # stands where the answer is withheld
            return ()
        letters = option_letters(options) if options else ""
        if options and answers and (len(answers) > 1 or answers[0] not in set(letters)):
            raise ValueError(f"expected a letter from A to {letters[-1]} as the answer, got {entry['answer']!r}")
        return answers
