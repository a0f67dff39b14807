"""What the engine assumes of a model is checked; where it does not hold, masks are answered one after another."""

from __future__ import annotations

import warnings

import pytest
import torch
from model_zoo import ROWS, ZOO, forced_logprob, moshi, plain_answers
from wrappers import LowRank, SoftPrompt, Wrapper

from lit_depth.functional import answering, find_blocks, generate, leave_one_out, masked, sweep_forward, sweep_generate
from lit_depth.functional import sweep as sweep_module
from lit_depth.functional.engine import CannotDriveError, Front, TrieDriver, driven
from lit_depth.functional.masking import check_drivable
from lit_depth.functional.scoring import reference_logprob
from lit_depth.functional.sweep import answer_masks
from lit_depth.functional.trie import MaskTrie

NEW_TOKENS = 4
ANSWERS = torch.tensor([[5, 6, 7], [20, -100, -100], [9, 30, -100]])
# why the engine leaves a family to the model itself; the others are driven
NOT_DRIVEN = {
    "falcon": "tuples",
    "bloom": "tuples",
    "falcon_h1": "tuples",
    "mamba": "recurrent state",
    "qwen2_vl": "several axes",
    "gpt2": "RuntimeError: shape",
    "gpt2, types": "RuntimeError: shape",
    "gpt_bigcode": "RuntimeError: shape",
    "git": "see 3 rows of 14 tokens, given 3 of 9",
    "deepseek_v32": "indexer",
    "deepseek_v4": "compression",
    "phi3, long": "turn at a length of 11 tokens",
    "moshi": "does not give the answers",
}
FAST = ("llama", "gpt2", "git", "gptj, types", "ctrl, types", "blip2", "kosmos2", "flex_olmo", "moshi")


def every_family():
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name) for name in ZOO]


def masks_for(model) -> torch.Tensor:
    num_blocks = len(find_blocks(model))
    return torch.cat([torch.ones(1, num_blocks, dtype=torch.bool), leave_one_out(num_blocks)])


