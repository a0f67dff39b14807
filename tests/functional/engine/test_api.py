"""The engine against one mask at a time: masked generate, and generate of physically pruned copies."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, from_mask_id, leave_one_out, masked, prefix, random
from lit_depth.functional.engine.api import answer_masks, generate, score_continuations, sweep_forward, sweep_generate
from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.rows import up_to_stop
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.inputs import reference_logprob
from lit_depth.models.loading import load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from lit_depth.studies.shared.mask_grid import POLICIES, plan_masks
from tests.helpers.pruning import pruned_copy
from tests.helpers.sweep_laws import NEW_TOKENS, SETS, get_to_know, plain, rows_run
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model
from tests.helpers.zoo_hybrids import lfm2


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_masked_generate(models, family, batch):
    model = models[family]
    inputs = {name: value[-batch:] for name, value in tiny_batch(model).items()}
    masks = torch.cat(list(SETS.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = sweep_generate(model, inputs, masks, NEW_TOKENS)
    assert tokens.shape == (len(masks), batch, NEW_TOKENS)
    for mask, answer in zip(masks, tokens):
        assert torch.equal(answer, plain(model, inputs, mask)), mask.tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmoe"])
def test_answers_equal_pruned_copies(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    tokens = sweep_generate(model, inputs, SETS["leave one out"], NEW_TOKENS)
    for mask, answer in zip(SETS["leave one out"], tokens):
        pruned = pruned_copy(model, mask)
        assert torch.equal(answer, plain(pruned, inputs, torch.ones(int(mask.sum()), dtype=torch.bool)))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_forward_equals_masked_forward(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    masks = torch.cat(list(SETS.values()))
    output = sweep_forward(model, inputs, masks)
    real = inputs["attention_mask"].bool()
    for mask, logits in zip(masks, output.logits):
        with masked(model, mask):
            expected = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=0)
    last = sweep_forward(model, inputs, masks, logits_to_keep=2).logits
    torch.testing.assert_close(last, output.logits[:, :, -2:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmoe"])
def test_block_forwards_performed_equal_the_plan(models, family, kind):
    model, inputs = models[family], tiny_batch(models[family])
    get_to_know(model, inputs)
    counted, hooks = rows_run(model)
    sweep_forward(model, inputs, SETS[kind])
    for hook in hooks:
        hook.remove()
    assert sum(counted) == MaskTrie(SETS[kind]).block_forwards * len(inputs["input_ids"])


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("family", ["llama", "olmoe", "olmo2", "gemma2", "gpt_neox"])
def test_where_masks_end_only_kept_positions_go_through_the_mlp(models, family, kind):
    """Positions that the MLPs see; GPT-NeoX's blocks cannot be halved and run whole."""
    model, inputs, masks = models[family], tiny_batch(models[family]), SETS[kind]
    rows, length = inputs["input_ids"].shape
    get_to_know(model, inputs)
    positions: list[int] = []
    hooks = [
        block.mlp.register_forward_hook(lambda _m, args, _o: positions.append(args[0].shape[:2].numel()))
        for block in find_blocks(model)
    ]
    sweep_forward(model, inputs, masks, logits_to_keep=3)
    for hook in hooks:
        hook.remove()
    prefixes = {tuple(mask[: i + 1]) for mask in masks.tolist() for i in range(4) if mask[i]}
    read_on = {tuple(mask[: i + 1]) for mask in masks.tolist() for i in range(4) if mask[i] and any(mask[i + 1 :])}
    cut = 0 if family == "gpt_neox" else (length - 3) * len(prefixes - read_on)
    assert sum(positions) == rows * (length * len(prefixes) - cut)


