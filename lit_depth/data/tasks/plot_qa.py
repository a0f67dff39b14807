"""PlotQA: questions about drawn plots."""

from collections.abc import Mapping
from typing import Any

from lit_depth.data.hub import CAULDRON, HubTask, without_period
from lit_depth.data.rows import Layout
from lit_depth.data.sources import Source


class PlotQA(HubTask):
    """PlotQA, a filtered test split of 1,000 questions, which serves for calibration and report."""

    name = "plot_qa"
    metric = "RelaxedAccuracy"
    max_new_tokens = 16
    repository = "jinaai/plotqa"
    splits = {"train": "train", "calibration": "test", "validation": "test"}
    train_source = Source("HuggingFaceM4/the_cauldron", "train", "plotqa")
    layouts = (Layout(question="query", answer="answer"), CAULDRON)

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        # one source puts a period behind its answers, the other does not, and both have answers such as "U.S."; the
        # metric compares periods, so either form is right
        answers = super().references(entry)
        return tuple(dict.fromkeys((*without_period(answers), *answers)))