def check_answers(model, inputs) -> list[str]:
    """Every entry gives what `masked` and ``generate`` or a forward give; what was said meanwhile."""
    masks = masks_for(model)
    expected = []
    for mask in masks:
        with masked(model, mask):
            expected.append(plain_answers(model, inputs, NEW_TOKENS))
    rows = len(inputs["input_ids"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(sweep_generate(model, inputs, masks, NEW_TOKENS), torch.stack(expected))
        tokens, _ = answer_masks(
            model, inputs, masks, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0,
            answer_ids=ANSWERS[:rows], max_rows=2 * rows,
        )  # fmt: skip
        assert torch.equal(tokens, torch.stack(expected))
        of_row = torch.arange(rows)
        answers = generate(model, inputs, masks[of_row], NEW_TOKENS)
        assert torch.equal(answers, torch.stack(expected)[of_row, of_row])
        together = sweep_forward(model, inputs, masks)
        last = sweep_forward(model, inputs, masks, logits_to_keep=1).logits
    for mask, logits, final in zip(masks, together.logits, last):
        with masked(model, mask), torch.no_grad():
            alone = model(**inputs, use_cache=False).logits
        # what stands at padding is nobody's business
        real = inputs["attention_mask"].bool()
        real = real if alone.shape[:2] == real.shape else torch.ones(alone.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(logits[real], alone[real], atol=1e-4, rtol=0)
        torch.testing.assert_close(final, alone[:, -1:], atol=1e-4, rtol=0)
    return [str(each.message) for each in caught if "one mask after another" in str(each.message)]


@pytest.mark.parametrize("name", every_family())
def test_every_entry_gives_what_one_mask_at_a_time_gives(name):
    model, inputs = ZOO[name]()
    said = check_answers(model, inputs)
    if name in NOT_DRIVEN:
        assert len(said) == 1 and NOT_DRIVEN[name] in said[0]
    else:
        assert said == []


@pytest.mark.parametrize(
    ("window", "length", "new_tokens", "answer_length"), [(8, 3, 14, 2), (8, 3, 3, 12), (6, 4, 2, 6), (8, 3, 0, 12)]
)
def test_a_window_that_ends_far_behind_the_prompt_is_noticed(window, length, new_tokens, answer_length):
    """The first four tokens, or the generated ones, stay inside; Moshi's cache forgets only then."""
    answers = torch.randint(3, 60, (1, answer_length), generator=torch.Generator().manual_seed(5))
    options = {"eos_token_id": None, "pad_token_id": 0, "answer_ids": answers}
    model, inputs = moshi(window)
    inputs = {name: value[:, :length] for name, value in inputs.items()}
    answer_masks(model, inputs, masks_for(model), max_new_tokens=1, **options | {"answer_ids": answers[:, :1]})
    found, scored = answer_masks(model, inputs, masks_for(model), max_new_tokens=new_tokens, **options)
    model, _ = moshi(window)  # not known yet
    per_row = generate(model, inputs, masks_for(model)[1:2], max(1, new_tokens))
    for index, mask in enumerate(masks_for(model)):
        with masked(model, mask):
            expected = plain_answers(model, inputs, max(1, new_tokens))
            scores = forced_logprob(model, inputs, answers)
            alone = reference_logprob(model, inputs, answers, pad_token_id=0)
        assert torch.equal(found[index], expected[:, :new_tokens])
        torch.testing.assert_close(scored[index], scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone, scores, atol=1e-4, rtol=0)
        if index == 1:
            assert torch.equal(per_row, expected)


@pytest.mark.parametrize(("family", "length"), [("mistral", 2), ("gemma2", 2), ("gpt_oss", 3)])
def test_a_family_that_keeps_its_window_itself_is_driven_across_it(family, length):
    model, inputs = ZOO[family]()
    inputs = {name: value[:1, :length] for name, value in inputs.items()}
    expected = []
    for mask in masks_for(model):
        with masked(model, mask):
            expected.append(plain_answers(model, inputs, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sweep_generate(model, inputs, masks_for(model), 12), torch.stack(expected))
        assert torch.equal(generate(model, inputs, masks_for(model)[:1], 12), expected[0])


def test_a_proof_that_ended_inside_of_the_window_is_none():
    """All rows end with their first token; the next request goes on."""
    model, inputs = moshi(8)
    inputs = {name: value[:, :3] for name, value in inputs.items()}
    masks = masks_for(model)[1:]
    with masked(model, masks[0]):
        expected = plain_answers(model, inputs, 14)
    sweep_generate(model, inputs, masks[:1], 14, eos_token_id=int(expected[0, 0]))
    assert torch.equal(sweep_generate(model, inputs, masks[:1], 14)[0], expected)


def test_a_window_too_far_to_be_measured_is_left_to_the_model():
    model, inputs = moshi(2**10)
    request = answering.Request(inputs, 2**10, (), 0)
    assert "its window ends within the answers" in request.check_length(model)
    assert request._replace(max_new_tokens=2**9).check_length(model) is None


# ---- wrappers


@pytest.mark.parametrize("name", ["llama", "gptj, types"])
def test_a_wrapper_with_low_rank_updates_is_driven(name):
    model, inputs = ZOO[name]()
    before = plain_answers(model, inputs, NEW_TOKENS)
    for block in find_blocks(model):
        where = "up_proj" if name == "llama" else "fc_in"
        setattr(block.mlp, where, LowRank(getattr(block.mlp, where)))
    wrapper = Wrapper(model)
    assert not torch.equal(before, plain_answers(wrapper, inputs, NEW_TOKENS))
    assert check_answers(wrapper, inputs) == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_a_wrapper_puts_in_front_of_the_prompt_is_seen(name):
    model, inputs = ZOO[name]()
    wrapper = SoftPrompt(model).eval()
    assert not torch.equal(plain_answers(wrapper, inputs, NEW_TOKENS), plain_answers(model, inputs, NEW_TOKENS))
    said = check_answers(wrapper, inputs)
    rows, length = inputs["input_ids"].shape
    assert len(said) == 1 and f"see {rows} rows of {length + 3} tokens, given {rows} of {length}" in said[0]
    _, found = answer_masks(
        wrapper, inputs, masks_for(model), max_new_tokens=0, eos_token_id=None, pad_token_id=0, answer_ids=ANSWERS
    )
    for mask, scores in zip(masks_for(model), found):
        with masked(model, mask):
            torch.testing.assert_close(scores, forced_logprob(wrapper, inputs, ANSWERS), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_peft_models_are_answered_as_they_are(name, kind):
    peft = pytest.importorskip("peft", reason="needs the package peft")
    model, inputs = ZOO[name]()
    config = (
        peft.LoraConfig(
            target_modules=["c_attn"] if name == "gpt2" else ["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        if kind == "lora"
        else peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    said = check_answers(peft.get_peft_model(model, config).eval(), inputs)
    assert (said == []) == (name == "llama" and kind == "lora")


# ---- what does not fit, and what goes wrong


def test_what_changes_hidden_states_between_blocks_is_noticed():
    model, inputs = ZOO["llama"]()
    find_blocks(model)[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    said = check_answers(model, inputs)
    assert len(said) == 1 and "block 2 is not given what the block before it returned" in said[0]


def test_an_engine_that_answers_otherwise_is_noticed(monkeypatch):
    """Nothing of the model's form tells: only its own answers do."""
    model, inputs = ZOO["llama"]()
    real = answering.RowDriver.make_forward

    def forgetful(driver, block_idx, forward):
        wrong = real(driver, block_idx, forward)
        return lambda states, *args, **kwargs: wrong(states, *args, **kwargs) * (1.0 if block_idx else 1.2)

    monkeypatch.setattr(answering.RowDriver, "make_forward", forgetful)
    said = check_answers(model, inputs)
    assert len(said) == 1 and "does not give the answers" in said[0]


def test_the_engine_is_compared_once_and_again_for_inputs_of_another_kind(monkeypatch):
    model, inputs = ZOO["gpt_oss"]()  # its window is 4 tokens wide
    compared = []
    real = answering.plain_steps
    monkeypatch.setattr(answering, "plain_steps", lambda *given: compared.append(1) or real(*given))
    short = {name: value[:1, :2] for name, value in inputs.items()}
    for given, times in ((short, 1), (short, 1), (inputs, 2), (inputs, 2)):
        sweep_generate(model, given, masks_for(model), 2)
        assert len(compared) == times


def test_an_error_of_the_engine_is_told_and_one_of_the_model_is_raised(monkeypatch):
    model, inputs = ZOO["llama"]()
    masks = masks_for(model)

    def broken(*_):
        raise IndexError("of the model")

    hook = model.register_forward_pre_hook(broken)
    with pytest.raises(IndexError, match="of the model"):  # comes again one mask after another
        sweep_generate(model, inputs, masks, 1)
    hook.remove()
    assert model not in sweep_module._REFUSED

    def fail(*_):
        raise ZeroDivisionError("a\nreason")

    monkeypatch.setattr(TrieDriver, "make_forward", fail)
    with pytest.warns(
        UserWarning, match="LlamaForCausalLM is answered one mask after another: ZeroDivisionError: a reason"
    ):
        sweep_generate(model, inputs, masks, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = []
        answer_masks(
            model, inputs, masks, max_new_tokens=1, eos_token_id=None, pad_token_id=0, on_mask=lambda: done.append(1)
        )
    assert len(done) == len(masks)


def test_memory_that_runs_out_is_no_reason_to_go_on(monkeypatch):
    model, inputs = ZOO["llama"]()

    def fail(*_):
        raise torch.OutOfMemoryError("x")

    monkeypatch.setattr(TrieDriver, "make_forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        sweep_forward(model, inputs, masks_for(model))
    with pytest.raises(torch.OutOfMemoryError):
        sweep_generate(model, inputs, masks_for(model)[:1], 1)
    assert model not in sweep_module._REFUSED


def test_an_interruption_is_no_reason_to_go_on(monkeypatch):
    model, inputs = ZOO["llama"]()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrieDriver, "make_forward", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep_generate(model, inputs, masks_for(model), 1)


@torch.no_grad()
def test_a_later_chunk_must_be_called_as_the_first_was():
    """Embeddings of the first are used again, so masks and positions must be the same without the image."""
    model, inputs = ZOO["llama"]()
    blocks, masks = find_blocks(model), masks_for(model)
    drivers = [TrieDriver(MaskTrie(masks), None, None)]
    with driven(blocks, drivers[0].make_forward):
        model(**inputs, use_cache=False)
    front = drivers[0].front
    assert isinstance(front, Front) and len(front.calls) == len(blocks)
    with driven(blocks, TrieDriver(MaskTrie(masks), None, None, front=front).make_forward):
        again = model(input_ids=inputs["input_ids"] * 0 + 5, attention_mask=inputs["attention_mask"], use_cache=False)
        torch.testing.assert_close(again.logits, model(**inputs, use_cache=False).logits)
    other = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    with driven(blocks, TrieDriver(MaskTrie(masks), None, None, front=front).make_forward):
        with pytest.raises(CannotDriveError, match="depend on the image"):
            model(**other, use_cache=False)


def test_the_reason_is_known_beforehand_where_the_form_of_a_model_tells():
    for name in ("falcon", "bloom", "mamba", "qwen2_vl"):
        model, _ = ZOO[name]()
        assert NOT_DRIVEN[name] in check_drivable(model, find_blocks(model))
    assert len(ANSWERS) == ROWS
