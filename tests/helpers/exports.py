"""Exports of many families at once: each under random masks, all held by one fresh process."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional.masks import MaskSet
from lit_depth.models.export import new_folder, prune_checkpoint
from lit_depth.studies.export.certificate import Evidence, watch
from tests.helpers.families import FAMILIES, NUM_BLOCKS
from tests.helpers.family_commands import asked

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


def exported(name: str, masks: Iterable[str], folder: Path) -> tuple[PreTrainedModel, list[Evidence]]:
    """A family's model, and its export under each mask, with what it is held to."""
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
        with new_folder(folder / mask) as out:
            prune_checkpoint(source, bits, out)
        found.append(watch(model, bits, given, generation, folder / mask))
    return model, found


def cuttable_masks(name: str, number: int, seed: int = 0) -> list[str]:
    """Random masks of a family that its blocks can be removed by: features that are added by place need theirs."""
    keep = 2 if name == "Qwen3-VL" else 0
    every = random_masks(NUM_BLOCKS, 2**NUM_BLOCKS, seed)
    return [mask for mask in every if mask.startswith("1" * keep)][:number]
