"""A true log of Inspect, its parts, and logs made of such parts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow

INSPECT_LOG = Path(__file__).resolve().parents[1] / "integrations" / "inspect_sums.eval"


def parts_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and samples of a log that is packed by Zstandard, read another way than the package does."""
    parts = {}
    content = path.read_bytes()
    for info in zipfile.ZipFile(path).infolist():
        start = info.header_offset + 30 + len(info.filename.encode()) + len(_extra(content, info))
        packed = content[start : start + info.compress_size]
        parts[info.filename] = json.loads(pyarrow.input_stream(pyarrow.py_buffer(packed), compression="zstd").read())
    return parts["header.json"], [part for name, part in parts.items() if name.startswith("samples/")]


def _extra(content: bytes, info: zipfile.ZipInfo) -> bytes:
    number = int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    return bytes(number)


def write_json_log(path: Path, header: dict[str, Any], samples: Sequence[dict[str, Any]]) -> Path:
    """A log of these samples, whose results say that there are so many."""
    results = header.get("results")
    counted = {"results": {**results, "completed_samples": len(samples)}} if isinstance(results, dict) else {}
    path.write_text(json.dumps({**header, **counted, "samples": list(samples)}))
    return path


def write_eval(path: Path, header: dict[str, Any], samples: Sequence[dict[str, Any]]) -> Path:
    """As older versions wrote it, packed by deflate."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header))
        for sample in samples:
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    return path
