"""Block masks as one type, checked once: which blocks run, or which halves of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_depth.functional.arguments import MAX_UNITS, check_range, checked

Granularity = Literal["block", "sublayer"]
# which tokens skip a unit: all, those of images, or those of images so that text does not attend to them there either
Tokens = Literal["all", "visual", "visual_drop"]
# the same, by the names that options give them
SkipTokens = Literal["all", "image", "image_drop"]
TOKENS_OF: dict[str, Tokens] = {"all": "all", "image": "visual", "image_drop": "visual_drop"}


@dataclass(frozen=True, slots=True, eq=False)
class MaskSet:
    """Masks of one model. Make it with `MaskSet.of`, which checks them; whoever holds one need not check again.

    Attributes:
        bits: Bool ``[masks, num_units]`` on the CPU, True = the unit runs; every mask has an active unit.
        granularity: What a unit is: a ``block``, or with ``sublayer`` its attention (unit 2i of block i) or its MLP
            (unit 2i + 1).
        tokens: Which tokens skip, for each mask, see `masked`; empty = all tokens under every mask.

    Example:
        >>> masks = MaskSet.of(["1101", "1111", "1101"])
        >>> len(masks), masks.ids, masks.counts
        (3, ('1101', '1111', '1101'), (3, 4, 3))
        >>> masks.active, masks.unique().labels
        (((0, 1, 3), (0, 1, 2, 3), (0, 1, 3)), ('block 2 skipped', 'no block skipped'))
        >>> masks[0]
        tensor([ True,  True, False,  True])
    """

    bits: Tensor
    granularity: Granularity = "block"
    tokens: tuple[Tokens, ...] = ()

    @classmethod
    @checked
    def of(
        cls,
        masks: Masks | Sequence[bool] | str | Sequence[str],
        num_units: int | None = None,
        granularity: Granularity | None = None,
        tokens: Tokens | Sequence[Tokens] | None = None,
    ) -> MaskSet:
        """Check masks; this is the only place that does.

        Args:
            masks: A `MaskSet`, bool ``[masks, num_units]``, a list of bool ``[num_units]``, of lists of bools or of ids
                (``"1101"``); one mask alone is a set of one.
            num_units: Units of the model; None = as many as the first mask has.
            granularity: What a unit is; None = that of a `MaskSet`, else a block.
            tokens: Which tokens skip, under all masks or under each one; None = as a `MaskSet` says, else all.

        Raises:
            ValueError: No mask, or one of the wrong dtype, shape or length, or without an active unit; a `MaskSet` of
                another granularity;
                ``tokens`` that are not one for each mask.
        """
        if tokens is not None:
            return cls.of(masks, num_units, granularity)._with_tokens(tokens)
        if isinstance(masks, MaskSet):
            if granularity not in (None, masks.granularity):
                raise ValueError(f"expected masks of {granularity}s, got masks of {masks.granularity}s")
            _check_form(masks[0], num_units or masks.num_units, masks.granularity)
            return masks
        rows, granularity = _rows(masks), granularity or "block"
        if not rows:
            raise ValueError("expected at least one mask, got none")
        num_units = rows[0].numel() if num_units is None else num_units
        check_range(1, 2 * MAX_UNITS, num_units=num_units)
        for row in rows:
            _check_form(row, num_units, granularity)
        bits = torch.stack([row.detach().cpu() for row in rows])
        if not bits.any(dim=1).all():
            raise ValueError(f"expected at least one active {granularity}, got a mask that skips all {num_units}")
        return cls(bits, granularity)

    @classmethod
    @checked
    def full(cls, num_units: int, granularity: Granularity = "block") -> MaskSet:
        """The one mask under which all units run."""
        check_range(1, 2 * MAX_UNITS, num_units=num_units)
        return cls(torch.ones(1, num_units, dtype=torch.bool), granularity)

    @staticmethod
    def id_of(mask: Tensor) -> str:
        """Bit string of a mask of a set, unit 0 first."""
        return "".join("1" if bit else "0" for bit in mask.tolist())

    def _with_tokens(self, tokens: Tokens | Sequence[Tokens]) -> MaskSet:
        kinds = (tokens,) * len(self) if isinstance(tokens, str) else tuple(tokens)
        if len(kinds) != len(self):
            raise ValueError(f"expected tokens for each of {len(self)} masks, got {len(kinds)}")
        if self.tokens and self.tokens != kinds:
            raise ValueError(f"expected tokens as of these masks, {self.tokens[0]}, got {kinds[0]}")
        if self.granularity != "block" and set(kinds) - {"all"}:
            raise ValueError("expected masks of blocks for image tokens alone, got masks of sublayers")
        return MaskSet(self.bits, self.granularity, () if set(kinds) <= {"all"} else kinds)

    @property
    def kinds(self) -> tuple[Tokens, ...]:
        """Which tokens skip, for each mask."""
        every: Tokens = "all"
        return self.tokens or (every,) * len(self)

    @property
    def runs(self) -> Tensor:
        """Bool ``[masks, num_units]``: units that run for some tokens at least.

        >>> MaskSet.of(["101", "110"], tokens=["all", "visual"]).runs.int().tolist()
        [[1, 0, 1], [1, 1, 1]]
        """
        return self.bits | torch.tensor([[kind != "all"] for kind in self.kinds])

    @property
    def attends(self) -> Tensor:
        """Bool ``[masks, num_blocks]``: blocks whose attention runs for some tokens at least, and so owns a KV cache.

        >>> MaskSet.of(["1101"], granularity="sublayer").attends.tolist()
        [[True, False]]
        """
        return self.runs[:, :: self.units_per_block]

    @property
    def num_units(self) -> int:
        """Units of the model."""
        return self.bits.shape[1]

    @property
    def units_per_block(self) -> int:
        """Units that make up a block; the first of them holds its attention."""
        return units_of(1, self.granularity)

    @property
    def ids(self) -> tuple[str, ...]:
        """Bit string of each mask, unit 0 first."""
        return tuple(map(self.id_of, self.bits))

    @property
    def active(self) -> tuple[tuple[int, ...], ...]:
        """Indices of each mask's active units."""
        return tuple(tuple(mask.nonzero().flatten().tolist()) for mask in self.bits)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of each mask's active units."""
        return tuple(self.bits.sum(dim=1).tolist())

    @property
    def labels(self) -> tuple[str, ...]:
        """What each mask skips, in words."""
        skipped = [" ".join(map(str, (~mask).nonzero().flatten().tolist())) for mask in self.bits]
        return tuple(
            f"{self.granularity} {units} skipped" if units else f"no {self.granularity} skipped" for units in skipped
        )

    def take(self, indices: Sequence[int]) -> MaskSet:
        """The masks at ``indices``, which may be none."""
        kinds = tuple(self.tokens[index] for index in indices) if self.tokens else ()
        return MaskSet(self.bits[list(indices)], self.granularity, kinds)

    def unique(self) -> MaskSet:
        """Every mask once, where it stands first."""
        first = {each: index for index, each in reversed(list(enumerate(zip(self.ids, self.kinds))))}
        return self.take(sorted(first.values()))

    def union(self, other: MaskSet) -> MaskSet:
        """The masks of both, each once."""
        kinds = (*self.kinds, *other.kinds) if self.tokens or other.tokens else ()
        return MaskSet(torch.cat([self.bits, other.bits]), self.granularity, kinds).unique()

    def __len__(self) -> int:
        return len(self.bits)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.bits)

    def __getitem__(self, index: int) -> Tensor:
        return self.bits[index]


