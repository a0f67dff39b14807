"""VQA v2: short questions about COCO photographs (validation images of 2014)."""

from lit_depth.data.hub import SoftAccuracyTask
from lit_depth.data.rows import Layout


class Coco2014VQA(SoftAccuracyTask):
    """VQA v2, ten answers per question; its validation split serves for calibration and report."""

    name = "coco_2014_vqa"
    max_new_tokens = 16
    repository = "lmms-lab-encoder/VQAv2"
    splits = {"calibration": "validation", "validation": "validation"}
    layouts = (Layout(question_id="question_id", image_id="image_id", meta=("question_type", "answer_type")),)
