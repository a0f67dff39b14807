"""Does a model hold the same weights as before? All values, or a sample of each weight where that must be cheap."""

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from lit_depth.functional.shards import own_part, whole

_CHUNK_BYTES = 64 * 2**20
_SAMPLED = 64


def weights_digest(model: nn.Module) -> str:
    """Digest of the names, shapes, types and all values of a model's weights: 1.5 GB per second and thread.

    >>> model = nn.Linear(2, 1)
    >>> before = weights_digest(model)
    >>> with torch.no_grad():
    ...     model.weight[0, 1] += 1
    >>> weights_digest(model) == before
    False

    Args:
        model: On any device; a weight that is not in memory (``meta``) counts by its name and shape. All processes
            that hold a model together must ask at the same time; it is then that of the model in one process.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, value in model.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
            chunks = () if value.is_meta else _bytes(whole(value)).split(_CHUNK_BYTES)
            # a thread costs more than hashing a small weight
            for part in pool.map(_digest, chunks) if len(chunks) > 1 else map(_digest, chunks):
                digest.update(part)
    return digest.hexdigest()[:16]


def weights_sample(model: nn.Module) -> str:
    """Digest of up to 64 values of every weight: milliseconds, and another model gives another one.

    Args:
        model: On any device. Of weights that are split over processes, each counts what it holds.

    Returns:
        16 hexadecimal digits.
    """
    digest, samples = hashlib.sha256(), defaultdict(list)
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        if not value.is_meta:
            flat = own_part(value).detach().flatten()
            samples[str(flat.device), str(flat.dtype)].append(flat[:: max(1, len(flat) // _SAMPLED)])
    for _, parts in sorted(samples.items(), key=lambda item: item[0][1]):  # one transfer from a device
        digest.update(_bytes(torch.cat(parts)).numpy().data)
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> Tensor:
    return value.detach().cpu().flatten().view(torch.uint8)


def _digest(part: Tensor) -> bytes:
    return hashlib.sha256(part.numpy().data).digest()
