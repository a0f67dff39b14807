"""Files of a run: its folder, atomic writes, the manifest.

A run may be killed at any point, so every file is written beside its place and renamed. What is measured belongs to one
run: the file names the run of the manifest above it, and is refused in the folder of another one.
"""

import contextlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.results.locks import hold
from lit_depth.results.reading import read_object

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MANIFEST = "manifest.json"
VERSIONED_PACKAGES = (
    *("lit_depth", "torch", "transformers", "lightning", "tokenizers", "numpy", "pillow", "datasets"),
    # torchvision resizes images for fast image processors, jinja2 renders prompts
    *("torchvision", "safetensors", "jinja2", "torchmetrics"),
)
_MAX_NAME = 100


def check_name(name: str) -> str:
    """Return the name of a run if it can be that of one folder.

    >>> check_name("qwen 2, 8 bit")
    'qwen 2, 8 bit'

    Raises:
        ValueError: If it is empty, too long, starts with a dash, or holds a separator or what cannot be printed.
    """
    wrong = (
        not isinstance(name, str)
        or not name.isprintable()
        or name != name.strip()
        or name in ("", ".", "..")
        or name.startswith("-")
        or any(separator in name for separator in "/\\")
        or len(name) > _MAX_NAME
        or len(name.encode()) > 255  # what file systems take
    )
    if wrong:
        raise ValueError(
            f"--name: expected the name of one folder, at most {_MAX_NAME} printable characters without / and \\ and "
            f"without a dash in front, got {ascii(name)[:120]}"
        )
    return name


def prepare_folder(path: str | Path) -> Path:
    """Create a folder and prove that it can be written to, before hours of work depend on it.

    Raises:
        ValueError: If the folder cannot be created or written to.
    """
    folder = Path(path)
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process: two runs appending to the same records would mix them.

    Raises:
        ValueError: If another process holds it.
    """
    refuse_links(folder / ".lock")
    with readable_errors(folder):
        lock = hold(folder / ".lock", folder)
    try:
        yield
    finally:
        lock.release()


def refuse_links(path: Path) -> None:
    """Raise ValueError if a file, or a folder between it and its run's folder, is a symbolic link.

    The run's folder itself may lie behind one: that is where the user wants it.
    """
    folder, _ = _find_run(path)
    between = [path] if folder is None else [path, *list(path.parents)[: list(path.parents).index(folder)]]
    for each in between:
        if each.is_symlink():
            raise ValueError(f"{each} is a symbolic link, which is not written through: delete it")


def run_of(path: Path) -> str | None:
    """Id of the run in whose folder a file lies; None where no folder above it is that of a run."""
    return _find_run(path)[1]


def _find_run(path: Path) -> tuple[Path, str] | tuple[None, None]:
    for parent in path.parents:
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):  # no manifest, or none of ours
            run = json.loads((parent / MANIFEST).read_text(encoding="utf-8")).get("run")
            if isinstance(run, str):
                return parent, run
    return None, None


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the body ends without an exception.

    The folder is created. On an exception the old file, if there was one, stays as it was.

    Raises:
        ValueError: If the file cannot be written, or lies behind a symbolic link in a run's folder.
    """
    path = Path(path)
    refuse_links(path)
    # Same folder, so that the rename stays within one file system; same suffix, for writers that go by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with readable_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # whatever it is: it is not written through
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {folder}: expected a writable folder ({reason})") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; what UTF-8 cannot hold (half a surrogate pair) becomes a question mark."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | Path, obj: Any) -> None:
    """Write an object as indented JSON, atomically; numpy values and paths are converted, key order is kept.

    Raises:
        ValueError: If a number is NaN or infinite (not JSON, and a wrong result), naming where; if the file cannot be
            written.
    """
    plain = to_plain(obj)
    write_text(path, json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def to_plain(obj: Any, where: str = "$") -> Any:
    """The object in JSON's own types; ``where`` is the place named in an error."""
    if hasattr(obj, "tolist"):  # numpy scalars and arrays, torch tensors
        obj = obj.tolist()
    if isinstance(obj, Mapping):
        return {str(key): to_plain(value, f"{where}.{key}") for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [to_plain(value, f"{where}[{index}]") for index, value in enumerate(obj)]
    if isinstance(obj, float) and not math.isfinite(obj):
        raise ValueError(f"expected finite numbers, got {obj} at {where}")
    return str(obj) if isinstance(obj, os.PathLike) else obj


def save_figure(fig: "Figure", path: str | Path, dpi: int = 150) -> None:
    """Save a matplotlib figure as PNG, and beside it as SVG and PDF, each atomically."""
    import matplotlib

    path = Path(path)
    with atomic_path(path) as temporary:
        fig.savefig(temporary, dpi=dpi, format="png")
    fig.set_layout_engine("none")  # the layout is found, and finding it again takes as long as drawing
    # the same figure gives the same bytes
    for form, nothing in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        with atomic_path(path.with_suffix(f".{form}")) as temporary, matplotlib.rc_context({"svg.hashsalt": "0"}):
            fig.savefig(temporary, format=form, metadata=nothing)


def write_parquet(path: str | Path, frame: "pd.DataFrame") -> None:
    """Write a table, such as the merged records, as parquet, atomically and without its index."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def write_of_run(path: Path, obj: Mapping[str, Any]) -> None:
    """`write_json` of something measured: the file names the run that it belongs to."""
    write_json(path, {"run": run_of(path), **obj})


def read_of_run(path: Path, **kinds: type) -> dict[str, Any]:
    """Read what `write_of_run` wrote, as this run.

    ``kinds`` are entries that must be there, and of which type.

    Raises:
        ValueError: If the file belongs to another run, cannot be read, or lacks an entry.
    """
    # imported here: who only draws a result need not load torch
    from lit_depth.functional.arguments import fits, plain_type, shorten

    try:
        content = read_object(path)
        check_run(path, content.get("run"), run_of(path))
        for key, kind in kinds.items():
            if not fits(content.get(key), kind):
                raise ValueError(f"expected {key!r} as {plain_type(kind)}, got {shorten(content.get(key))}")
    except ForeignRunError:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is measured again") from error
    return content


class ForeignRunError(ValueError):
    """A file belongs to another run."""


def check_run(path: Path, named: Any, expected: str | None) -> None:
    """Raise ValueError if a file names another run than the expected one; None = none is expected."""
    if expected is not None and named != expected:
        raise ForeignRunError(
            f"{path} belongs to another run ({named}, this one is {expected}): delete it, and it is measured again, or "
            "give another --name"
        )


def write_manifest(folder: str | Path, arguments: Mapping[str, Any], **extra: Any) -> None:
    """Write ``manifest.json``: all arguments, the versions they ran with, and whatever else identifies the run.

    Further entries may be fingerprints of checkpoint and data, seeds, or the state of the run.
    """
    versions = current_versions() | {"platform": platform.platform()}
    write_json(Path(folder) / MANIFEST, {"arguments": arguments, "versions": versions, **extra})


def current_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that an answer may depend on."""
    return {name: _version(name) for name in VERSIONED_PACKAGES} | {"python": sys.version.split()[0]}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
