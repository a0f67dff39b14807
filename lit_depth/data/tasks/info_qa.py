"""InfographicVQA: questions about infographics."""

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout


class InfographicVQA(HubTask):
    """InfographicVQA; its validation split serves for calibration and report."""

    name = "info_qa"
    metric = "ANLS"
    max_new_tokens = 32
    repository = "lmms-lab-encoder/DocVQA"
    config = "InfographicVQA"
    splits = {"calibration": "validation", "validation": "validation"}
    layouts = (Layout(question_id="questionId", meta=("answer_type", "operation/reasoning")),)
