"""Digests of files, remembered in the user's cache folder: many gigabytes of weights are read once, not every time."""

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_REMEMBERED_BYTES = 2**20  # a smaller file is read faster than the cache
# a file may be written twice within one tick of its file system's clock
_SETTLED_SECONDS = 2.0
_MAX_HEADER_BYTES = 100 * 2**20
_MAX_READERS = 4


def file_digests(paths: Iterable[str | Path]) -> list[str]:
    """Digest of the content of each file: 16 hexadecimal digits, of safetensors files also of their header.

    A digest is taken from the cache (``$XDG_CACHE_HOME/lit_depth``, else ``~/.cache/lit_depth``) where size, inode and
    times (in nanoseconds) of the file are the same, and it had not been touched within 2 s when it was read. The header
    of a safetensors file, with the names and places of all weights, is read every time.

    Raises:
        OSError: If a file cannot be read.
    """
    with ThreadPoolExecutor(_MAX_READERS) as pool:
        return list(pool.map(file_digest, map(Path, paths)))


def file_digest(path: Path) -> str:
    """`file_digests` of one file."""
    status = os.stat(path)
    if status.st_size < _REMEMBERED_BYTES:
        return _read(path)[:16]
    entry = _entry(path, status)
    digest = _recall(entry)
    if digest is None:
        digest = _read(path)
        settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
        if settled and _entry(path, os.stat(path)) == entry:
            _remember(entry, digest)
    if path.suffix == ".safetensors":
        digest = hashlib.sha256((digest + _header(path)).encode()).hexdigest()
    return digest[:16]


def _read(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> str:
    """Digest of a safetensors file's header; the first eight bytes say how long it is."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = min(int.from_bytes(start, "little"), _MAX_HEADER_BYTES)
        return hashlib.sha256(start + file.read(length)).hexdigest()


def _entry(path: Path, status: os.stat_result) -> Path | None:
    """The file that remembers the digest of exactly this file; None where there is no cache."""
    known = (os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # relative paths are to be ignored, says the XDG specification
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return root / "lit_depth" / "digests" / hashlib.sha256(repr(known).encode()).hexdigest()


def _recall(entry: Path | None) -> str | None:
    if entry is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        text = entry.read_text(encoding="ascii")
        return text if re.fullmatch("[0-9a-f]{64}", text) else None
    return None


def _remember(entry: Path | None, digest: str) -> None:
    if entry is None:
        return
    # a folder that cannot be written to costs time, nothing else
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=entry.parent)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(digest)
        os.replace(temporary, entry)
