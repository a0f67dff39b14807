"""Twenty random masks on every family of docs/families.md: what a fresh process says of each exported folder.

A family is a tiny random checkpoint of six blocks. Each mask is exported, and one fresh process for each family holds
all of its folders to the masked model: weights, logits and greedy answers, in a left-padded batch and alone.

    python benchmarks/export_certificates.py [--families Llama Mistral]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from environment import RESULTS, environment
from transformers import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.helpers.exports import certificates  # noqa: E402
from tests.helpers.families import FAMILIES  # noqa: E402
from tests.helpers.family_commands import with_packages  # noqa: E402

OUTPUT = RESULTS / "export_certificates.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    names = parser.parse_args().families
    logging.disable_progress_bar()
    about = environment(torch.get_num_threads())
    found = json.loads(OUTPUT.read_text(encoding="utf-8"))["families"] if OUTPUT.is_file() else {}
    needing = [name for name in names if FAMILIES[name].needs]
    found |= with_packages(certificates, needing) if needing else {}
    for name in names:
        if name not in needing:
            found[name] = certificates(name)
        print(f"{name}: {len(found[name]['masks'])} masks, {len(found[name]['failed'])} differ", flush=True)
    result = {"environment": about, "families": {name: found[name] for name in FAMILIES if name in found}}
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
