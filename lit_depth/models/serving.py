"""Whether a processor serves a model: one question is put to it when the model is loaded."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from lit_depth.functional.inputs import TEXT_INPUTS
from lit_depth.functional.masking.blocks import context_length, find_blocks
from lit_depth.functional.model_state import attention_of, evaluation_mode
from lit_depth.models.prompting import Prompter

_SIZE = (64, 48)  # width and height in pixels of the picture that is shown: a square would hide what mixes them up
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


def check_serves(prompter: Prompter, model: nn.Module, processor_kwargs: Mapping[str, Any] | None = None) -> None:
    """Refuse a processor or tokenizer that cannot put a question to a model, with an image if it sees images.

    Args:
        prompter: Of the model and its processor.
        model: The model. Its blocks are not run, and nothing of it where it has no images or cannot run in this place.
        processor_kwargs: Settings that the processor was made with, to be named.

    Raises:
        ValueError: If it is the tokenizer or the processor of another model, its chat template raises or writes nothing
            for an image, a small one is longer than the model's context, or something else is missing.
    """
    _check_vocabulary(prompter)
    images = (Image.new("RGB", _SIZE, "white"),) if prompter.sees_images else ()
    kind = type(prompter.processor).__name__
    question = "a question about an image" if images else "a question"
    hint = f" (with processor_kwargs {dict(processor_kwargs)})" if processor_kwargs else ""
    try:
        inputs = prompter.encode([_Probe(images)])
        prompter.answer_ids(["a"])  # some templates take no answer
        _check_goes_on(prompter, inputs["input_ids"])
        _check_names(inputs, model, kind)
        if images and not prompter.num_vision_tokens(inputs).all():
            raise _Unfit(
                f"the checkpoint's {kind} writes no image token that a {type(model).__name__} reads: expected the "
                "processor of this model, and a chat template that shows images"
            )
        if images:
            _check_length(prompter, inputs, context_length(model))
        if images and _can_run(model):
            _check_features(model, inputs, kind)
    except torch.OutOfMemoryError:
        raise
    except _Unfit as error:
        raise ValueError(f"{error}{hint}") from error
    # whatever it is: it would come of every question
    except Exception as error:
        why = " ".join(str(error).split())
        why = why if isinstance(error, ValueError) else f"{type(error).__name__}: {why}"
        raise ValueError(f"the checkpoint's {kind} cannot put {question} to its model{hint}: {why}") from error


class _Unfit(ValueError):
    """What is wrong, in whole words."""


class _Reached(Exception):
    """The first block is about to run."""


def _can_run(model: nn.Module) -> bool:
    """Whether a model can run where it lies: not on the meta device, nor on a CPU with kernels of a GPU."""
    config = getattr(model, "config", None)
    devices = {weight.device.type for weight in model.parameters()}
    of_gpu = attention_of(config) not in ("eager", "sdpa", None) or getattr(config, "quantization_config", None)
    return len(devices) == 1 and "meta" not in devices and not (of_gpu and "cpu" in devices)


def _check_features(model: nn.Module, inputs: Mapping[str, Tensor], kind: str) -> None:
    try:
        _run_to_blocks(model, inputs)
    except torch.OutOfMemoryError:
        raise
    # a model that gets what it does not expect fails anywhere
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _Unfit(
            f"the checkpoint's {kind} cannot put a question about an image to its model: expected the processor of a "
            f"{type(model).__name__}, and settings of it that fit, got inputs that it fails on ({why})"
        ) from error


@torch.no_grad()
def _run_to_blocks(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Run a model up to its first block: images have their features then, and these their places among the tokens."""

    def stop(*_: Any) -> None:
        raise _Reached

    weight = next(weight for weight in model.parameters() if weight.is_floating_point())
    given = {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    try:
        handle = find_blocks(model)[0].register_forward_pre_hook(stop)
    except ValueError:  # nobody knows yet where they are
        return
    # some CPUs lack an operation in float16, which says nothing of the processor
    with handle, evaluation_mode(model), suppress(_Reached, NotImplementedError):
        model(**given, use_cache=False)


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


def _check_goes_on(prompter: Prompter, ids: Tensor) -> None:
    """Refuse a tokenizer that ends every text, and so every prompt, as some were saved after training."""
    tokenizer = prompter.tokenizer
    end = tokenizer.eos_token_id
    if end is not None and ids[0, -1] == end and tokenizer("a")["input_ids"][-1] == end:
        raise _Unfit(
            f"the checkpoint's {type(tokenizer).__name__} ends every text with {tokenizer.eos_token}, and so "
            "every prompt: set add_eos_token to false in tokenizer_config.json, in a copy of the checkpoint"
        )


def _check_length(prompter: Prompter, inputs: Mapping[str, Tensor], context: int | None) -> None:
    """Refuse an image that would take a vision tower hours, and could not be asked about then."""
    length, of_images = inputs["input_ids"].shape[1], int(prompter.num_vision_tokens(inputs).sum())
    if context is not None and length > context:
        raise _Unfit(
            f"a question about an image of {_SIZE[0]} x {_SIZE[1]} pixels has {length:,} tokens ({of_images:,} of "
            f"images: --model.processor_kwargs makes them smaller), the model's context is {context:,}"
        )


def _check_names(inputs: dict[str, Tensor], model: nn.Module, kind: str) -> None:
    taken = inspect.signature(type(model).forward).parameters
    of_images = [name for name in inputs if name not in TEXT_INPUTS]
    unknown = [name for name in of_images if name not in taken]
    missing = [name for name in _NEEDED if of_images and name in taken and name not in inputs]
    for names, what in ((unknown, "makes"), (missing, "does not make")):
        if names:
            verb = "does not take" if names is unknown else "needs"
            raise _Unfit(
                f"expected the processor of this model, got a {kind}, which {what} {', '.join(names)}: a "
                f"{type(model).__name__} {verb} that"
            )
