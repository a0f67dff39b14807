"""Visual masks without the product's code: hooks that put image tokens back, on a cache-free, eager model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.helpers.tiny_models import IMAGE_TOKEN

NEW_TOKENS = 4


def image_places(inputs: dict[str, Tensor]) -> Tensor:
    """Where the image tokens of the tests' prompts are, bool [batch, seq]."""
    ids = inputs["input_ids"]
    if "image_input_idx" not in inputs:
        return ids == IMAGE_TOKEN
    places = torch.zeros_like(ids, dtype=torch.bool)
    for row, index in enumerate(inputs["image_input_idx"].flatten(1)):
        for place in index.tolist():
            if place >= 0:
                places[row, place] = True
    return places


@contextmanager
def reference(
    model: PreTrainedModel, blocks: nn.ModuleList, mask: Tensor, is_image: Tensor, drops: bool
) -> Iterator[None]:
    """``where(is_image, h, block(h))``; ``drops`` hides columns of images, for which attention must be eager."""

    def full(length: int) -> Tensor:
        return nn.functional.pad(is_image, (0, length - is_image.shape[1]))

    def put_back(_block: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        hidden = args[0] if args else kwargs["hidden_states"]
        return torch.where(full(hidden.shape[1])[..., None], hidden, output)

    def hide(_block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        bias = kwargs["attention_mask"].clone()
        bias = bias.expand(len(hidden), -1, -1, -1).clone()
        for row, columns in enumerate(full(hidden.shape[1])):
            bias[row, :, :, columns] = torch.finfo(bias.dtype).min
        return args, {**kwargs, "attention_mask": bias}

    with ExitStack() as stack:
        for block, is_active in zip(blocks, mask.tolist()):
            if not is_active:
                stack.callback(block.register_forward_hook(put_back, with_kwargs=True).remove)
                if drops:
                    stack.callback(block.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield


def answers(model: PreTrainedModel, inputs: dict[str, Tensor], **options: object) -> tuple[Tensor, Tensor]:
    """Greedy tokens [batch, new] and logits [batch, new, vocabulary]."""
    output = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=[IMAGE_TOKEN],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, dim=1)
