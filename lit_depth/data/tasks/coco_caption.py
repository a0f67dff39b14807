"""COCO captions: one sentence about a photograph (validation images of 2014)."""

from collections.abc import Mapping
from typing import Any

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout


class CocoCaption(HubTask):
    """COCO captions, about five per image; the val split serves for calibration and report.

    There is no question. ``lmms-lab-encoder/COCO-Caption2017`` works too.
    """

    name = "coco_caption"
    answer_kind = "caption"
    metric = "CIDErD"
    max_new_tokens = 64
    repository = "lmms-lab-encoder/COCO-Caption"
    splits = {"calibration": "val", "validation": "val"}
    layouts = (Layout(answer="answer", question_id="question_id", image_id="file_name"),)

    def question(self, entry: Mapping[str, Any]) -> str:
        return ""