# whatever a `MaskSet` is made of
Masks = MaskSet | Tensor | str | Sequence[Tensor | Sequence[bool] | bool | str]


def _rows(masks: Masks) -> list[Tensor]:
    if isinstance(masks, Tensor):
        if masks.ndim not in (1, 2):
            raise ValueError(f"expected masks of shape [masks, num_blocks], got {list(masks.shape)}")
        return [masks] if masks.ndim == 1 else list(masks)
    rows: Any = [masks] if isinstance(masks, str) else list(masks)
    is_one_mask = bool(rows) and not hasattr(rows[0], "__len__")
    return [_row(row) for row in ([rows] if is_one_mask else rows)]


def _row(mask: Tensor | Sequence[bool] | str) -> Tensor:
    if isinstance(mask, Tensor):
        return mask
    if isinstance(mask, str):
        if not mask or set(mask) - set("01"):
            raise ValueError(f"expected a mask id of the characters 0 and 1, such as '1101', got {mask!r}")
        mask = [bit == "1" for bit in mask]
    return torch.tensor(list(mask), dtype=torch.bool)


def _check_form(mask: Tensor, num_units: int, granularity: Granularity) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"expected a mask of dtype torch.bool, got {mask.dtype}")
    if mask.ndim != 1:
        raise ValueError(f"expected a mask of shape [{num_units}], got {list(mask.shape)}")
    if len(mask) != num_units:
        is_other = granularity == "block" and len(mask) == 2 * num_units
        hint = "; masks of sublayers need granularity='sublayer', where it can be given" if is_other else ""
        raise ValueError(f"expected a mask of {num_units} {granularity}s, got {len(mask)}{hint}")


@checked
def check_mask(mask: Tensor | Sequence[bool], num_blocks: int, granularity: Granularity = "block") -> Tensor:
    """Return ``mask`` as a bool tensor on the CPU: ``[num_blocks]``, for sublayers ``[2 * num_blocks]``.

    Raises:
        ValueError: wrong dtype, shape or length, or no active block.

    >>> check_mask([True, False], num_blocks=2)
    tensor([ True, False])
    """
    check_range(1, MAX_UNITS, num_blocks=num_blocks)
    return MaskSet.of([mask], units_of(num_blocks, granularity), granularity)[0]


def units_of(num_blocks: int, granularity: Granularity) -> int:
    """Units of a model of so many blocks.

    >>> units_of(16, "block"), units_of(16, "sublayer")
    (16, 32)
    """
    return num_blocks if granularity == "block" else 2 * num_blocks


@checked
def mask_id(mask: Tensor | Sequence[bool]) -> str:
    """Return the bit string of a block mask, block 0 first. Raises ValueError as :func:`check_mask`.

    >>> mask_id(torch.tensor([True, True, False, True]))
    '1101'
    """
    return MaskSet.of([mask]).ids[0]


def full_id(num_units: int) -> str:
    """The id of the mask under which all units run.

    >>> full_id(4)
    '1111'
    """
    return "1" * num_units


@checked
def from_mask_id(text: str) -> Tensor:
    """Return the block mask of a bit string: the inverse of :func:`mask_id`.

    Raises:
        ValueError: characters other than 0 and 1, or no 1.

    >>> from_mask_id("101")
    tensor([ True, False,  True])
    """
    return MaskSet.of(text)[0]
