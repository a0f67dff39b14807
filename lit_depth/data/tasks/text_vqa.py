"""TextVQA: questions about text in photographs."""

from lit_depth.data.hub import SoftAccuracyTask
from lit_depth.data.rows import Layout


class TextVQA(SoftAccuracyTask):
    """TextVQA, ten answers per question; its validation split serves for calibration and report."""

    name = "text_vqa"
    max_new_tokens = 64
    repository = "lmms-lab-encoder/textvqa"
    splits = {"train": "train", "calibration": "validation", "validation": "validation"}
    layouts = (Layout(question_id="question_id", image_id="image_id"),)
