"""DVQA: questions about drawn bar charts."""

from collections.abc import Mapping
from typing import Any

from lit_depth.data.hub import HubTask, without_period
from lit_depth.data.rows import Layout


class DVQA(HubTask):
    """DVQA; only its train split is there, which Molmo was trained on: it serves all roles."""

    name = "dv_qa"
    metric = "ExactMatch"
    max_new_tokens = 16
    repository = "vikhyatk/dvqa"
    splits = {"train": "train", "calibration": "train", "validation": "train"}
    in_training_mixture = True
    layouts = (Layout(questions="qa", answer="answer"),)

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return without_period(super().references(entry))
