"""What ``lit-depth export`` tells of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_depth.results.report import Report, Section, Table
from lit_depth.results.table import Cell

HEADERS = ("batch", "questions", "padding", "logits differ by", "tokens", "tokens differ")


def report(result: Mapping[str, Any]) -> Report:
    """The report of the content of ``export.json``."""
    proof = result["certificate"]
    rows: list[list[Cell]] = [
        [
            case["name"],
            case["rows"],
            case["padded_positions"],
            f"{case['ratio']:.1e}",
            case["num_tokens"],
            case["tokens_differ"],
        ]
        for case in (proof or {"cases": ()})["cases"]
    ]
    table = Table(HEADERS, rows)
    said = (
        "A fresh process loaded it and found the masked model's weights, logits (differences are shares of the "
        f"largest, at most {proof['tolerance']:.1e} allowed) and greedy answers."
        if proof
        else "Nothing is certified: these are files for other tools."
    )
    files = "\n".join(f"- {file}" for file in result["files"])
    return Report(
        title=f"Export of {result['checkpoint']}",
        headline=_headline(result),
        sections=[
            Section("Certificate", said, table if proof else None),
            Section("Files", f"{result['out']}:\n\n{files}", printed=False),
        ],
        kind="export",
        tables={"export/certificate": table} if proof else {},
        scalars={
            "export/num_parameters": result["num_parameters"]["export"],
            "export/weight_bytes": result["weight_bytes"],
        },
        metadata={"mask_id": result["mask_id"], "skipped": list(map(str, result["skipped"]))},
    )


def _headline(result: Mapping[str, Any]) -> str:
    parameters, skipped = result["num_parameters"], " ".join(map(str, result["skipped"])) or "none"
    unit = "blocks" if result["granularity"] == "block" else "halves of blocks"
    size = (
        f"{parameters['export']:,} of {parameters['source']:,} parameters, {result['weight_bytes'] / 1e6:.1f} MB. "
        if result["certificate"]
        else ""
    )
    pushed = f" Uploaded to {result['pushed']}." if result["pushed"] else ""
    return (
        f"{result['out']} is {result['checkpoint']} without {unit} {skipped} of {len(result['mask_id'])}: {size}"
        f"Chosen by {result['origin']}.{pushed}"
    )
