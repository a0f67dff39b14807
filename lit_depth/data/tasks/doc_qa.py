"""DocVQA: questions about scanned documents."""

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout
from lit_depth.data.sources import Source


class DocVQA(HubTask):
    """DocVQA; its validation split serves for calibration and report."""

    name = "doc_qa"
    metric = "ANLS"
    max_new_tokens = 64
    repository = "lmms-lab-encoder/DocVQA"
    config = "DocVQA"
    splits = {"train": "train", "calibration": "validation", "validation": "validation"}
    train_source = Source("HuggingFaceM4/DocumentVQA", "train")
    layouts = (Layout(question_id="questionId", image_id="docId", meta=("question_types",)),)
