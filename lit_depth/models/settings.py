"""What an answer depends on beside the weights: settings of a loaded model and its processor, and their files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import cached_file

from lit_depth.functional.model_state import attention_of
from lit_depth.models.loading import BUNDLED

# what a checkpoint is loaded from, by the names that transformers and tokenizers know
_FILES = (
    *("*config*.json", "*.safetensors", "*.safetensors.index.json", "*.py"),
    *("tokenizer*", "*.model", "*.tiktoken", "*.spm", "vocab*", "merges*", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template*", "*.jinja"),
)
_FOLDERS = (".", "additional_chat_templates")
# where a checkpoint lies and who wrote it say nothing about what it answers
_SAYS_NOTHING = {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_from_model_config"}
_OF_TOKENIZER = (
    *("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces", "split_special_tokens"),
    *("add_prefix_space", "add_bos_token", "add_eos_token", "special_tokens_map", "model_input_names"),
)


def checkpoint_files(checkpoint: str, revision: str | None = None) -> dict[str, Path]:
    """Files of a checkpoint that decide what it answers, by name.

    >>> sorted(checkpoint_files("bundled"))[:3]
    ['chat_template.jinja', 'config.json', 'generation_config.json']

    Args:
        checkpoint: As for `lit_depth.models.loading.load_checkpoint`. Of an id on the hub, the snapshot in the cache.
        revision: Branch, tag or commit on the hub.
    """
    folder = BUNDLED if checkpoint == "bundled" else Path(checkpoint).expanduser()
    if not folder.is_dir():
        config = cached_file(checkpoint, "config.json", revision=revision, local_files_only=True)
        folder = Path(str(config)).parent
    paths = (path for inner in _FOLDERS for path in sorted((folder / inner).glob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in found.items() if any(fnmatch(path.name, pattern) for pattern in _FILES)}


def model_settings(model: nn.Module) -> dict[str, Any]:
    """Settings of a model as it is in memory: its class and modules, configuration and generation configuration."""
    config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    return {
        "configuration": {} if config is None else _plain(config.to_dict()),
        "generation_config": {} if generation is None else _plain(generation.to_dict()),
        "attention": attention_of(config),
        # a function's place in memory says nothing either
        "modules": f"{type(model).__name__}, {_digest(re.sub(' at 0x[0-9a-f]+', '', repr(model)))}",
    }


def processor_settings(processor: Any) -> dict[str, Any]:
    """Settings of a processor, or of a tokenizer, as it is in memory."""
    tokenizer = getattr(processor, "tokenizer", processor)
    settings = {} if processor is tokenizer or not hasattr(processor, "to_dict") else _plain(processor.to_dict())
    templates = [getattr(part, "chat_template", None) for part in (processor, tokenizer)]
    return {
        "class": type(processor).__name__,
        # one name in a checkpoint may stand for several, by the packages that are installed
        "image_processor": type(getattr(processor, "image_processor", None)).__name__,
        "chat_template": _digest(json.dumps(templates)),
        "processor": settings,
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "vocabulary": _vocabulary(tokenizer),
            **{name: _plain(getattr(tokenizer, name)) for name in _OF_TOKENIZER if hasattr(tokenizer, name)},
        },
    }


def _vocabulary(tokenizer: Any) -> str:
    """Digest of how a tokenizer cuts text, and of its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        # set anew by every call
        whole.update(padding=None, truncation=None)
    else:
        whole = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else type(tokenizer).__name__
    return _digest(json.dumps(whole, sort_keys=True))


def _plain(value: Any) -> Any:
    """The value in JSON's own types; of any other object its type."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if key not in _SAYS_NOTHING}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if value is None or isinstance(value, (bool, int, str)):
        return value
    # infinities, which JSON does not know
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    return str(value) if type(value).__module__ == "torch" else type(value).__name__


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
