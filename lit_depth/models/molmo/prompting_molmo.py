"""How Molmo is asked: a style that names the kind of question stands in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_depth.models.molmo.image_processing_molmo import MISSING_CROP, MolmoImageProcessor
from lit_depth.models.molmo.vision_tokens_molmo import count_vision_tokens, vision_tokens
from lit_depth.models.prompting import Asked, Prompter, VisionToken, option_lines

# datasets that Molmo was trained on have a style of their own (shapes_vqa stands for short answers in general)
_STYLE_OF_TASK = {
    **{name: name for name in ("text_vqa", "okvqa", "doc_qa", "chart_qa", "info_qa", "plot_qa", "figure_qa", "dv_qa")},
    **{name: name for name in ("tally_qa", "st_qa")},
    "science_qa_img": "science_qa",
}
_STYLE_OF_KIND = {"short": "vqa2", "number": "vqa2", "choice": "a_okvqa_mc", "caption": "coco_captioning", "free": ""}


class MolmoPrompter(Prompter):
    """Molmo's own styles, processor and names of inputs."""

    image_inputs = tuple(MolmoImageProcessor.model_input_names)

    def text(self, asked: Asked) -> str:
        """A style, the question, and a line for each option; the processor adds ``User: ... Assistant:``."""
        kind = "choice" if asked.options else asked.answer_kind or "short"
        return styled_prompt(_STYLE_OF_TASK.get(asked.task, _STYLE_OF_KIND[kind]), asked.question, asked.options)

    def _encode(self, texts: list[str], images: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        return dict(self.processor(images=[list(each) or None for each in images], text=texts, padding_side="left"))

    def prompt_length(self, asked: Asked) -> int:
        if asked.prompt is not None:
            return self._plain([asked])["input_ids"].shape[1]
        length = self._encode([self.prompt_text(asked)], [()])["input_ids"].shape[1]
        count = self.processor.image_processor.num_image_tokens
        return length + sum(count(*image.size[::-1]) for image in asked.images)

    def num_vision_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return count_vision_tokens(inputs)

    def image_places(self, image: Any) -> list[VisionToken]:
        return vision_tokens(self.processor.image_processor, image.height, image.width)

    @classmethod
    def row_inputs(cls, batch: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        """One row as the processor would have given it alone: no padding, no crops that it lacks."""
        inputs = super().row_inputs(batch, row)
        index = inputs.get("image_input_idx")
        if index is None:
            return inputs
        # crops that the row lacks come last
        crops = int((index != MISSING_CROP).any(-1).sum())
        for name in cls.image_inputs:
            if name in inputs and crops:
                inputs[name] = inputs[name][:, :crops]
            else:
                inputs.pop(name, None)
        if crops:
            mask = batch.get("attention_mask")
            kept = torch.ones_like(batch["input_ids"][row]) if mask is None else mask[row]
            places = kept.long().cumsum(0) - 1  # of each padded position in the row alone
            index = index[:, :crops]
            inputs["image_input_idx"] = torch.where(index >= 0, places[index.clamp(min=0)].to(index.dtype), index)
        return inputs


def styled_prompt(style: str, question: str, options: tuple[str, ...] = ()) -> str:
    """Ask in one of Molmo's styles.

    >>> styled_prompt("vqa2", "What is it?"), styled_prompt("coco_captioning", ""), styled_prompt("", "Why?")
    ('vqa2: What is it?', 'coco_captioning:', 'Why?')
    >>> styled_prompt("science_qa", "Which is larger?", ("a cat", "a cow"))
    'science_qa: Which is larger?\\nA: a cat\\nB: a cow\\n'

    Args:
        style: Name of the style; empty for none.
        question: The question; empty for a style that says it all.
        options: Texts to choose from; the answer is then a letter.
    """
    asked = " ".join(part for part in (style and f"{style}:", question) if part)
    return "\n".join([asked, *option_lines(options), ""]) if question and options else asked
