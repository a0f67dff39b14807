"""The laws on 30 real pretrained blocks (SmolLM2-135M-Instruct), and what is known of them on real text."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_depth.functional import (
    MaskScores,
    MaskTrie,
    ablation_masks,
    beam_search,
    exhaustive_search,
    find_blocks,
    from_indices,
    leave_one_out,
    mask_id,
    masked,
    prefix,
    proxy_importance,
    random,
    reference_logprob,
    suffix,
    sweep_forward,
    sweep_generate,
    token_masking,
    uniform,
)
from lit_depth.functional.statistics import mean_intervals, paired_comparisons
from lit_depth.models.loading import load_checkpoint
from tests.helpers.commands import run
from tests.helpers.family_commands import check
from tests.helpers.pruning import pruned_copy
from tests.helpers.real_weights import (
    EVERY_BLOCK,
    NUM_BLOCKS,
    QUESTIONS,
    choice_scores,
    halves,
    next_token_scores,
    windows,
)

pytestmark = [pytest.mark.real, pytest.mark.slow]

NEW_TOKENS = 4
ALONE = leave_one_out(NUM_BLOCKS)
MASKS = [
    *ALONE[[0, 1, 14, 29]],
    prefix(NUM_BLOCKS, 20),
    suffix(NUM_BLOCKS, 25),
    uniform(NUM_BLOCKS, 15),
    random(NUM_BLOCKS, 22, seed=1),
    from_indices(NUM_BLOCKS, [7]),
]
PROMPTS = ["The capital of France is", "A list of the days of the week: Monday, Tuesday, Wednesday,"]


@pytest.fixture(scope="module")
def real(real_checkpoint):
    return load_checkpoint(str(real_checkpoint))


@pytest.fixture(scope="module")
def batch(real) -> dict[str, Tensor]:
    """Two prompts of unequal length, padded on the left."""
    encoded = real[1](PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    assert encoded["attention_mask"].sum(1).unique().numel() == 2
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def assert_same_logits(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest logit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def options(new_tokens: int = NEW_TOKENS) -> dict:
    return {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}


def without_cache(model, inputs: dict[str, Tensor]) -> Tensor:
    inputs = dict(inputs)
    for _ in range(NEW_TOKENS):
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1).logits
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits[:, -1].argmax(-1, keepdim=True)], 1)
        inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return inputs["input_ids"]


@pytest.mark.parametrize("mask", MASKS, ids=mask_id)
@torch.no_grad()
def test_masked_equals_pruned_equals_recomputation(real, batch, mask):
    model = real[0]
    pruned = pruned_copy(model, mask, share_weights=True)
    expected = pruned(**batch).logits
    recomputed = without_cache(pruned, batch)
    with masked(model, mask):
        assert_same_logits(model(**batch).logits, expected, 1e-6)
        assert torch.equal(model.generate(**batch, **options()), recomputed)
    assert torch.equal(pruned.generate(**batch, **options()), recomputed)


@torch.no_grad()
def test_the_engine_equals_one_mask_after_another(real, batch):
    """31 masks of one sweep, and as many block forwards as the trie says."""
    model = real[0]
    padded = batch["attention_mask"].bool()
    found = sweep_forward(model, batch, EVERY_BLOCK).logits
    trie = MaskTrie(EVERY_BLOCK)
    assert (trie.block_forwards, trie.sequential_block_forwards) == (30 + 29 * 30 // 2, 30 + 30 * 29)
    for row, mask in enumerate(EVERY_BLOCK):
        with masked(model, mask):
            assert_same_logits(found[row][padded], model(**batch).logits[padded], 1e-5)


@torch.no_grad()
def test_the_engines_answers_equal_generate(real, batch):
    model, masks = real[0], torch.stack([EVERY_BLOCK[0], *MASKS])
    found = sweep_generate(model, batch, masks, NEW_TOKENS, pad_token_id=2)
    for row, mask in enumerate(masks):
        with masked(model, mask):
            expected = model.generate(**batch, **options())[:, batch["input_ids"].shape[1] :]
        assert torch.equal(found[row], expected), mask_id(mask)


@pytest.mark.parametrize("mask", [EVERY_BLOCK[0], ALONE[0], ALONE[28]], ids=mask_id)
@torch.no_grad()
def test_log_probability_of_an_answer_is_that_of_decoding_it(real, batch, mask):
    model, tokenizer = real
    rows = [tokenizer(text)["input_ids"] for text in (" Paris", " Thursday, Friday")]
    answers = torch.tensor([rows[0] + [-100] * (len(rows[1]) - len(rows[0])), rows[1]])
    with masked(model, mask):
        found = reference_logprob(model, batch, answers, pad_token_id=2)
        for row, answer in enumerate(rows):
            ids, steps = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist(), []
            for token in answer:
                logits = model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
                steps.append(float(logits.log_softmax(-1)[token]))
                ids.append(token)
            assert float(found[row]) == pytest.approx(np.mean(steps), rel=0, abs=1e-5)


def test_scores_from_plain_passes_and_one_backward(real, batch):
    """Against transformers' own hidden states and attentions, and autograd."""
    model = real[0]
    inputs = {name: value[1:] for name, value in batch.items()}
    methods = ["block_influence", "activation_magnitude", "attention_entropy", "gradient", "taylor"]
    found = proxy_importance(model, [{**inputs, "labels": inputs["input_ids"]}], methods)
    blocks, last = find_blocks(model), []
    hook = blocks[-1].register_forward_hook(lambda _module, _args, output: last.append(output))
    model.set_attn_implementation("eager")
    try:
        output = model(
            **inputs, labels=inputs["input_ids"], output_hidden_states=True, output_attentions=True, use_cache=False
        )
    finally:
        model.set_attn_implementation("sdpa")
        hook.remove()
    states = [state[0].detach().double() for state in (*output.hidden_states[:-1], last[0])]
    gradients = torch.autograd.grad(output.loss, list(blocks.parameters()))
    of_weight = dict(zip(blocks.parameters(), gradients))
    for block_idx, block in enumerate(blocks):
        before, after = states[block_idx], states[block_idx + 1]
        weights = output.attentions[block_idx][0].detach().double()
        pairs = [(weight.detach().double(), of_weight[weight].double()) for weight in block.parameters()]
        expected = {
            "block_influence": 1 - torch.cosine_similarity(before, after, dim=-1).mean(),
            "activation_magnitude": after.norm(dim=-1).mean(),
            "attention_entropy": -torch.xlogy(weights, weights).sum(-1).mean(),
            "gradient": sum(gradient.abs().sum() for _, gradient in pairs),
            "taylor": sum((weight * gradient).abs().sum() for weight, gradient in pairs),
        }
        for method, value in expected.items():
            assert float(found[method][block_idx]) == pytest.approx(float(value), rel=1e-4), (method, block_idx)