def sets_of_16_blocks() -> dict[str, torch.Tensor]:
    full = torch.ones(1, 16, dtype=torch.bool)
    some = {
        "leave one out": torch.cat([full, leave_one_out(16)]),
        "prefix": torch.stack([prefix(16, k) for k in range(1, 17)]),
        "random": torch.stack([random(16, k, seed=seed) for k in range(2, 16, 3) for seed in range(2)]),
    }
    order = [1.0 / (1 + (7 * i) % 16) for i in range(16)]
    compare = plan_masks(POLICIES, range(1, 17), 16, order, num_seeds=2)
    return some | {"compare": torch.stack(list({planned.id: planned.mask for planned in compare}.values()))}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4, pytest.param(16, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("family", ["bundled", "llama", "qwen3", "olmoe"])
def test_every_mask_set_at_every_batch_size(family, batch):
    """16 blocks, left padding: answers of the engine and of each mask alone, forwards as planned, vision once."""
    if family == "bundled":
        model, processor = load_bundled()
        data = DepthDataModule(prompter_for(model, processor), batch_size=batch, num_samples=batch)
        inputs = model_inputs(next(iter(data.eval_dataloader())))
        tower = model.model.vision_tower
    else:
        model = tiny_model(family, num_blocks=16, initializer_range=0.15)
        inputs, tower = tiny_batch(model, rows=batch), None
    new_tokens, calls = 4, []
    get_to_know(model, inputs)
    for masks in sets_of_16_blocks().values():
        hook = tower.register_forward_hook(lambda *_: calls.append(1)) if tower else None
        tokens = sweep_generate(model, inputs, masks, new_tokens)
        if hook:
            hook.remove()
            assert len(calls) == 1
            calls.clear()
        for mask, answer in zip(masks, tokens):
            assert torch.equal(answer, plain(model, inputs, mask, new_tokens=new_tokens)), mask.tolist()
        counted, hooks = rows_run(model)
        sweep_forward(model, inputs, masks, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        assert sum(counted) == MaskTrie(masks).block_forwards * batch


def test_vision_runs_once_whatever_the_chunks(models):
    model = models["llava"]
    inputs = tiny_batch(model)
    get_to_know(model, inputs)
    calls = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    whole = sweep_generate(model, inputs, SETS["leave one out"], NEW_TOKENS)
    chunked = sweep_generate(model, inputs, SETS["leave one out"], NEW_TOKENS, max_rows=2 * len(inputs["input_ids"]))
    hook.remove()
    assert len(calls) == 2 and torch.equal(whole, chunked)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_mask_per_row(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    masks = torch.stack([from_mask_id(text) for text in ("0111", "1111", "1000", "0101")])
    tokens = generate(model, inputs, masks, NEW_TOKENS)
    for row, mask in enumerate(masks):
        assert torch.equal(tokens[row], plain(model, inputs, mask)[row])


@pytest.mark.parametrize("family", ["llama", "olmoe", "mistral", "falcon"])
def test_reference_logprobs_of_the_same_pass(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    answers = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
    masks = SETS["leave one out"]
    tokens, scores = answer_masks(
        model, inputs, masks, max_new_tokens=3, eos_token_id=None, pad_token_id=0, answer_ids=answers
    )
    for mask, answer, ours in zip(masks, tokens, scores):
        assert torch.equal(answer, plain(model, inputs, mask, new_tokens=3))
        with masked(model, mask):
            torch.testing.assert_close(
                ours, reference_logprob(model, inputs, answers, pad_token_id=0), atol=1e-5, rtol=0
            )
            for row in range(4):  # by definition: one row alone, no padding, sum over its own tokens
                real = inputs["attention_mask"][row].bool()
                target = answers[row][answers[row] != -100]
                ids = torch.cat([inputs["input_ids"][row][real], target])[None]
                logits = model(input_ids=ids).logits[0, -len(target) - 1 : -1].log_softmax(-1)
                expected = logits.gather(1, target[:, None]).mean()
                torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("eos", [None, "frequent"])
@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2", "qwen3"])
def test_answers_are_the_same_whatever_reference_is_their_draft(models, family, eos):
    model, inputs = models[family], tiny_batch(models[family])
    masks = torch.cat(list(SETS.values()))
    if eos:
        values, counts = sweep_generate(model, inputs, masks, 3).flatten().unique(return_counts=True)
        eos = int(values[counts.argmax()])
    expected = torch.stack([plain(model, inputs, mask, eos) for mask in masks])
    right = expected[0]  # of the full model; right for some other masks, partly or not at all for others
    wrong = (right + 1) % model.config.get_text_config().vocab_size
    drafts = {
        "right": right,
        "right and longer than the answer may be": torch.cat([right, right], dim=1),
        "right beginning": right[:, :2],
        "wrong in the middle": torch.cat([right[:, :2], wrong[:, 2:3], right[:, 3:]], dim=1),
        "wrong": wrong,
        "one row each": torch.stack([right[0], wrong[1], right[2], torch.tensor([*right[3, :3], -100, -100, -100])]),
    }
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": eos, "pad_token_id": 0}
    for name, draft in drafts.items():
        tokens, _ = answer_masks(model, inputs, masks, answer_ids=draft, **options)
        assert torch.equal(tokens, expected), name


@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2"])
def test_answers_stop_where_they_are_told_to_whoever_decodes_them(family):
    model = tiny_model(family)
    inputs, masks = tiny_batch(model), SETS["leave one out"]
    whole = torch.stack([plain(model, inputs, mask) for mask in masks])
    # one that many answers have somewhere, but not first
    values, counts = whole[:, :, 1:-1].flatten().unique(return_counts=True)
    wanted = int(values[counts.argmax()])
    expected = whole.clone()
    for row in expected.flatten(0, 1):
        place = next((step for step, token in enumerate(row.tolist()) if token == wanted), NEW_TOKENS)
        row[place + 1 :] = 0
    assert not torch.equal(expected, whole)
    asked = []

    def stop(tokens: torch.Tensor) -> torch.Tensor:
        asked.append(tokens.shape)
        return tokens[:, -1] == wanted

    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, "stop": stop}
    draft = whole[0]  # what is known without decoding stops too
    for more in ({}, {}, {"answer_ids": draft}, {"phase": "decode"}):
        tokens, _ = answer_masks(model, inputs, masks, **options, **more)
        if not more.get("phase"):
            assert torch.equal(tokens, expected), more
            continue
        plain_tokens, _ = answer_masks(model, inputs, masks, **{**options, "stop": None}, **more)
        assert torch.equal(tokens, up_to_stop(plain_tokens, Request({}, NEW_TOKENS, (), 0, stop=stop)))
    assert asked


def test_no_step_is_taken_behind_the_stop_of_all_rows():
    model = tiny_model("llama")
    inputs, masks = tiny_batch(model), SETS["leave one out"]
    steps, options = [], {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    answer_masks(model, inputs, masks, **options)  # the engine has seen the model
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    tokens, _ = answer_masks(
        model, inputs, masks, **options, stop=lambda each: torch.full((len(each),), each.shape[1] == 2)
    )
    hook.remove()
    assert len(steps) == 2 and not tokens[:, :, 2:].any() and tokens[:, :, :2].any()


def test_a_model_that_cannot_be_driven_falls_back_with_one_warning():
    model, inputs = lfm2()
    masks = leave_one_out(3)
    with pytest.warns(UserWarning, match="Lfm2.*one mask after another.*recurrent") as caught:
        tokens = sweep_generate(model, inputs, masks, NEW_TOKENS)
        sweep_generate(model, inputs, masks[:1], 1)
    assert len([w for w in caught if "one mask after another" in str(w.message)]) == 1
    for mask, answer in zip(masks, tokens):
        assert torch.equal(answer, plain(model, inputs, mask))


@pytest.mark.parametrize("family", ["llama", "olmoe", "llava", "falcon"])
def test_scores_alone_decode_nothing(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    answers = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, 13]])
    options = {"eos_token_id": None, "pad_token_id": 0, "answer_ids": answers}
    masks, passes = SETS["leave one out"], []
    _, expected = answer_masks(model, inputs, masks, max_new_tokens=2, **options)
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: passes.append(1))
    tokens, scores = answer_masks(model, inputs, masks, max_new_tokens=0, **options)
    hook.remove()
    assert tokens.shape == (len(masks), 4, 0)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert len(passes) == 1


def test_the_model_is_left_as_it_was(models):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    blocks = find_blocks(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sweep_generate(model, inputs, SETS["random"], 2)
    hook = blocks[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep_forward(model, inputs, SETS["random"])
    hook.remove()
    assert all("forward" not in block.__dict__ for block in blocks)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("bits", "granularity"), [("0110", "block"), ("0111", "block"), ("10101010", "sublayer")], ids=str
)
def test_the_masks_of_a_sweep_replace_the_one_around_it(models, bits, granularity):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    masks = SETS["leave one out"]
    expected = sweep_generate(model, inputs, masks, NEW_TOKENS), generate(model, inputs, masks[:4], NEW_TOKENS)
    logits = sweep_forward(model, inputs, masks, logits_to_keep=1).logits
    with masked(model, [bit == "1" for bit in bits], granularity=granularity):
        under_it = plain_tokens(model, inputs)
        assert torch.equal(sweep_generate(model, inputs, masks, NEW_TOKENS), expected[0])
        assert torch.equal(generate(model, inputs, masks[:4], NEW_TOKENS), expected[1])
        assert torch.equal(sweep_forward(model, inputs, masks, logits_to_keep=1).logits, logits)
        assert torch.equal(plain_tokens(model, inputs), under_it)


def plain_tokens(model, inputs) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def test_bad_masks_are_refused(models):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    with pytest.raises(ValueError, match="4 blocks, got 3"):
        sweep_generate(model, inputs, torch.ones(2, 3, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match="at least one mask"):
        sweep_generate(model, inputs, [], 1)
    with pytest.raises(ValueError, match="one mask per request, got 2 masks for 4"):
        generate(model, inputs, torch.ones(2, 4, dtype=torch.bool), 1)


@pytest.mark.parametrize(
    ("mask", "given"),
    [
        ([1, 1, 0], "padding on the right in row 1"),
        ([1, 0, 1], "a hole in row 1"),
        ([0, 0, 0], "no token in row 1"),
        ([0, 1, 0], "padding on the right in row 1"),
    ],
)
def test_prompts_that_nothing_can_follow_are_refused(mask, given):
    model = tiny_model("llama")
    inputs = {"input_ids": torch.full((2, 3), 5), "attention_mask": torch.tensor([[0, 1, 1], mask])}
    masks = torch.ones(2, 4, dtype=torch.bool)
    expected = f"padded on the left alone, got {given}"
    with pytest.raises(ValueError, match=expected):
        sweep_generate(model, inputs, masks, 2)
    with pytest.raises(ValueError, match=expected):
        generate(model, inputs, masks, 2)
    with pytest.raises(ValueError, match=expected):
        reference_logprob(model, inputs, torch.full((2, 1), 6), pad_token_id=0)


def test_answers_beyond_the_context_are_refused():
    """128 positions; padding takes none."""
    model, masks = tiny_model("llama"), torch.ones(1, 4, dtype=torch.bool)
    ids = torch.full((1, 6), 5)
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1]])}
    message = "at most 128 tokens .the model's context., got a prompt of 3 and 126 to generate"
    with pytest.raises(ValueError, match=message):
        sweep_generate(model, inputs, masks, 126)
    with pytest.raises(ValueError, match=message):
        generate(model, inputs, masks, 126)
    assert sweep_generate(model, inputs, masks, 125).shape == (1, 1, 125)


