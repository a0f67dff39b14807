"""Of any two points on a clear frontier one is surely faster, the other surely better."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lit_depth.functional.latency.budget import pareto_frontier
from lit_depth.functional.latency.frontier import Measured, clear_frontier

VALUES = st.integers(0, 20).map(float)


@st.composite
def points(draw):
    found = []
    for time, quality in draw(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)):
        bars = draw(st.tuples(*[st.integers(0, 4)] * 4))
        found.append(Measured(time, quality, (time - bars[0], time + bars[1]), (quality - bars[2], quality + bars[3])))
    return found


@given(points())
def test_neighbours_differ_beyond_their_intervals_in_both(measured):
    kept = [measured[index] for index in clear_frontier(measured)]
    assert kept
    for fast, good in zip(kept, kept[1:]):
        assert fast.times[1] < good.times[0] and fast.qualities[1] < good.qualities[0]


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12))
def test_without_noise_it_is_the_plain_frontier(pairs):
    measured = [Measured(time, quality, (time, time), (quality, quality)) for time, quality in pairs]
    expected = [point[:2] for point in pareto_frontier([(*pair, None) for pair in pairs])]
    assert [measured[index][:2] for index in clear_frontier(measured)] == expected
