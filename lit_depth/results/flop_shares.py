"""How floating-point operations under masks are told: relative to those of all blocks."""

from collections.abc import Mapping

Flops = Mapping[str, Mapping[str, int]]
FLOPS_NOTE = "FLOPs are those of the first request, relative to those of all blocks."


def share_of_full(flops: Flops | None, mask: str, stage: str = "total") -> float | None:
    """Operations of a stage under a mask relative to those of all blocks; None where they are not known.

    Args:
        flops: By mask and stage; None = not counted.

    >>> share_of_full({"11": {"total": 200}, "01": {"total": 150}}, "01"), share_of_full({}, "01")
    (0.75, None)
    """
    full = (flops or {}).get("1" * len(mask))
    return None if not flops or not full or mask not in flops else flops[mask][stage] / full[stage]


def told_share(share: float | None) -> str | None:
    """A cell of a table.

    >>> told_share(0.75), told_share(None)
    ('0.750', None)
    """
    return None if share is None else f"{share:.3f}"
