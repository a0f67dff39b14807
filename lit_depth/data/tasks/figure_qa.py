"""FigureQA: yes/no questions about drawn figures."""

from collections.abc import Mapping
from typing import Any

from lit_depth.data.hub import HubTask, without_period
from lit_depth.data.rows import Layout

# Molmo learnt to answer with a digit; the word is accepted too.
_ANSWERS = {"yes": ("1", "yes"), "1": ("1", "yes"), "no": ("0", "no"), "0": ("0", "no")}


class FigureQA(HubTask):
    """FigureQA; only its train split is there, which Molmo was trained on: it serves all roles."""

    name = "figure_qa"
    metric = "ExactMatch"
    max_new_tokens = 16
    repository = "vikhyatk/figureqa"
    splits = {"train": "train", "calibration": "train", "validation": "train"}
    in_training_mixture = True
    layouts = (Layout(questions="qa", answer="answer"),)

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        answers = without_period(super().references(entry))
        if not answers:
            return ()
        if answers[0].lower() not in _ANSWERS:
            raise ValueError(f"expected the answer yes or no, got {answers[0]!r}")
        return _ANSWERS[answers[0].lower()]
