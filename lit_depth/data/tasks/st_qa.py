"""Scene-text VQA: questions about text in photographs."""

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout


class SceneTextVQA(HubTask):
    """ST-VQA; only its train split has answers, which Molmo was trained on: it serves all roles."""

    name = "st_qa"
    metric = "ANLS"
    max_new_tokens = 32
    repository = "vikhyatk/st-vqa"
    splits = {"train": "train", "calibration": "train", "validation": "train"}
    in_training_mixture = True
    layouts = (Layout(questions="qas"),)
