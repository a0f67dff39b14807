"""Weights as a stream: read from a checkpoint's files or a model in memory, written as safetensors shards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights(Protocol):
    """Where weights come from."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Name of every weight, in the order in which they are written, and its bytes."""

    @property
    def shard_bytes(self) -> int:
        """Most bytes of weights in one file."""

    def read(self, names: Sequence[str]) -> Iterator[Tensor]:
        """The weights of these names, one after another."""


class StoredWeights:
    """The weights of a checkpoint's files; no more of them is in memory than is asked for.

    Files as large as the source's largest are written.

    Args:
        folder: Of the checkpoint.

    Raises:
        ValueError: If there are no safetensors files, one of them is missing or damaged, or lacks a weight.
    """

    def __init__(self, folder: Path) -> None:
        headers = {path: header_of(path) for path in _shards(folder)}
        self.files = {name: path for path, header in headers.items() for name in header}
        self.sizes = {name: size for header in headers.values() for name, size in header.items()}
        self.shard_bytes = max(sum(header.values()) for header in headers.values())
        lacking = sorted(_indexed(folder) - self.sizes.keys())
        if lacking:
            raise ValueError(
                f"checkpoint {folder} is damaged: its index names {lacking[0]}, which none of its files has"
            )

    def read(self, names: Sequence[str]) -> Iterator[Tensor]:
        for path, group in itertools.groupby(names, key=self.files.__getitem__):
            with _readable(path), safe_open(path, framework="pt") as file:
                for name in group:
                    yield file.get_tensor(name)


class HeldWeights:
    """The weights of a model in memory, such as one that was healed, or converted to another number format.

    They have the names that ``save_pretrained`` gives them.

    Args:
        model: With all of its blocks.
        shard_bytes: Most bytes of weights in one file.
    """

    def __init__(self, model: PreTrainedModel, shard_bytes: int = 5 * 10**9) -> None:
        held = remove_tied_weights_from_state_dict(model.state_dict(), model)
        self.state: dict[str, Tensor] = revert_weight_conversion(model, held)
        self.sizes = {name: value.nbytes for name, value in self.state.items()}
        self.shard_bytes, self.dtype = shard_bytes, model.dtype

    def read(self, names: Sequence[str]) -> Iterator[Tensor]:
        for name in names:
            # a copy: parts of what was one weight may share its memory, which a file does not take
            yield self.state[name].detach().to("cpu", copy=True).contiguous()


def write_weights(weights: Weights, names: Mapping[str, str], folder: Path) -> None:
    """Write some weights, a shard at a time; in memory are those of one shard, and safetensors' copy of them.

    Args:
        names: New name of each weight, by its name in the source.
        folder: That exists.
    """
    shards = list(split(((name, weights.sizes[name]) for name in names), weights.shard_bytes))
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        new = [names[name] for name in shard]
        save_file(dict(zip(new, weights.read(shard))), folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(new, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(weights.sizes[name] for name in names)}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def split(sizes: Iterable[tuple[str, int]], most: int) -> Iterator[list[str]]:
    """Names in groups of at most so many bytes; what is larger alone is a group of its own.

    >>> list(split([("a", 2), ("b", 2), ("c", 5), ("d", 1)], most=4))
    [['a', 'b'], ['c'], ['d']]
    """
    group: list[str] = []
    total = 0
    for name, size in sizes:
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group


def header_of(path: Path) -> dict[str, int]:
    """Bytes of every weight of a safetensors file, by its name, in the order of the file.

    Raises:
        ValueError: If it is no such file, or is cut off.
    """
    spans = sorted((*entry["data_offsets"], name) for name, entry in entries_of(path).items())
    return {name: end - start for start, end, name in spans}


def entries_of(path: Path) -> dict[str, dict[str, Any]]:
    """``dtype``, ``shape`` and ``data_offsets`` of every weight of a safetensors file, by its name.

    The format begins with the length of its header in eight bytes, and the header in JSON
    (https://github.com/huggingface/safetensors#format).

    Raises:
        ValueError: If it is no such file, or is cut off.
    """
    with _readable(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size:
            raise ValueError("its header is longer than the file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        if 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0) != size:
            raise ValueError("its size is not what its header says")
        return header


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"expected {WEIGHTS} or {INDEX} in {folder}, got neither; save it in safetensors first")
        return [folder / WEIGHTS]
    names = sorted(set(_weight_map(folder).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ValueError(
            f"checkpoint {folder} is incomplete: {INDEX} names {len(names)} files, missing {', '.join(missing[:3])}"
        )
    return [folder / name for name in names]


def _indexed(folder: Path) -> set[str]:
    return set(_weight_map(folder)) if (folder / INDEX).is_file() else set()


def _weight_map(folder: Path) -> dict[str, str]:
    with _readable(folder / INDEX):
        found: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return found


def floating(dtype: torch.dtype) -> str:
    """Name of a number format, as configurations have it.

    >>> floating(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
