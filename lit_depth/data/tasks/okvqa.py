"""OK-VQA: questions about photographs that need outside knowledge."""

from lit_depth.data.hub import SoftAccuracyTask
from lit_depth.data.rows import Layout
from lit_depth.data.sources import Source


class OKVQA(SoftAccuracyTask):
    """OK-VQA, ten answers per question; its validation split serves for calibration and report."""

    name = "okvqa"
    max_new_tokens = 16
    repository = "lmms-lab-encoder/OK-VQA"
    splits = {"train": "train", "calibration": "val2014", "validation": "val2014"}
    train_source = Source("Multimodal-Fatima/OK-VQA_train", "train")
    layouts = (Layout(question_id="question_id", meta=("question_type", "answer_type")),)
