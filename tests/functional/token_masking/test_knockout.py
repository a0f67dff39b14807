"""Knockouts against one plain forward for each span and first block, and against what is known of the ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_depth.functional import find_blocks, reference_logprob, span_knockout, span_masking
from lit_depth.functional.token_masking import knockout as module
from lit_depth.functional.token_masking.knockout import knockout_block_rows
from tests.functional.test_families import one_prompt
from tests.helpers.hiding import knocked_out
from tests.helpers.model_zoo import ZOO
from tests.helpers.sweep_laws import rows_run

ANSWER = torch.tensor([[5, 6]])
FAST = ("llama", "gemma3", "qwen3_vl", "molmo, olmoe", "gpt2", "falcon", "mamba")
NOT_THROUGH = "attend once through transformers' attention interface, got 0"
SEVERAL_ROWS = "expected a model whose blocks and head take several rows of one prompt"
DECODES_OTHERWISE = "expected a model that reads an answer together with its prompt as it decodes it"
RECURRENT = "some of its blocks keep a recurrent state"
REFUSED = {
    **dict.fromkeys(("falcon", "falcon, alibi", "mpt", "git"), NOT_THROUGH),
    **dict.fromkeys(("bloom", "gpt_bigcode", "deepseek_v4"), SEVERAL_ROWS),
    **dict.fromkeys(("moshi", "paligemma, no types", "blip2", "instructblip"), DECODES_OTHERWISE),
    **dict.fromkeys(("mamba", "falcon_h1", "bamba", "lfm2", "jamba", "qwen3_next"), RECURRENT),
    **dict.fromkeys(("granite_hybrid", "nemotron_h", "recurrent_gemma"), RECURRENT),
}
OTHERWISE = {
    "ctrl, types": "its generate leaves out the types of tokens, which a plain forward is given",
    "kosmos2": "its image stands in the prompt alone, where a plain forward looks for it in the answer too",
    "deepseek_v32": "it chooses the keys of each query before they are hidden, and a plain forward behind it",
}


def spans_of(length: int) -> dict[str, list[int]]:
    return {"first two": [0, 1], "middle": [length // 2], "apart": [1, 3]}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.exhaustive) for n in ZOO])
def test_every_knockout_is_a_plain_forward_with_that_attention_cut(name):
    model, inputs = ZOO[name]()
    one = one_prompt(inputs)
    length, num_blocks = one["input_ids"].shape[1], len(find_blocks(model))
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            span_knockout(model, one, spans_of(length), ANSWER)
        return
    found = span_knockout(model, one, spans_of(length), ANSWER)
    own = reference_logprob(model, one, ANSWER, pad_token_id=0)
    assert found.answer_logprob == pytest.approx(float(own), abs=2e-6)
    if name in OTHERWISE:
        return
    logprob, plain = knocked_out(model, one, ANSWER, [0], None)
    scale = float(plain.norm(dim=-1).max())
    for (span, first), rows in found.positions.groupby(["span", "from_block"]):
        positions = spans_of(length)[span]
        expected, states = knocked_out(model, one, ANSWER, positions, first)
        answer = found.answers.query("span == @span and from_block == @first").iloc[0]
        assert answer["answer_logprob"] == pytest.approx(expected, abs=5e-6)
        assert answer["drop"] == pytest.approx(logprob - expected, abs=1e-5)
        seen = [p for p in range(positions[0] + 1, len(plain) - 1) if p not in positions]
        assert rows["token_position"].tolist() == seen
        moved = (states - plain).norm(dim=-1)[seen].numpy()
        np.testing.assert_allclose(rows["l2_distance"], moved, rtol=1e-4, atol=2e-6 * scale)
        cosine = 1 - torch.cosine_similarity(states.double(), plain.double(), dim=-1)[seen].numpy()
        np.testing.assert_allclose(rows["cosine_distance"], cosine, rtol=1e-3, atol=2e-6)
    assert len(found.positions.groupby(["span", "from_block"])) == 3 * num_blocks


def test_from_the_last_block_on_it_is_what_hiding_the_span_from_that_block_alone_does():
    model, inputs = ZOO["llama"]()
    one = one_prompt(inputs)
    spans, last = {"a": [0, 1], "b": [2]}, len(find_blocks(model)) - 1
    found = span_knockout(model, one, spans, ANSWER[:, :1]).positions
    alone = span_masking(model, one, spans)
    ends = found[(found["from_block"] == last) & (found["token_position"] == one["input_ids"].shape[1] - 1)]
    expected = alone[(alone["layer"] == last) & (alone["variant"] == "Full")]
    assert ends["span"].tolist() == expected["span"].tolist() == list(spans)
    np.testing.assert_allclose(ends["l2_distance"], expected["l2_distance"], rtol=1e-4)


def test_block_rows_are_counted_and_the_memory_decides_how_many_spans_share_a_forward(monkeypatch):
    model, inputs = ZOO["llama"]()
    one = one_prompt(inputs)
    spans, num_blocks = spans_of(one["input_ids"].shape[1]), len(find_blocks(model))
    together = span_knockout(model, one, spans, ANSWER)  # it gets to know the model
    for memory, forwards in ((2**40, 1), (1, 3)):
        monkeypatch.setattr(module, "affordable_bytes", lambda *_, memory=memory: memory)
        counted, hooks = rows_run(model)
        found = span_knockout(model, one, spans, ANSWER)
        for hook in hooks:
            hook.remove()
        assert sum(counted) == knockout_block_rows(num_blocks, len(spans), forwards)
        np.testing.assert_allclose(found.answers["drop"], together.answers["drop"], atol=1e-5)
        assert found.positions["token_position"].equals(together.positions["token_position"])


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, inputs = ZOO["falcon"]()
    one = one_prompt(inputs)
    before = model(**one).logits
    with pytest.raises(ValueError, match=NOT_THROUGH):
        span_knockout(model, one, {"a": [0]}, ANSWER)
    assert torch.equal(model(**one).logits, before)
    assert not any("forward" in block.__dict__ for block in find_blocks(model))


@pytest.mark.parametrize(
    ("spans", "answer", "message"),
    [
        ({}, ANSWER, "at least one span"),
        ({"a": []}, ANSWER, "span 'a' to hold distinct positions"),
        ({"a": [99]}, ANSWER, "span 'a' to hold distinct positions"),
        ({"a": [0]}, torch.zeros(1, 0, dtype=torch.long), "expected answer_ids with at least one token"),
        ({"a": [0]}, torch.tensor([[5], [6]]), r"expected answer_ids, integers \[1, answer\]"),
    ],
)
def test_mistakes_are_named(spans, answer, message):
    model, inputs = ZOO["llama"]()
    with pytest.raises(ValueError, match=message):
        span_knockout(model, one_prompt(inputs), spans, answer)
