"""ScienceQA, the questions with an image: school science as multiple choice."""

from collections.abc import Mapping
from typing import Any

from lit_depth.data.hub import HubTask
from lit_depth.data.rows import Layout, answer_texts
from lit_depth.functional.choices import MAX_OPTIONS, option_letters


class ScienceQAImage(HubTask):
    """ScienceQA with images; the answer is a letter. ``derek-thomas/ScienceQA`` works too.

    With ``parity: molmo`` a hint takes the question's place and is given twice, as Molmo's own loader does.
    """

    name = "science_qa_img"
    answer_kind = "choice"
    metric = "MultipleChoiceAccuracy"
    max_new_tokens = 16
    repository = "lmms-lab-encoder/ScienceQA"
    config = "ScienceQA-IMG"
    splits = {"train": "train", "calibration": "validation", "validation": "test"}
    layouts = (Layout(answer="answer", further=("choices",), optional=("hint",), meta=("subject", "topic")),)
    drops_rows_without_image = True

    def question(self, entry: Mapping[str, Any]) -> str:
        question, hint = super().question(entry), str(entry.get("hint") or "").strip()
        if not hint:
            return question
        return f"{hint}\n{hint}" if self.parity == "molmo" else f"{hint}\n{question}"

    def options(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        options = answer_texts(entry["choices"], keep_empty=True)
        if not 2 <= len(options) <= MAX_OPTIONS:
            raise ValueError(f"expected 2 to {MAX_OPTIONS} choices, got {len(options)}")
        return options

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        if entry["answer"] is None:
            return ()
        index, options = int(entry["answer"]), self.options(entry)
        if not 0 <= index < len(options):
            raise ValueError(f"expected an answer from 0 to {len(options) - 1}, got {index}")
        return (option_letters(options)[index],)
