"""Operations relative to those of all blocks."""

from __future__ import annotations

from lit_depth.results.flop_shares import share_of_full, told_share


def test_shares_are_of_the_full_model_and_of_one_stage():
    flops = {"111": {"prefill": 80, "total": 100}, "101": {"prefill": 20, "total": 40}}
    assert share_of_full(flops, "101") == 0.4 and share_of_full(flops, "101", "prefill") == 0.25
    assert told_share(share_of_full(flops, "111")) == "1.000"


def test_what_was_not_counted_is_not_told():
    known = {"11": {"total": 4}}
    assert share_of_full(None, "11") is None and share_of_full({}, "11") is None
    assert share_of_full(known, "01") is None and share_of_full({"01": {"total": 2}}, "01") is None
