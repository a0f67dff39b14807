"""From what was written to the content of ``export.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.studies.shared.run_folder import Run

if TYPE_CHECKING:
    from lit_depth.studies.export.arguments import Choice
    from lit_depth.studies.export.healing import Healing
    from lit_depth.studies.export.writing import Written


def describe(
    run: Run, choice: Choice, out: Path, written: Written, pushed: str | None, healing: Healing | None = None
) -> dict[str, Any]:
    """The result: the mask and where it is from, what was written, and the numbers of the proof."""
    certificate = written.certificate
    sizes = {path: (out / path).stat().st_size for path in written.files}
    return {
        "command": "export",
        "checkpoint": run.model.hparams["checkpoint"],
        "task": run.datamodule.task.name,
        "out": str(out),
        "num_blocks": run.model.num_blocks,
        "granularity": choice.masks.granularity,
        "mask_id": choice.masks.ids[0],
        "skipped": [unit for unit, runs in enumerate(choice.masks[0].tolist()) if not runs],
        "origin": choice.origin,
        "healing": None if healing is None else healing.entry(),
        "expected": choice.expected,
        "latency": choice.latency,
        "num_parameters": {"source": written.num_parameters[0], "export": written.num_parameters[1]},
        "weight_bytes": sum(size for path, size in sizes.items() if path.endswith(".safetensors")),
        "certificate": None
        if certificate is None
        else {key: certificate[key] for key in ("passed", "tolerance", "cases", "needs")},
        "files": list(written.files),
        "pushed": pushed,
    }
