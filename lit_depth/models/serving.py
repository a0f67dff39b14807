"""Whether a processor serves a model: one question is put to it when the model is loaded."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor, nn

from lit_depth.functional.inputs import TEXT_INPUTS
from lit_depth.models.prompting import Prompter

_SIDE = 64  # pixels of the picture that is shown
# inputs for images that a family cannot do without, if its forward knows them
_NEEDED = ("image_grid_thw",)


class _Probe(NamedTuple):
    """A question as a task asks it."""

    images: tuple[Any, ...]
    question: str = "What is it?"
    options: tuple[str, ...] = ()
    task: str = ""
    answer_kind: str = "short"
    continuations: tuple[str, ...] = ()
    prompt: str | None = None
    tokens: None = None


def check_serves(prompter: Prompter, model: nn.Module) -> None:
    """Refuse a processor or tokenizer that cannot put a question to a model, with an image if it sees images.

    Args:
        prompter: Of the model and its processor.
        model: The model, which is not run.

    Raises:
        ValueError: If it is the tokenizer or the processor of another model, its chat template raises or writes nothing
            for an image, or something else is missing.
    """
    _check_vocabulary(prompter)
    images = (Image.new("RGB", (_SIDE, _SIDE), "white"),) if prompter.sees_images else ()
    kind = type(prompter.processor).__name__
    try:
        inputs = prompter.encode([_Probe(images)])
    # whatever it is: it would come of every question
    except Exception as error:
        question = "a question about an image" if images else "a question"
        why = " ".join(str(error).split())
        why = why if isinstance(error, ValueError) else f"{type(error).__name__}: {why}"
        raise ValueError(f"the checkpoint's {kind} cannot put {question} to its model: {why}") from error
    _check_names(inputs, model, kind)
    if images and not prompter.num_vision_tokens(inputs).all():
        raise ValueError(
            f"the checkpoint's {kind} writes no image token that a {type(model).__name__} reads: expected the "
            "processor of this model, and a chat template that shows images"
        )


def _check_vocabulary(prompter: Prompter) -> None:
    """Refuse a tokenizer with more tokens than the model, and warn of one that has far fewer."""
    tokenizer, size = prompter.tokenizer, prompter.num_embeddings
    known = getattr(tokenizer, "vocab_size", None)  # without those that were added, which some models do not have
    if size is None or known is None:
        return
    if known > size:
        raise ValueError(
            f"expected the model's own tokenizer, got a {type(tokenizer).__name__} of {known:,} tokens for a model of "
            f"{size:,} embeddings"
        )
    if 2 * len(tokenizer) < size:
        warnings.warn(
            f"the tokenizer has {len(tokenizer):,} tokens, the model {size:,} embeddings: is it this model's own?",
            stacklevel=3,
        )


def _check_names(inputs: dict[str, Tensor], model: nn.Module, kind: str) -> None:
    taken = inspect.signature(type(model).forward).parameters
    of_images = [name for name in inputs if name not in TEXT_INPUTS]
    unknown = [name for name in of_images if name not in taken]
    missing = [name for name in _NEEDED if of_images and name in taken and name not in inputs]
    for names, what in ((unknown, "makes"), (missing, "does not make")):
        if names:
            verb = "does not take" if names is unknown else "needs"
            raise ValueError(
                f"expected the processor of this model, got a {kind}, which {what} {', '.join(names)}: a "
                f"{type(model).__name__} {verb} that"
            )
