"""ChartQA: questions about charts, by people and by programs."""

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout


class ChartQA(HubTask):
    """ChartQA; ``human_or_machine`` in the meta data is 0 for questions by people."""

    name = "chart_qa"
    metric = "RelaxedAccuracy"
    max_new_tokens = 16
    repository = "HuggingFaceM4/ChartQA"
    splits = {"train": "train", "calibration": "val", "validation": "test"}
    layouts = (Layout(question="query", answer="label", meta=("human_or_machine",)),)