@pytest.mark.parametrize("block_idx", [0, 13, 29])
@torch.no_grad()
def test_token_masking_equals_a_forward_per_hidden_token(real, block_idx):
    model, tokenizer = real
    inputs = dict(tokenizer("The capital of France is", return_tensors="pt"))
    frame = token_masking(model, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    found = frame[(frame["layer"] == block_idx) & (frame["variant"] == "Full")].set_index("token_position")
    block, length = find_blocks(model)[block_idx], inputs["input_ids"].shape[1]
    calls: list = []
    handle = block.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    model(inputs["input_ids"], use_cache=False)
    handle.remove()
    (args, kwargs) = calls[0]
    state = args[0] if args else kwargs["hidden_states"]

    def update(hidden: int | None) -> Tensor:
        visible = torch.ones(length, length).tril().bool()
        if hidden is not None:
            visible[-1, hidden] = False  # earlier queries do not matter to the final position of this block
        mask = torch.zeros(length, length).masked_fill(~visible, -torch.inf)[None, None]
        output = block(*args, **{**kwargs, "attention_mask": mask})
        return ((output if isinstance(output, Tensor) else output[0]) - state)[0, -1]

    whole = update(None)
    for position in range(length):
        other = update(position)
        distance = float((whole - other).norm())
        assert found.loc[position, "l2_distance"] == pytest.approx(distance, rel=0, abs=1e-6 * float(whole.norm()))
        cosine = 1 - float(torch.cosine_similarity(whole.double(), other.double(), dim=0))
        assert found.loc[position, "cosine_distance"] == pytest.approx(cosine, rel=1e-2, abs=1e-5)


@pytest.fixture(scope="module")
def text(real):
    """Eight windows of 48 tokens, each of a topic of its own."""
    return halves(windows(real[1], length=48, per_topic=1))[0].take(range(8))


@pytest.fixture(scope="module")
def profile(real, text):
    """Next-token accuracy and log-probability of the full model and of each single skip."""
    return next_token_scores(real[0], text, EVERY_BLOCK)


def test_importance_by_the_next_token_of_real_text(real, text, profile):
    """Six blocks stand out: the first three, the last two, and one in the middle."""
    logprob = profile[1]
    drops = logprob[0] - logprob[1:]
    for block_idx in (0, 28):  # what a copy without the block loses, by its own loss
        pruned = pruned_copy(real[0], ALONE[block_idx], share_weights=True)
        with torch.no_grad():
            losses = [pruned(row[None], labels=row[None]).loss.item() for row in text.ids]
        np.testing.assert_allclose(-logprob[1 + block_idx], losses, rtol=1e-5)
    order = np.argsort(-drops.mean(1)).tolist()
    assert order[:2] == [0, 1] and set(order[:6]) == {0, 1, 2, 11, 28, 29}
    assert drops[order[5]].mean() > 1 > drops[order[6]].mean()  # nats per token
    first, second = paired_comparisons(drops[:2], text.topics, score_range=None)
    assert first.simultaneous.low > second.interval.estimate > 3 and second.simultaneous.low > 1


def test_search_removes_what_an_exhaustive_one_finds(real, text, profile):
    """Of six blocks that may go: every pair, and a beam that holds all single blocks."""
    model, keep = real[0], [i for i in range(NUM_BLOCKS) if i not in (6, 9, 13, 17, 22, 28)]
    few = text.take(range(4))
    known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def evaluate(masks: Tensor, positions) -> MaskScores:
        new = {mask_id(mask): mask for mask in masks if mask_id(mask) not in known}
        if new:
            accuracy, logprob = next_token_scores(model, few, torch.stack(list(new.values())))
            known.update({name: (accuracy[row], logprob[row]) for row, name in enumerate(new)})
        found = [known[mask_id(mask)] for mask in masks]
        rows = [np.stack(each)[:, list(positions)] for each in zip(*found)]
        return MaskScores(*rows)

    common = {"max_removed": 2, "keep": keep, "rank_by": "reference_logprob"}
    every = exhaustive_search(evaluate, NUM_BLOCKS, 4, **common)
    beam = beam_search(evaluate, NUM_BLOCKS, 4, beam_width=6, racing=False, **common)
    assert [level.best for level in beam.levels] == [
        level.best._replace(parents=level.best.parents) for level in every.levels
    ]
    assert len(known) == 6 + 15
    # one level of search is the order of importance, which is measured apart
    single = {block_idx: np.exp(profile[1][1 + block_idx, :4]).mean() for block_idx in (6, 9, 13, 17, 22, 28)}
    assert every.levels[0].best.removed == (max(single, key=single.get),)
    pair = every.levels[1].best
    with masked(model, ablation_masks(NUM_BLOCKS, [pair.removed])[0]), torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in few.ids]
    assert pair.score == pytest.approx(np.exp(-np.array(losses)).mean(), rel=1e-4)


