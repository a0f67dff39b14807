"""What ``lit-depth export`` tells of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_depth.models.handoff import NONE_WHEN_HEALED
from lit_depth.results.report import Report, Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value

HEADERS = ("batch", "questions", "padding", "logits differ by", "tokens", "tokens differ")
HEALING_HEADERS = ("model", "quality", "interval", "lost", "interval")


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
            *_healing(result),
            Section("Certificate", said, table if proof else None),
            Section("Files", f"{result['out']}:\n\n{files}", printed=False),
        ],
        kind="export",
        tables={"export/certificate": table} if proof else {},
        scalars={
            "export/num_parameters": result["num_parameters"]["export"],
            "export/weight_bytes": result["weight_bytes"],
            **_healing_scalars(result),
        },
        metadata={"mask_id": result["mask_id"], "skipped": list(map(str, result["skipped"]))},
    )


def _healing(result: Mapping[str, Any]) -> list[Section]:
    """What healing gave back, where there was any."""
    healing = result["healing"]
    if healing is None:
        return []
    found = healing["quality"]
    rows: list[list[Cell]] = []
    for name in ("whole", "masked", "healed"):
        entry = found[name]
        quality = f"{entry['quality']:.3f}", format_interval(entry["quality_ci"], sign="")
        drop: list[Cell] = [None, None]
        if "drop" in entry:
            drop = [f"{entry['drop']:+.3f}", format_interval(entry["drop_simultaneous_ci"])]
        rows.append([name, *quality, *drop])
    text = (
        f"{how_healed(healing)}, measured on {found['num_samples']} of the {found['split']} split "
        f"({found['metric']}). Healing gave back "
        f"{found['regained']:+.3f} {format_interval(found['regained_simultaneous_ci'])}, p = "
        f"{format_p_value(found['regained_p_holm'])} (Holm). Intervals of differences are paired and hold together "
        f"with {found['confidence']:.0%} confidence. {NONE_WHEN_HEALED}"
    )
    return [Section("Healing", text, Table(HEALING_HEADERS, rows))]


def how_healed(healing: Mapping[str, Any]) -> str:
    """By which method and which questions, from what ``export.json`` says of it; the subject is the healed model."""
    about = healing if healing["method"] == "patch" else healing["patch"]
    patched = about and f"Patched on {about['num_questions']} questions of the {about['split']} split"
    if healing["method"] == "patch":
        return f"{patched} of {healing['task']}"
    what = {"full": "all weights", "lora": f"low-rank adapters of rank {healing.get('lora_rank')}, merged"}
    method = healing["method"]
    trained = (
        f"trained ({what[method]}) for {healing['num_steps']:,} steps on {healing['num_images']:,} images of "
        f"the {healing['split']} split of {healing['task']} with all their questions (learning rate "
        f"{healing['learning_rate']:g}, seed {healing['seed']})"
    )
    return f"{patched}, then {trained}" if patched else f"T{trained[1:]}"


def _healing_scalars(result: Mapping[str, Any]) -> dict[str, float]:
    if result["healing"] is None:
        return {}
    found = result["healing"]["quality"]
    return {f"export/quality_{name}": found[name]["quality"] for name in ("whole", "masked", "healed")}


def _headline(result: Mapping[str, Any]) -> str:
    parameters, skipped = result["num_parameters"], " ".join(map(str, result["skipped"])) or "none"
    unit = "blocks" if result["granularity"] == "block" else "halves of blocks"
    size = (
        f"{parameters['export']:,} of {parameters['source']:,} parameters, {result['weight_bytes'] / 1e6:.1f} MB. "
        if result["certificate"]
        else ""
    )
    pushed = f" Uploaded to {result['pushed']}." if result["pushed"] else ""
    how = {"patch": "a patch", "lora": "low-rank adapters", "full": "training"}
    mended = f", healed by {how[result['healing']['method']]}" if result["healing"] else ""
    removed = f"{unit} {skipped} of {len(result['mask_id'])}{mended}"
    return f"{result['out']} is {result['checkpoint']} without {removed}: {size}Chosen by {result['origin']}.{pushed}"
