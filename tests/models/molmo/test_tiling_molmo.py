"""Which grid of crops an image gets, and how large it is inside them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_depth.models.molmo.tiling_molmo import fit_within, select_tiling


@settings(max_examples=200, deadline=None)
@given(sizes=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_crops=st.integers(1, 13))
def test_tiling_needs_least_upscaling(sizes: tuple[int, int], max_crops: int) -> None:
    def scale(tiling: tuple[int, int]) -> np.float32:
        return min(np.float32(224 * n) / np.float32(size) for n, size in zip(tiling, sizes))

    chosen = select_tiling(*sizes, 224, max_crops)
    others = [(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops + 1) if i * j <= max_crops]
    assert chosen in others
    if any(scale(other) >= 1 for other in others):
        assert scale(chosen) == min(scale(other) for other in others if scale(other) >= 1)
    else:
        assert scale(chosen) == max(map(scale, others))


def test_scaled_size_is_computed_in_float32() -> None:
    """Exact arithmetic gives another size: the recorded behaviour of training."""
    assert fit_within(140, 524, 336, 560) == (149, 560)
    differing = [
        (h, w)
        for h in range(100, 140)
        for w in range(100, 400)
        if fit_within(h, w, 336, 336) != tuple(n * 336 // max(h, w) for n in (h, w))
    ]
    assert differing
