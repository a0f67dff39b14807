"""The processor of a checkpoint, made of the parts that this machine can run.

Questions show images, never videos. A processor whose video part needs a package that is not installed is therefore
made without that part; one that cannot show an image is refused by the name of the package.
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ImageProcessingMixin, PretrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

# what processors of transformers import beyond the requirements of lit_depth; the extra `vision` has all of them
_PACKAGES = ("torchvision", "num2words")


def load_processor(config: PretrainedConfig, source: str, **options: Any) -> Any:
    """The processor of a checkpoint, or the tokenizer of a text model.

    Args:
        config: The model's configuration.
        source: A folder, or an id on the hub.
        options: What transformers' ``from_pretrained`` is given: ``revision``, ``trust_remote_code``.

    Raises:
        ValueError: If the processor needs a package that is not installed, or that does not fit torch.
    """
    if type(config) not in PROCESSOR_MAPPING:
        return AutoTokenizer.from_pretrained(source, **options)
    try:
        return AutoProcessor.from_pretrained(source, **options)
    # transformers reports a missing package as an ImportError, a ValueError or whatever the package raises itself
    except Exception as error:
        missing, stranger = _missing(error), _stranger(PROCESSOR_MAPPING[type(config)], config, source, options)
        # one that was made without its video part leaves none in a folder that it is saved to
        if not missing and "video processor" not in str(error):
            if stranger:
                raise ValueError(f"{stranger}: {error}") from error
            raise
        try:
            return _without_video(PROCESSOR_MAPPING[type(config)]).from_pretrained(source, **options)
        except Exception as other:
            needed = _missing(other) or missing
            refusal = _refusal(needed) if needed else str(other)
            raise ValueError(f"{stranger}: {refusal}" if stranger else refusal) from error


def _stranger(usual: Any, config: PretrainedConfig, source: str, options: dict[str, Any]) -> str:
    """That the files name another processor than a model of this kind has as a rule; empty if not.

    Some releases do (a Pixtral is a LLaVA), so it is said only of what cannot be loaded.
    """
    named = None
    for read in (ProcessorMixin.get_processor_dict, ImageProcessingMixin.get_image_processor_dict):
        with suppress(OSError, ValueError):
            named = named or read(source, **options)[0].get("processor_class")
    if named in (None, usual.__name__):
        return ""
    return f"its files name {named}, and a model of type {config.model_type} has {usual.__name__} as a rule"


def _missing(error: Exception) -> dict[str, str]:
    """The packages that an error speaks of and that cannot be imported, and why."""
    named = [name for name in _PACKAGES if re.search(name, str(error), re.IGNORECASE)]
    return {name: reason for name in named if (reason := _import_error(name))}


def _import_error(package: str) -> str:
    """Why a package cannot be imported; empty if it can."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        return "is not installed"
    # one built for another torch fails in its own ways
    except Exception as error:
        return f"cannot be imported ({error})"
    return ""


def _refusal(missing: dict[str, str]) -> str:
    named = ", and ".join(f"{name}, which {reason}" for name, reason in missing.items())
    return f"its processor needs {named}: pip install 'lit_depth[vision]'"


def _without_video(processor_class: Any) -> Any:
    """A class of processors that has no video part."""
    *kept, last = processor_class.get_attributes()
    if last != "video_processor":
        raise ValueError(f"expected a processor whose last part is for videos, got {[*kept, last]}")

    class WithoutVideo(processor_class):
        video_processor = SimpleNamespace(num_frames=None, fps=None)  # SmolVLM puts these into every prompt's arguments

        @classmethod
        def get_attributes(cls) -> list[str]:
            return kept

        @classmethod
        def from_args_and_dict(cls, args: list[Any], *others: Any, **options: Any) -> Any:
            return super().from_args_and_dict(
                [*args, None], *others, **options
            )  # some ask for a video part by position

    WithoutVideo.__name__ = processor_class.__name__
    return WithoutVideo
