"""A file of settings with prompts in it: what ``lit-depth tokens --prompts`` takes from it besides the prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_depth.functional.arguments import shorten
from lit_depth.results.reading import load_yaml

_KNOWN = ("device", "max_image_resolution", "model", "num_tokens", "prompts")


class Settings(NamedTuple):
    """Content of the file; of a plain list of prompts everything else is None."""

    prompts: Any
    checkpoint: str | None = None
    device: str | None = None
    num_tokens: int | None = None
    pixels: int | None = None  # longest side of an image


def read_text(option: str, path: str) -> str:
    """A UTF-8 file as it is, line ends included, without a byte order mark."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{option}: expected UTF-8 text, {path} has the byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_settings(path: str) -> Settings:
    """Read a list of prompts, or a mapping with ``prompts``.

    Besides ``prompts`` the mapping may have ``model: {path: ..., device: ...}``, ``device``, ``num_tokens`` and
    ``max_image_resolution``. A prompt with ``enabled: false`` is left out.

    Raises:
        ValueError: If the file cannot be read, is no YAML, or has an unknown key or a value of the wrong type.
    """
    try:
        content = load_yaml(read_text("prompts", path))
    except yaml.YAMLError as error:
        raise ValueError(f"prompts: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        return Settings(content)
    if "prompts" not in content or not content.keys() <= set(_KNOWN):
        raise ValueError(
            f"prompts: expected a list of prompts, or prompts: with some of {', '.join(_KNOWN[:-1])} in {path}, got "
            f"{shorten(sorted(map(str, content)))}"
        )
    model = content.get("model") or {}
    if not isinstance(model, dict):
        raise ValueError(f"prompts: expected model: {{path: ...}} in {path}, got model: {shorten(model)}")
    texts = {"model.path": model.get("path"), "device": model.get("device", content.get("device"))}
    for name, text in texts.items():
        if not (text is None or isinstance(text, str)):
            raise ValueError(f"prompts: expected text for {name} in {path}, got {shorten(text)}")
    numbers = [_count(content, name, path) for name in ("num_tokens", "max_image_resolution")]
    return Settings(_enabled(content["prompts"]), *texts.values(), *numbers)


def _count(content: dict[str, Any], name: str, path: str) -> int | None:
    count = content.get(name)
    if not (count is None or type(count) is int and count > 0):
        raise ValueError(f"prompts: expected a whole number from 1 on for {name} in {path}, got {shorten(count)}")
    return count


def _enabled(prompts: Any) -> Any:
    if not isinstance(prompts, list):
        return prompts
    kept = [each for each in prompts if not (isinstance(each, dict) and each.get("enabled") is False)]
    return [{k: v for k, v in each.items() if k != "enabled"} if isinstance(each, dict) else each for each in kept]


def chosen(option: str, given: Any, of_file: Any, path: str | None, default: Any = None) -> Any:
    """What holds for an option: what was given, else what the file says, else the default; one line tells of it.

    >>> chosen("--device", "cpu", None, None)
    'cpu'
    """
    if of_file is None:
        return default if given is None else given
    if given is None:
        print(f"{path}: {option} {of_file}", file=sys.stderr)
        return of_file
    if given != of_file:
        print(f"{path} has {option} {of_file}; {option} {given} was given and holds", file=sys.stderr)
    return given


def use_checkpoint(options: Any) -> None:
    """Set the checkpoint of the options of a command that is to start; one that was given holds.

    ``bundled`` counts as not given: it is the default.
    """
    path = options["prompts"]
    if path is None:
        return
    given = options["model"]["checkpoint"]
    of_file = read_settings(path).checkpoint
    if of_file is not None:
        given = None if given == "bundled" else given
        options["model"]["checkpoint"] = chosen("--model.checkpoint", given, of_file, path)
