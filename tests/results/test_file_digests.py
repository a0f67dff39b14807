"""Digests follow the content of a file, from the cache or not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_depth.results import file_digests as module
from lit_depth.results.file_digests import file_digest, file_digests

LARGE = 2**20 + 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lit_depth" / "digests"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read as a whole."""
    found: list[Path] = []
    whole = module._read
    monkeypatch.setattr(module, "_read", lambda path: found.append(path) or whole(path))
    return found


def write(path: Path, content: bytes, seconds_ago: float = 60) -> Path:
    path.write_bytes(content)
    then = path.stat().st_mtime - seconds_ago
    os.utime(path, (then, then))
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour later: the change time of a file cannot be set."""
    import time

    now = time.time
    monkeypatch.setattr(module.time, "time", lambda: now() + 3600)


def test_it_is_that_of_the_content(tmp_path: Path, cache: Path, settled: None, read: list[Path]) -> None:
    small, large = write(tmp_path / "a.json", b"{}"), write(tmp_path / "b.bin", b"x" * LARGE)
    expected = [hashlib.sha256(content).hexdigest()[:16] for content in (b"{}", b"x" * LARGE)]
    assert file_digests([small, large]) == expected and sorted(read) == [small, large]
    assert file_digests([small, large]) == expected and sorted(read) == [small, small, large]
    assert len(list(cache.iterdir())) == 1  # of the large one


@pytest.mark.parametrize("change", ["content", "same size", "same size and time", "another file of that name"])
def test_what_was_changed_is_read_again(tmp_path: Path, settled: None, change: str) -> None:
    path = write(tmp_path / "w.bin", b"a" * LARGE)
    before, status = file_digest(path), path.stat()
    if change == "another file of that name":
        write(tmp_path / "new", b"b" * LARGE)
        os.replace(tmp_path / "new", path)
    else:
        with open(path, "r+b") as file:
            file.write(b"b" * LARGE + (b"c" if change == "content" else b""))
    if change != "content":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:16] != before


def test_a_file_that_may_still_change_within_a_tick_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    """Not even if its modification time says otherwise, which anybody can set."""
    for seconds_ago in (0.0, 3600.0):
        file_digest(write(tmp_path / "w.bin", b"a" * LARGE, seconds_ago))
    assert not cache.exists()


def test_a_file_from_the_future_is_not_remembered(tmp_path: Path, cache: Path, settled: None) -> None:
    file_digest(write(tmp_path / "w.bin", b"a" * LARGE, -7200.0))
    assert not cache.exists()


def test_the_header_of_safetensors_is_read_every_time(
    tmp_path: Path, cache: Path, settled: None, read: list[Path]
) -> None:
    """A cache that is wrong about the weights does not hide another set of them."""
    weights = torch.arange(300_000.0)
    save_file({"a": weights}, tmp_path / "a.safetensors")
    before = file_digest(tmp_path / "a.safetensors")
    assert file_digest(tmp_path / "a.safetensors") == before and len(read) == 1
    (entry,) = cache.iterdir()
    save_file({"b": weights}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").touch()
    status = os.stat(tmp_path / "a.safetensors")
    module._entry(tmp_path / "a.safetensors", status).write_text(entry.read_text())
    assert file_digest(tmp_path / "a.safetensors") != before and len(read) == 1


@pytest.mark.parametrize("damage", ["", "zz" * 32, "ab" * 31, "\xff"])
def test_a_damaged_cache_is_not_believed(tmp_path: Path, cache: Path, settled: None, damage: str) -> None:
    path = write(tmp_path / "w.bin", b"a" * LARGE)
    right = file_digest(path)
    (entry,) = cache.iterdir()
    entry.write_text(damage, encoding="latin-1")
    assert file_digest(path) == right and entry.read_text().startswith(right)


def test_without_a_cache_it_only_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None) -> None:
    path = write(tmp_path / "w.bin", b"a" * LARGE)
    right = hashlib.sha256(b"a" * LARGE).hexdigest()[:16]
    (tmp_path / "file").write_text("no folder")
    for place in (str(tmp_path / "file"), "/proc/nowhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert file_digest(path) == right
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which XDG says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert file_digest(path) == right
    assert len(list((tmp_path / "home" / ".cache" / "lit_depth" / "digests").iterdir())) == 1
    assert not Path("relative").exists()
