"""What holds of a model that two processes share, measured by both of them against the same model in one process.

Run by `shared_by_two` in two processes, each with the environment that torchrun would give it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# sums over shares are rounded in another order; measured are up to 1e-6
TOLERANCE = 1e-5


def shared_by_two(work: str, *arguments: str, seconds: float = 600) -> list[dict[str, Any]]:
    """What each of two processes says of ``work`` (a function of this module)."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    # by this Lightning knows torchrun
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, work, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors for _, errors in said)
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in said]


def families(root: str, *names: str) -> dict[str, Any]:
    """`compare` of checkpoints in ``root``, each in a folder of its family's name."""
    return {name: compare(Path(root) / name) for name in names}


def compare(folder: Path) -> dict[str, Any]:
    """How far a shared model is from the whole one: weights, logits, and answers under masks of all kinds."""
    from lit_depth.functional import find_blocks, generate, leave_one_out, sweep_forward
    from lit_depth.functional.engine.api import answer_masks
    from lit_depth.functional.fingerprints import weights_digest
    from lit_depth.functional.shards import own_part
    from lit_depth.models.loading import load_checkpoint

    whole, _ = load_checkpoint(str(folder))
    shared, _ = load_checkpoint(str(folder), tp_plan="auto")
    blocks, num_blocks = find_blocks(shared), len(find_blocks(whole))
    matrices = [weight for weight in blocks.parameters() if weight.ndim > 1]
    held = sum(own_part(weight).numel() for weight in matrices) / sum(weight.numel() for weight in matrices)
    ids = torch.arange(8, 20).view(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, :2] = 0  # a shorter prompt, padded on the left
    masks = torch.cat([torch.ones(1, num_blocks, dtype=torch.bool), leave_one_out(num_blocks)])
    halves = torch.ones(3, 2 * num_blocks, dtype=torch.bool)
    halves[1, 2], halves[2, 5] = False, False
    asked: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    asked["answer_ids"] = torch.tensor([[5, 6], [7, 8]])
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "blocks": (masks, {}),
        "halves": (halves, {"granularity": "sublayer"}),
        "decode": (masks[:3], {"phase": "decode"}),
    }
    found: dict[str, Any] = {"same_weights": weights_digest(shared) == weights_digest(whole), "held": held}
    with torch.inference_mode(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        one, other = (sweep_forward(model, inputs, masks, logits_to_keep=1).logits for model in (whole, shared))
        found["logits"] = float((one - other).abs().max() / one.abs().max())
        for kind, (some, options) in kinds.items():
            try:
                tokens, logprobs = answer_masks(whole, inputs, some, **asked, **options)
            except ValueError as refused:  # halves of some families
                found[kind] = {"refused": str(refused)}
                continue
            theirs, values = answer_masks(shared, inputs, some, **asked, **options)
            found[kind] = {"tokens": int((tokens != theirs).sum()), "logprobs": float((logprobs - values).abs().max())}
        rows = [generate(model, inputs, masks[1:3], 5) for model in (whole, shared)]
        found["rows"] = int((rows[0] != rows[1]).sum())
    found["warned"] = sorted({str(each.message) for each in warned if "is answered" in str(each.message)})
    return found


def commands(root: str, checkpoint: str) -> dict[str, Any]:
    """Exit codes of commands that both processes run, one after another."""
    from tests.helpers.commands import run

    shared = ["--model.checkpoint", checkpoint, "--model.tp_plan", "auto", "--trainer.devices", "2"]
    shared += ["--trainer.accelerator", "cpu", "--data.batch_size", "4"]
    importance = ["importance", *shared, "--num_samples", "10", "--output_dir", root]
    records = Path(root) / "importance/default/records/shapes_vqa/calibration/rank0.jsonl"
    codes = {"importance": run(importance)}
    torch.distributed.barrier()
    before = records.read_text()
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":  # as if it had been killed in the last batch
        records.write_text("".join(before.splitlines(keepends=True)[:-7]))
    torch.distributed.barrier()
    codes["resumed"] = run(importance)
    torch.distributed.barrier()
    codes["predict"] = run(["predict", *shared, "--data.num_samples", "10", "--output_dir", root])
    codes["compare"] = run(["compare", *shared, "--output_dir", root])  # which would time requests
    return {"codes": codes, "same_records": records.read_text() == before}


def main(arguments: Sequence[str]) -> None:
    work, *rest = arguments
    print(json.dumps({"families": families, "commands": commands}[work](*rest)))


if __name__ == "__main__":
    main(sys.argv[1:])
