"""Exports of many families at once: each under random masks, all held by one fresh process."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import patch
from lit_depth.functional.masks import MaskSet
from lit_depth.models.export import new_folder, prune_checkpoint
from lit_depth.models.weight_files import HeldWeights
from lit_depth.studies.export.certificate import Evidence, failure, hold, watch
from tests.helpers import families
from tests.helpers.families import FAMILIES, NUM_BLOCKS
from tests.helpers.family_commands import PACKAGES, asked

NEW_TOKENS = 4


def random_masks(num_blocks: int, number: int, seed: int = 0) -> list[str]:
    """Ids of different masks that skip something, in a random order; fewer where there are fewer."""
    every = [f"{bits:0{num_blocks}b}" for bits in range(1, 2**num_blocks - 1)]
    return random.Random(seed).sample(every, min(number, len(every)))


def batches(inputs_of: Any, samples: Sequence[Any]) -> list[tuple[str, Mapping[str, Tensor]]]:
    """A left-padded batch, and its shortest question alone."""
    batch = inputs_of(samples)
    alone = [inputs_of([sample]) for sample in samples]
    return [("left-padded batch", batch), ("batch 1", min(alone, key=lambda inputs: inputs["input_ids"].shape[1]))]


def exported(
    name: str, masks: Iterable[str], folder: Path, heal: bool = False
) -> tuple[PreTrainedModel, list[Evidence]]:
    """A family's model, and its export under each mask, patched before or not, with what it is held to."""
    source = folder / "source"
    source.mkdir()
    FAMILIES[name].write(source)
    model, prompter, samples = asked(FAMILIES[name], source)
    questions = sorted(samples.values(), key=lambda sample: len(sample.question))
    given = batches(prompter.encode, [questions[0], questions[-1], questions[1]])
    generation = {
        "max_new_tokens": NEW_TOKENS,
        "pad_token_id": 0,
        "eos_token_id": model.config.get_text_config().vocab_size - 1,
    }
    found = []
    for mask in masks:
        bits = MaskSet.of(mask)[0]
        healed = patch(model, bits, [inputs for _, inputs in given] * 2).applied() if heal else nullcontext()
        with healed:
            with new_folder(folder / mask) as out:
                prune_checkpoint(source, bits, out, HeldWeights(model) if heal else None)
            found.append(watch(model, bits, given, generation, folder / mask, source=source))
    return model, found


def cuttable_masks(name: str, number: int, num_blocks: int = NUM_BLOCKS) -> list[str]:
    """Random masks of a family that its blocks can be removed by: features that are added by place need theirs."""
    keep = 2 if name == "Qwen3-VL" else 0
    every = random_masks(num_blocks, 2**num_blocks)
    return [mask for mask in every if mask.startswith("1" * keep)][:number]


@contextmanager
def deeper(num_blocks: int) -> Iterator[None]:
    """Families have so many blocks, an even number: of four there are fewer than twenty masks."""
    before, kinds = families.NUM_BLOCKS, families.MIXED["layer_types"]
    own = list(kinds)
    families.NUM_BLOCKS = num_blocks
    kinds[:] = own[:2] * (num_blocks // 2)
    try:
        yield
    finally:
        families.NUM_BLOCKS = before
        kinds[:] = own


@contextmanager
def without_packages() -> Iterator[None]:
    """Processes find none of the packages of the extra ``vision``: no model needs them, and their import may fail."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in before.split(os.pathsep) if path != str(PACKAGES))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


def certificates(name: str, number: int = 20, num_blocks: int = 6) -> dict[str, Any]:
    """What one fresh process says of a family's exports under random masks."""
    with tempfile.TemporaryDirectory() as folder, deeper(num_blocks):
        evidence = exported(name, cuttable_masks(name, number, num_blocks), Path(folder))[1]
        with without_packages():
            verdicts = hold(evidence)
    cases = [case for verdict in verdicts for case in verdict.get("cases", ())]
    return {
        "masks": [each.folder.name for each in evidence],
        "failed": {each.folder.name: said for each, verdict in zip(evidence, verdicts) if (said := failure(verdict))},
        "num_cases": len(cases),
        "largest_ratio": max((case["ratio"] for case in cases), default=None),
        "num_tokens": sum(case["num_tokens"] for case in cases),
        "tokens_differ": sum(case["tokens_differ"] for case in cases),
        "padded_positions": sum(case["padded_positions"] for case in cases),
        "needs": verdicts[0].get("needs"),
    }


def three_certificates(name: str) -> dict[str, Any]:
    """`certificates` of three masks, as many as every other family has in the tests."""
    return certificates(name, 3)