# several continuations of some prompts, not in the order of these
CONTINUATIONS = torch.tensor(
    [[5, 6, 7], [20, -100, -100], [9, 30, -100], [11, 12, 13], [5, 6, -100], [40, 41, 42], [8, -100, -100]]
)
OF_PROMPT = torch.tensor([0, 0, 1, 1, 2, 3, 1])


@torch.no_grad()
def scored_alone(model, inputs, mask) -> torch.Tensor:
    """Sum of log-probabilities and number of greedy tokens of each continuation, by a forward without padding."""
    found = []
    for padded, row in zip(CONTINUATIONS, OF_PROMPT):
        tokens = padded[padded >= 0]
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        prompt = one.pop("input_ids")[one.pop("attention_mask").bool()]
        ids = torch.cat([prompt, tokens])[None]
        with masked(model, mask):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **one).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        total = sum(float(logprobs[place, token]) for place, token in enumerate(tokens))
        found.append((total, int((logprobs.argmax(-1) == tokens).sum())))
    return torch.tensor(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_equal_a_loop_of_masked_forwards(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    masks = torch.cat(list(SETS.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for max_rows in (None, 9):
            found = score_continuations(
                model, inputs, masks, CONTINUATIONS, OF_PROMPT, pad_token_id=0, max_rows=max_rows
            )
            expected = torch.stack([scored_alone(model, inputs, mask) for mask in masks])
            torch.testing.assert_close(found.logprobs, expected[..., 0], atol=1e-5, rtol=1e-6)
            assert torch.equal(found.num_greedy, expected[..., 1])


def test_continuations_of_a_model_that_the_engine_cannot_drive(monkeypatch):
    """By turns of one continuation for each prompt."""
    model = tiny_model("llava")
    inputs, masks = tiny_batch(model), SETS["leave one out"]
    monkeypatch.setattr(Request, "check_length", lambda *_: "a reason")
    with pytest.warns(UserWarning, match="one mask after another: a reason"):
        found = score_continuations(model, inputs, masks, CONTINUATIONS, OF_PROMPT, pad_token_id=0)
    expected = torch.stack([scored_alone(model, inputs, mask) for mask in masks])
    torch.testing.assert_close(found.logprobs, expected[..., 0], atol=1e-5, rtol=1e-6)
    assert torch.equal(found.num_greedy, expected[..., 1])


def test_a_prompt_is_read_once_for_all_its_continuations(models):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    masks = SETS["leave one out"]
    score_continuations(model, inputs, masks[:1], CONTINUATIONS, OF_PROMPT, pad_token_id=0)
    counted, hooks = rows_run(model)
    score_continuations(model, inputs, masks, CONTINUATIONS, OF_PROMPT, pad_token_id=0)
    for hook in hooks:
        hook.remove()
    prompts = MaskTrie(masks).block_forwards * len(inputs["input_ids"])
    assert sum(counted) == prompts + int(masks.sum()) * len(CONTINUATIONS)


def test_rows_that_leave_a_prompt_out_are_refused(models):
    model, inputs = models["llama"], tiny_batch(models["llama"])
    with pytest.raises(ValueError, match="expected rows with each of the prompts 0 to 3, got"):
        score_continuations(model, inputs, [[True] * 4], CONTINUATIONS[:2], torch.tensor([0, 1]), pad_token_id=0)
