"""What a mask switches in a block, as the drivers run it: the block itself, or its attention and then its MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from lit_depth.functional.engine.decoding_configuration import CannotDriveError
from lit_depth.functional.masking.sublayers import HalfForward, find_halves

Forward = Callable[..., Tensor]


class Unit(NamedTuple):
    """A unit of a mask.

    Attributes:
        place: Its place in a mask.
        forward: Takes hidden states ``[rows, seq, hidden]``, and the other arguments of the block where it `attends`.
        attends: Whether it reads other tokens; the MLP of a block does not, and takes hidden states alone.
        attend: Its part that reads other tokens; None = it has none, or cannot be halved.
        apply_mlp: Its part that does not; None likewise.
    """

    place: int
    forward: Forward
    attends: bool = True
    attend: Forward | None = None
    apply_mlp: Forward | None = None

    def cut(self, keep: int) -> Forward:
        """The forward for the last ``keep`` positions alone, as far as the others need not be computed."""
        attend, apply_mlp = self.attend, self.apply_mlp
        if attend is None and apply_mlp is None:
            return self.forward

        def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
            states = hidden_states if attend is None else attend(hidden_states, *args, **kwargs)
            # some MLPs take views of what they are given
            states = states[:, -keep:].contiguous()
            return states if apply_mlp is None else apply_mlp(states)

        return forward


def units_in(block_idx: int, real: Forward, per_block: int) -> list[Unit]:
    """The units of a block, in the order in which they run.

    Args:
        real: The block's own forward.
        per_block: Units of a block: 1, or 2 for its attention and its MLP.

    Raises:
        CannotDriveError: The block cannot be halved, and masks switch its halves.
    """
    halves = _halves(real)
    if per_block == 1:
        return [Unit(block_idx, real, True, *(halves or ()))]
    if halves is None:
        raise CannotDriveError(f"block {block_idx} cannot be halved, or has a forward of its own on the instance")
    attend, apply_mlp = halves
    return [
        Unit(2 * block_idx, attend, attend=attend),
        Unit(2 * block_idx + 1, apply_mlp, attends=False, apply_mlp=apply_mlp),
    ]


def _halves(real: Forward) -> tuple[Forward, Forward] | None:
    block = getattr(real, "__self__", None)
    # a forward on the instance is somebody else's; checkpointing wraps the whole block
    if not isinstance(block, nn.Module) or "forward" in block.__dict__ or block.training:
        return None
    if find_halves(type(block).forward)[0] is None:
        return None
    return HalfForward(None, block, keep_attention=True), HalfForward(None, block, keep_attention=False)
