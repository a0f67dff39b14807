"""The table of a token masking study as CSV, JSON and parquet, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_depth.results.store import atomic_path, write_parquet

if TYPE_CHECKING:
    import pandas as pd

NAME = "masking_results"
METRICS = ("l2_distance", "cosine_distance")
COLUMNS = ("generation_step", "layer", "token_masked", "token_position", "variant", *METRICS)
_TEXTS = ("prompt", "token_masked", "variant")


def write_token_masking(folder: str | Path, frame: pd.DataFrame) -> list[Path]:
    """Write ``masking_results.csv``, ``.json`` (a list of records, one a line) and ``.parquet``, each atomically.

    For several prompts ``prompt`` stands in front of :data:`COLUMNS`. NaN is an empty cell in the CSV file and null in
    JSON. Other values are written with as many digits as give back the same float32.

    Raises:
        ValueError: If a distance is infinite, or a file cannot be written.
    """
    paths = [Path(folder) / f"{NAME}{suffix}" for suffix in (".csv", ".json", ".parquet")]
    write_csv(paths[0], frame)
    # not one json.dumps a row, which takes twice as long
    columns = [[f'"{name}": {value}' for value in _json_values(frame[name])] for name in frame.columns]
    with atomic_path(paths[1]) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        before = "[\n"
        for row in zip(*columns):
            file.write(f"{before}{{{', '.join(row)}}}")
            before = ",\n"
        file.write("\n]\n")
    write_parquet(paths[2], frame)
    return paths


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table of texts, whole numbers and float32 as UTF-8 CSV, atomically and without its index.

    By hand, because Python's writer leaves a lone carriage return without quotes, where every reader ends the line.
    """
    columns = [_cells(frame[name]) for name in frame.columns]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
        file.writelines(",".join(row) + "\n" for row in [frame.columns, *zip(*columns)])


def _cells(column: pd.Series) -> list[str]:
    if column.dtype.kind == "f":
        return ["" if text == "nan" else text for text in column.to_numpy(np.float32).astype(str).tolist()]
    texts = {value: _quoted(str(value)) for value in column.unique()}
    return [texts[value] for value in column.tolist()]


def _json_values(column: pd.Series) -> list[str]:
    """Values of a column as they stand in a JSON file."""
    if column.dtype.kind == "f":
        # through text: the shortest one that gives back the float32
        numbers = column.to_numpy(np.float32).astype(str).astype(np.float64)
        if np.isinf(numbers).any():
            raise ValueError(f"expected finite distances, got infinity in {column.name}")
        return ["null" if text == "nan" else text for text in map(repr, numbers.tolist())]
    texts = {value: json.dumps(value, ensure_ascii=False) for value in column.unique().tolist()}
    return [texts[value] for value in column.tolist()]


def _quoted(text: str) -> str:
    """A cell as it stands in the file.

    >>> _quoted("a b"), _quoted("a,b"), _quoted('a"b')
    ('a b', '"a,b"', '"a""b"')
    """
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\r\n') else text


def read_token_masking(path: str | Path) -> pd.DataFrame:
    """Read a table of a token masking study: what pandas' own readers do not get right is that tokens are texts.

    A token may read ``NA``, ``null``, ``1`` or nothing at all, and is none of these values.

    The table is the same whichever of the three files is read: texts as str, distances as float32.

    Raises:
        ValueError: If the file cannot be read, or has other columns.
    """
    import pandas as pd

    path = Path(path)
    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(
                path,
                keep_default_na=False,
                na_values={metric: [""] for metric in METRICS},
                dtype=dict.fromkeys(_TEXTS, str),
                float_precision="round_trip",
                encoding="utf-8",
            )
        elif path.suffix == ".json":
            frame = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            raise ValueError("expected a .csv, .json or .parquet file")
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}, got none called {', '.join(missing)}")
        for name in _TEXTS:
            if name in frame.columns:
                frame[name] = frame[name].astype(object)
        return frame.astype(dict.fromkeys(METRICS, np.float32))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no table of token masking: {error}") from error
