"""Masks that apply to prefill or decode alone: which blocks read a prompt, and which go on from it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lit_depth.functional.masking.skip import Phase
from lit_depth.functional.masks import MaskSet


class Phases(NamedTuple):
    """Forwards that masks apply to, see `masked`.

    >>> masks = MaskSet.of(["10", "01"])
    >>> Phases("decode").of_prompt(masks).ids, Phases("decode").of_decoding(masks).ids
    (('11', '11'), ('10', '01'))
    >>> Phases("prefill", True).of_prompt(masks).ids, Phases("prefill", True).of_decoding(masks).ids
    (('10', '01'), ('11', '11'))
    """

    phase: Phase = "both"
    decode_without_prompt: bool = False

    @property
    def differ(self) -> bool:
        """Whether prefill and decode run other blocks; a block without a prompt's keys and values skips both."""
        return self.phase == "decode" or self.decode_without_prompt

    def of_prompt(self, masks: MaskSet) -> MaskSet:
        """For each mask the one under which prompts are read."""
        return _full(masks) if self.phase == "decode" else masks

    def of_decoding(self, masks: MaskSet) -> MaskSet:
        """For each mask the one under which decoded tokens are read."""
        return _full(masks) if self.decode_without_prompt else masks


BOTH = Phases()


def _full(masks: MaskSet) -> MaskSet:
    return MaskSet(torch.ones_like(masks.bits), masks.granularity)