def test_importance_by_multiple_choice(real):
    """The full model knows more than chance; without its first or second block it knows less, by a corrected test."""
    model, tokenizer = real
    assert len(QUESTIONS) >= 40 and all(len(set(entry)) == 5 for entry in QUESTIONS)
    masks = torch.stack([EVERY_BLOCK[0], *ALONE[[0, 1, 13]]])
    scores = choice_scores(model, tokenizer, masks, QUESTIONS)
    full, *_ = mean_intervals(scores)
    assert full.low > 0.25
    first, second, middle = paired_comparisons(scores[:1] - scores[1:])
    assert first.p_holm < 0.01 and second.p_holm < 0.05 and second.simultaneous.low > 0
    assert middle.p_holm > 0.05 and middle.simultaneous.high < first.simultaneous.low
    question, *given = QUESTIONS[0]
    losses = []
    for option in given:  # by hand, with whole sequences
        prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        answer = tokenizer(f" {option}")["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            losses.append(model(torch.tensor([prompt + answer]), labels=labels).loss.item())
    assert (int(np.argmin(losses)) == 0) == bool(scores[0, 0])


COMMANDS = {
    "importance": (),
    "compare": ("--policies", "prefix", "--num_active_blocks", 15, NUM_BLOCKS, "--num_requests", 1),
    "search": ("--max_blocks_to_remove", 1),
    "consistency": (),
    "latency": ("--num_active_blocks", 2, NUM_BLOCKS, "--num_samples", 2, "--new_tokens", 2),
    "select": (
        "--policies",
        "prefix",
        "--num_active_blocks",
        15,
        "--num_requests",
        2,
        "--num_checks",
        2,
        "--budget_ms",
        100_000,
    ),
    "tokens": (),
}
FEW = ("--data.num_samples", 2, "--data.calibration_samples", 2, "--data.batch_size", 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_scores_it_on_questions_of_ones_own(real_checkpoint, tmp_path, command):
    questions = tmp_path / "questions.csv"
    with questions.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *(entry[:2] for entry in QUESTIONS)])
    given = ("--model.checkpoint", real_checkpoint, "--data.path", questions, "--output_dir", tmp_path)
    few = () if command == "tokens" else ("--trainer.accelerator", "cpu", *FEW)
    assert run([command, *COMMANDS[command], *given, *few]) == 0
    check(command, tmp_path / command / "default", NUM_BLOCKS, num_samples=2)
