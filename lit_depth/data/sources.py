"""Where tables come from: repositories on the hub, or local folders of parquet files."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_depth.data.images import ImageFolder

# These image sets moved from one owner to the other; copies in a cache may have either name.
_OWNERS = ("lmms-lab-encoder", "lmms-lab")
_SAME_SPLIT = {"val": "validation", "val2014": "validation", "valid": "validation"}
_SPLIT_NAMES = {"train", "calibration", "validation", "dev", "test", "testdev"}
_UNNAMED = "unnamed"
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "avif")


@dataclass(frozen=True)
class Source:
    """One split of a dataset on the hub.

    Args:
        repository: ``owner/name``.
        split: The dataset's own name of the split.
        config: Its configuration; of several, all rows one after another.
        revision: Branch, tag or commit.
    """

    repository: str
    split: str
    config: str | tuple[str, ...] | None = None
    revision: str = "main"


@dataclass(frozen=True)
class LocalSource:
    """Files that together are one split, found in ``folder`` below the ``top`` that was given.

    ``rows`` names a column and the values of the rows that are meant; None = all rows.
    """

    folder: str
    split: str
    files: tuple[str, ...]
    top: str = ""
    rows: tuple[str, tuple[Any, ...]] | None = None


def load_table(source: Source | LocalSource, task: str, streaming: bool) -> Any:
    """Load the rows of a source, from the hub through `datasets.load_dataset` and its cache.

    Streaming reads rows when they are asked for instead of downloading and converting all of them.

    Raises:
        ValueError: If the hub cannot be reached and nothing is cached, or the repository, configuration, revision or
            split does not exist, or a file cannot be read.
    """
    import datasets

    if isinstance(source, LocalSource):
        files = {source.split: list(source.files)}
        try:
            return datasets.load_dataset("parquet", data_files=files, split=source.split, streaming=streaming)
        # whatever a damaged file raises in one of the libraries below
        except Exception as error:
            raise ValueError(
                f"{task}: cannot read {source.split}*.parquet in {source.folder}: {_brief(error)}"
            ) from error
    configs = source.config if isinstance(source.config, tuple) else (source.config,)
    parts = [_load_config(source, config, task, streaming) for config in configs]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def image_folder(source: Source | LocalSource) -> ImageFolder:
    """Where the rows of a source may name images by path: in the folder given; of a hub's source in the hub's cache."""
    if isinstance(source, LocalSource):
        places = [Path(place).expanduser() for place in (source.folder, source.top)]
        start, top = (str(place.parent if place.is_file() else place) for place in places)
        return ImageFolder(start, (top,))
    import datasets
    from huggingface_hub import constants

    caches = tuple(str(Path(cache).expanduser()) for cache in (datasets.config.HF_CACHE_HOME, constants.HF_HUB_CACHE))
    return ImageFolder(caches[0], caches)


def _load_config(source: Source, config: str | None, task: str, streaming: bool) -> Any:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    absent: Exception | None = None
    repositories = repository_names(source.repository)
    for repository in repositories:
        try:
            return datasets.load_dataset(
                repository, config, split=source.split, revision=source.revision, streaming=streaming
            )
        except (DatasetNotFoundError, ConnectionError) as error:
            absent = absent or error
        # three libraries raise here; the message is theirs, and lists the splits or configurations that exist
        except Exception as error:
            what = repository if config is None else f"{repository}, config {config}"
            raise ValueError(f"{task}: cannot read split {source.split!r} of {what}: {_brief(error)}") from error
    raise ValueError(
        f"{task}: {' or '.join(repositories)} cannot be reached and is not in the cache ({_brief(absent)}). Connect to "
        f"the hub, or read local files: --data.path FOLDER with {source.split}*.parquet of the same columns"
    ) from absent


def _brief(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    cause = getattr(error, "__cause__", None)
    # datasets wraps what went wrong with a file in an error that only says that something did
    return _brief(cause) if type(error).__name__.startswith("DatasetGeneration") and cause is not None else lines[0]


def repository_names(repository: str) -> list[str]:
    """Names under which a repository may be found, the given one first.

    >>> repository_names("lmms-lab/VQAv2"), repository_names("vikhyatk/dvqa")
    (['lmms-lab/VQAv2', 'lmms-lab-encoder/VQAv2'], ['vikhyatk/dvqa'])
    """
    owner, _, name = repository.partition("/")
    others = [other for other in _OWNERS if other != owner] if owner in _OWNERS else []
    return [repository, *(f"{other}/{name}" for other in others)]


def find_splits(
    folder: str,
    task: str,
    others: Collection[str] = (),
    config: Any = None,
    names: Collection[str] = (),
    suffixes: Sequence[str] = (".parquet",),
    above: bool = False,
) -> dict[str, LocalSource]:
    """Find the parquet files below a folder, or those of other kinds, by split.

    ``FOLDER/<task>`` and ``FOLDER/<config>`` are used instead where they exist, so that one folder can hold many
    tasks or a copy of a repository.

    The folder may be a single file. What lies in folders of ``others`` (tasks) is not read; ``names`` are splits
    besides the usual, ``suffixes`` the endings of the files that are read. With ``above``, what lies in the folder
    itself comes before what lies below it, where results of a run may be, and ``metadata.*`` before other tables.

    Raises:
        ValueError: If the folder does not exist or holds no such file.
    """
    root = Path(folder).expanduser()
    kinds = ", ".join(suffix.removeprefix(".") for suffix in suffixes)
    if not root.exists():
        raise ValueError(f"--data.path: {folder} does not exist; expected a folder with {kinds} files for {task}")
    for inner in (task, config):
        if isinstance(inner, str) and (root / inner).is_dir():
            root = root / inner
    found: dict[str, list[str]] = {}
    below = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if above:
        below = [path for path in below if path.parent == root] or below
        below = [path for path in below if path.stem == "metadata"] or below
    for path in [root] if root.is_file() else below:
        places = path.relative_to(root).parts[:-1]
        if not any(place in others or place.startswith(".") for place in places):
            found.setdefault(split_name((path.name, *reversed(places)), names), []).append(str(path))
    if not found and above:
        raise ValueError(
            f"--data.path: expected a table of questions ({kinds}) in {root}, got none{_pictures_in(root)}"
        )
    if not found:
        raise ValueError(f"--data.path: there is no *.{kinds} for {task} in {root}")
    return {split: LocalSource(str(root), split, tuple(files), folder) for split, files in found.items()}


def _pictures_in(root: Path) -> str:
    count = sum(path.suffix.lower().removeprefix(".") in _PICTURES for path in root.rglob("*"))
    if not count:
        return ""
    return f" beside {count:,} pictures; name them in a metadata.csv with the columns file_name, question, answer"


def split_name(parts: Sequence[str], names: Collection[str] = ()) -> str:
    """Read off the split of a file from its name, or else from the folders that it is in, from the inside out.

    >>> split_name(["val-00000-of-00002.parquet"]), split_name(["0000.parquet", "test"]), split_name(["a.parquet"])
    ('validation', 'test', 'unnamed')
    """
    known = _SPLIT_NAMES | {canonical_split(name) for name in names}
    for part in parts:
        for word in re.findall(r"[a-zA-Z][a-zA-Z0-9]*", part):
            if canonical_split(word) in known:
                return canonical_split(word)
    return _UNNAMED


def canonical_split(name: str) -> str:
    """One name for splits that are called differently in different repositories.

    >>> canonical_split("val2014"), canonical_split(" Test")
    ('validation', 'test')
    """
    plain = name.strip().casefold()
    return _SAME_SPLIT.get(plain, plain)
