"""Prompts of ``lit-depth tokens``: given on the command line, read from files, or taken from a task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lit_depth.data import BadSample, DepthDataModule
from lit_depth.data.images import load_image
from lit_depth.data.lengths import HUGE, fewest_tokens
from lit_depth.functional.arguments import check_least, shorten
from lit_depth.functional.masking.blocks import context_length
from lit_depth.functional.token_masking.distances import check_prompt
from lit_depth.module import DepthModule
from lit_depth.studies.shared.checks import check_asks, check_one_task
from lit_depth.studies.tokens.knockout_spans import parse_spans
from lit_depth.studies.tokens.settings import read_settings, read_text

if TYPE_CHECKING:
    from PIL.Image import Image

_SOURCES = ("prompt", "prompt_file", "prompts", "num_samples")
_FORMS = "text, or {prompt: ..., image: ..., name: ...} of which only prompt is required"


@dataclass(frozen=True)
class TokensArguments:
    """The arguments of ``lit-depth tokens``, which explains them.

    Raises:
        ValueError: If several sources of prompts are given, an image goes with none, or a number is out of range.
    """

    prompt: str | None = None
    prompt_file: str | None = None
    prompts: str | None = None
    image: str | None = None
    num_samples: int | None = None
    num_output_tokens: int = 1
    after_end: bool = False
    spans: bool = False
    knockout: bool = False
    span: list[str] | None = None

    def __post_init__(self) -> None:
        check_least(1, num_samples=self.num_samples, num_output_tokens=self.num_output_tokens)
        if self.span is not None and not (self.knockout and self.span):
            raise ValueError("--span names what --knockout true hides: give both, and positions such as 3-7 or 5")
        parse_spans(self.span or ())
        given = [f"--{source}" for source in _SOURCES if getattr(self, source) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of --{', --'.join(_SOURCES)}, got {' and '.join(given)}")
        if self.image is not None and self.prompt is None and self.prompt_file is None:
            raise ValueError("--image needs --prompt or --prompt_file (of several prompts, each names its own image)")

    @property
    def from_task(self) -> bool:
        """Whether questions of the task are the prompts."""
        return self.prompt is None and self.prompt_file is None and self.prompts is None


class Prompt(NamedTuple):
    """One prompt before it is encoded; ``raw``: complete as it is, nothing is wrapped around it."""

    name: str
    text: str
    image: Image | None  # upright RGB
    image_id: str | None  # file, or id in the task
    raw: bool = False


def find_prompts(
    arguments: TokensArguments, model: DepthModule, datamodule: DepthDataModule, options: dict[str, Any]
) -> tuple[list[Prompt], list[BadSample]]:
    """The prompts that the arguments ask for, and the questions of the task that cannot be analysed.

    Raises:
        ValueError: If a file or an image cannot be read, or no prompt is left.
    """
    if arguments.prompt is not None:
        return [with_image("prompt", arguments.prompt, arguments.image)], []
    if arguments.prompt_file is not None:
        text = read_text("prompt_file", arguments.prompt_file)
        return [with_image("prompt", text, arguments.image, raw=True)], []
    if arguments.prompts is not None:
        return read_prompts(arguments.prompts), []
    return prompts_of_task(model, datamodule, options)


def with_image(name: str, text: str, path: str | Path | None, raw: bool = False) -> Prompt:
    """A prompt with the picture of an image file, or without one."""
    if path is None:
        return Prompt(name, text, None, None, raw)
    try:
        return Prompt(name, text, load_image(Path(path)), str(path), raw)
    except ValueError as error:
        raise ValueError(f"image {path}: {error}") from error


def read_prompts(path: str) -> list[Prompt]:
    """Prompts of a YAML file; paths of images count from its folder."""
    settings = read_settings(path)
    entries, pixels = settings.prompts, settings.pixels
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"prompts: expected a list of prompts in {path}, got {shorten(entries)}")
    found = []
    for index, entry in enumerate(entries):
        fields = {"prompt": entry} if isinstance(entry, str) else entry
        if (
            not isinstance(fields, dict)
            or "prompt" not in fields
            or not fields.keys() <= {"prompt", "image", "name"}
            or not all(isinstance(value, str) for value in fields.values())
        ):
            raise ValueError(f"prompts: expected {_FORMS}; entry {index} of {path} is {shorten(entry)}")
        image = None if "image" not in fields else Path(path).parent / fields["image"]
        made = with_image(fields.get("name", f"prompt {index}"), fields["prompt"], image)
        if pixels is not None and made.image is not None:
            made.image.thumbnail((pixels, pixels))
        found.append(made)
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ValueError(f"prompts: expected distinct names in {path}, got {shorten(names)}")
    return found


def prompts_of_task(
    model: DepthModule, datamodule: DepthDataModule, options: dict[str, Any]
) -> tuple[list[Prompt], list[BadSample]]:
    """Questions of the validation split, and those that cannot be read or do not fit the model's context."""
    check_one_task(datamodule, "tokens takes its questions from one task")
    check_asks(datamodule, "tokens")
    dataset = datamodule.eval_dataset("validation")
    dataset.check_seen_by(model.prompter)
    found, bad = [], []
    for sample in (dataset[position] for position in range(len(dataset))):
        if isinstance(sample, BadSample):
            bad.append(sample)
            continue
        if len(sample.images) > 1:
            bad.append(BadSample(sample.id, f"expected a question about at most one image, got {len(sample.images)}"))
            continue
        prompt = Prompt(sample.id, model.prompter.prompt_text(sample), sample.image, sample.image_id)
        try:
            encode(model, prompt, options)
        except ValueError as error:
            bad.append(BadSample(sample.id, str(error)))
            continue
        found.append(prompt)
    if not found:
        reason = f" ({bad[0].id}: {bad[0].reason})" if bad else ""
        raise ValueError(f"validation split of {datamodule.task.name}: no question can be analysed{reason}")
    return found, bad


def encode(model: DepthModule, prompt: Prompt, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's inputs for one prompt; a prompt that it cannot take is named."""
    context = context_length(model.model)
    if context is not None and len(prompt.text) > HUGE:
        fewest = fewest_tokens(model.tokenizer, prompt.text)
        if fewest > context:  # which takes seconds to find out by tokenising it
            raise ValueError(
                f"{prompt.name}: expected at most {context} tokens (the model's context), got at least {fewest}"
            )
    try:
        inputs = model.prompter.encode_prompt(prompt.text, prompt.image, raw=prompt.raw)
        check_prompt(model.model, inputs, **options)
    except ValueError as error:
        raise ValueError(f"{prompt.name}: {error}") from error
    return inputs


def fingerprint(image: Image | None) -> str | None:
    """Size and hash of a picture's pixels: the same path may hold another one the next time."""
    if image is None:
        return None
    return f"{image.width} x {image.height}, {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"
