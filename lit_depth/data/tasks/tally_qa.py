"""TallyQA: simple and complex counting questions about photographs."""

from collections.abc import Mapping
from typing import Any

from lit_depth.data.hub import CAULDRON, HubTask, without_period
from lit_depth.data.rows import Layout
from lit_depth.data.sources import Source


class TallyQA(HubTask):
    """TallyQA; its test split serves for calibration and report. ``is_simple`` in the meta data tells the two kinds."""

    name = "tally_qa"
    answer_kind = "number"
    metric = "ExactMatch"
    max_new_tokens = 16
    repository = "vikhyatk/tallyqa-test"
    splits = {"train": "train", "calibration": "test", "validation": "test"}
    train_source = Source("HuggingFaceM4/the_cauldron", "train", "tallyqa")
    layouts = (Layout(questions="qa", answer="answer", meta=("is_simple",)), CAULDRON)

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return without_period(super().references(entry))
