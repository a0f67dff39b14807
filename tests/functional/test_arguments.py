"""Wrong arguments of every public function end with a ValueError that says what was expected, and nothing else."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lit_depth
import lit_depth.callbacks as C
import lit_depth.functional as F
import lit_depth.metrics as M
from lit_depth.data import DepthDataModule, get_task
from lit_depth.metrics.likelihood import Likelihood
from lit_depth.models.loading import load_checkpoint, new_model
from lit_depth.models.molmo import MolmoImageProcessor, vision_tokens

SIZES = dict(vocab_size=16, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
MODEL = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
ONE = {name: value[:1] for name, value in INPUTS.items()}
MASKS = torch.tensor([[True, True, True], [True, False, True]])
PATH = "model.layers"


PROCESSOR = lit_depth.load_bundled()[1]


def evaluate(masks, positions):
    drop = (~masks * torch.arange(masks.shape[1])).sum(1) / 100
    return F.MaskScores((1 - drop).double().repeat(len(positions), 1).T.numpy())


class Tokenizer:
    """Speaks the sixteen tokens of the model."""

    bos_token_id = None

    def __call__(self, text: str, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[ord(each) % 16 for each in text]])}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


COUNTED: dict[str, Any] = dict(num_blocks=4, k=2, keep=[0])
SEARCHED: dict[str, Any] = dict(evaluate=evaluate, num_units=4, num_samples=5, rank_by="accuracy")
CANDIDATE: dict[str, Any] = dict(mask_id="110", latency_ms=9.0, quality=0.7, quality_ci=(0.6, 0.8), drop_ci=(0.1, 0.2))
ENTRY = {
    "mask_id": "10",
    "latency_ms": {"bound": 9.0},
    "chosen_by": {"quality": 0.7, "quality_ci": [0, 1], "drop_ci": [0, 1]},
}
SWEPT: dict[str, Any] = dict(model=MODEL, inputs=INPUTS, masks=MASKS, blocks=PATH)
SCORED: dict[str, Any] = dict(model=MODEL, inputs=INPUTS, answer_ids=IDS, pad_token_id=0)
CHOSEN: dict[str, Any] = dict(values=[[0.0, 0.5, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0]], clusters=["a", "b", "c", "d"])
# right arguments of every public function and class; each of them is replaced by what is wrong
RIGHT: dict[Any, dict[str, Any]] = {
    F.find_blocks: dict(model=MODEL, path=PATH),
    F.find_decoder: dict(model=MODEL, blocks=MODEL.model.layers),
    F.masked: dict(
        model=MODEL, mask=[True, False, True], granularity="block", phase="both", decode_without_prompt=False
    ),
    F.patch: dict(model=MODEL, mask=[True, False, True], batches=[INPUTS, INPUTS], blocks=PATH, ridges=(0.1,)),
    F.check_mask: dict(mask=[True, False], num_blocks=2, granularity="block"),
    F.mask_id: dict(mask=[True, False]),
    F.from_mask_id: dict(text="101"),
    F.prefix: COUNTED,
    F.suffix: COUNTED,
    F.uniform: COUNTED,
    F.random: dict(COUNTED, seed=0),
    F.top_k: dict(importance=[0.1, 0.2, 0.3], k=2, keep=[0]),
    F.threshold: dict(importance=[0.1, 0.2, 0.3], fraction=0.5, keep=[0]),
    F.from_indices: dict(num_blocks=4, indices=[1], keep=[0]),
    F.leave_one_out: dict(num_blocks=4),
    F.MaskSet.of: dict(masks=MASKS, num_units=3, granularity="block"),
    F.MaskSet.full: dict(num_units=3),
    F.MaskTrie: dict(masks=MASKS),
    F.sweep_forward: dict(SWEPT, logits_to_keep=1),
    F.sweep_generate: dict(SWEPT, max_new_tokens=2, eos_token_id=[2], pad_token_id=0, max_rows=4, granularity="block"),
    F.generate: dict(SWEPT, max_new_tokens=2, eos_token_id=2, pad_token_id=0),
    F.speculative_generate: dict(model=MODEL, inputs=INPUTS, mask=[True, False, True], num_draft=2)
    | dict(max_new_tokens=3, eos_token_id=2, pad_token_id=0, blocks=PATH, phase="decode"),
    F.StaticDecoder: dict(model=MODEL, blocks=PATH, max_steps=2),
    F.reference_logprob: dict(SCORED, in_phases=False),
    F.beam_search: dict(SEARCHED, beam_width=2, max_removed=2, keep=[0], racing=True, epsilon=0.02, delta=0.05, batch=4)
    | dict(clusters=list("aabbc"), seed=0),
    F.exhaustive_search: dict(SEARCHED, max_removed=2, keep=[0], delta=0.05, clusters=list("aabbc")),
    F.pairwise_search: dict(SEARCHED, num_units=5, beam_width=2, max_removed=3, num_held_out=2, keep=[0], delta=0.05)
    | dict(clusters=list("aabbc"), seed=0),
    F.singles_and_pairs: dict(units=[0, 2]),
    F.fit_second_order: dict(units=[0, 2], scores=[0.9, 0.8, 0.7, 0.5]),
    F.score_ablations: dict(SEARCHED, ablations=[[0], [1, 2]]),
    F.ablation_masks: dict(num_units=4, ablations=[[0], [1, 2]]),
    F.contiguous_spans: dict(num_units=4, length=2, keep=[0]),
    F.importance_order: dict(importance=[0.1, 0.2, 0.3], max_removed=1, keep=[0]),
    F.interaction: dict(drop=0.1, single_drops=[0.1, 0.2]),
    F.fit_line: dict(counts=[1, 2], times_ms=[1.0, 2.0]),
    F.percentile_bound: dict(times_ms=[1.0, 2.0], share=0.9, confidence=0.9),
    F.depth_under_budget: dict(line=F.Line(2.0, 5.0, 1.0), budget_ms=22.0, num_blocks=16, fewest=1),
    F.select_for_budget: dict(candidates=[F.Candidate(**CANDIDATE)], budget_ms=20.0),
    F.request_mask: dict(candidates=[F.Candidate(**CANDIDATE)], complexity="a", budget_ms=20.0, tolerances={"a": 0.1}),
    F.pareto_frontier: dict(points=[(1.0, 2.0, "a")]),
    F.Candidate: CANDIDATE,
    F.Candidate.from_result: dict(entry=ENTRY),
    F.decision_stability: dict(CHOSEN, rule=F.least(1), probability=0.9, seed=0),
    F.winner_interval: dict(CHOSEN, confidence=0.9, seed=0),
    F.transfer_regret: dict(
        drops=CHOSEN["values"], chosen=[True, False], rule=F.least(1), clusters=CHOSEN["clusters"], seed=0
    ),
    F.least: dict(count=1),
    F.best_of: dict(members=[[True, False], [False, True]]),
    F.token_masking: dict(model=MODEL, inputs=ONE, num_output_tokens=1, blocks=PATH),
    F.span_masking: dict(model=MODEL, inputs=ONE, spans={"a": [0]}, num_output_tokens=1, blocks=PATH),
    F.logit_lens: dict(SCORED, blocks=PATH),
    F.span_knockout: dict(model=MODEL, inputs=ONE, spans={"a": [0]}, answer_ids=ONE["input_ids"], blocks=PATH),
    F.run_token_masking: dict(model=MODEL, processor=Tokenizer(), prompt="is it", raw=False, num_output_tokens=1),
    F.proxy_importance: dict(model=MODEL, batches=[{**INPUTS, "labels": IDS}], methods=["taylor"], blocks=PATH),
    F.span_distances: dict(model=MODEL, batches=[INPUTS], blocks=PATH),
    F.least_turning_span: dict(distances=torch.zeros(3, 4), length=2),
    F.ProxyScores: dict(model=MODEL, methods=["taylor"], blocks=PATH),
    M.vqa_accuracy: dict(prediction="a", references=["a"] * 10, variant="official", min_references=10),
    M.normalize_vqa_answer: dict(text="a"),
    M.anls: dict(prediction="a", references=["a"]),
    M.relaxed_accuracy: dict(prediction="1", references=["1"]),
    M.exact_match: dict(prediction="a", references=["a"]),
    M.contains: dict(prediction="a", references=["a"]),
    M.parse_chat_choice: dict(prediction="A", options=["x", "y"]),
    M.most_likely: dict(found=[Likelihood(-1.0, 1, 0), Likelihood(-2.0, 1, 0)], options=["x", "y"], by_length=True),
    M.multiple_choice_accuracy: dict(prediction="A", options=["x", "y"], answer="A"),
    M.mmmu_accuracy: dict(prediction="A", references=["A"], options=["x", "y"]),
    M.parse_choice: dict(prediction="A", options=["x", "y"]),
    M.parse_mmmu_choice: dict(prediction="A", options=["x", "y"]),
    M.clean_prediction: dict(text="a"),
    M.tokenize_caption: dict(text="a cat"),
    M.cider_d: dict(predictions=["a cat"], references=[["a cat"]]),
    M.ReferenceCorpus: dict(references=[["a"]]),
    M.ExactMatch().update: dict(predictions=["a"], references=[["a"]], options=[[]]),
    M.CIDErD().update: dict(predictions=["a"], references=[["a"]]),
    C.BlockMask: dict(active_block_indices=[0], blocks="a", phase="both", decode_without_prompt=False),
    C.MaskSweep: dict(masks=[[True]], folder="/x", metric="ANLS", max_bad_samples=0.1, description="x"),
    C.AccuracyDropImportance: dict(score_fn=None, blocks="a", max_batches=1),
    C.ProxyImportance: dict(methods=["taylor"], blocks="a", max_batches=1),
    C.BeamSearchAblation: dict(beam_width=2, max_removed=2, keep=[0], max_batches=1, granularity="block", racing=True)
    | dict(epsilon=0.1, delta=0.1, seed=0, blocks="x", score_fn=None),
    C.LoopAnswers: dict(folder="/x", num_units=2, metric="ANLS"),
    C.LiveProgress: dict(sweep=C.MaskSweep([[True]], "/x", "ANLS"), every_seconds=1.0, confidence=0.9, stage="x"),
    C.LatencyTimer: dict(warmup_batches=1, blocks="x"),
    C.TokenMaskImpact: dict(num_samples=1, num_output_tokens=1, blocks="x"),
    MolmoImageProcessor: dict(max_crops=4, image_patch_size=14, base_image_input_size=336, overlap_margins=[4, 4]),
    DepthDataModule: dict(task="shapes_vqa", tasks=None, batch_size=2, num_samples=2, max_prompt_tokens=9, seed=0)
    | dict(num_workers=0, train_images=2, calibration_samples=2, train_batch_size=2),
    PROCESSOR.__call__: dict(images=None, text="is it", padding_side="left", max_length=50, return_tensors="pt"),
    PROCESSOR.image_processor.preprocess: dict(images=[np.zeros((9, 9, 3), np.uint8)], apply_exif=True),
    vision_tokens: dict(image_processor=PROCESSOR.image_processor, height=90, width=60, first_position=1),
    get_task: dict(name="shapes_vqa"),
    load_checkpoint: dict(checkpoint="bundled", revision=None, dtype="auto", trust_remote_code=False),
    new_model: dict(checkpoint="bundled", trust_remote_code=False),
}
WRONG = [None, "x", "", -1, 1.5, math.nan, 10**400, True, [], [None], ["12"], [-1], {}, {"a": None}, object()]
WRONG += [torch.zeros(0), torch.tensor([[1.5]]), torch.zeros(2, 2, 2), np.zeros((2, 2)), b"x", {"input_ids": None}]
WRONG += [
    {"input_ids": torch.tensor([[99]])},
    {"input_ids": torch.tensor([[-1]])},
    {"input_ids": torch.zeros(1, 0).long()},
]


def name_of(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


@pytest.mark.parametrize("function", RIGHT, ids=name_of)
def test_a_wrong_argument_is_named_with_what_was_expected(function):
    """Taken, or refused with a ValueError that says so: no bare error from somewhere inside."""
    function(**RIGHT[function])
    for argument in RIGHT[function]:
        for wrong in WRONG:
            try:
                function(**{**RIGHT[function], argument: wrong})
            except ValueError as error:
                assert "expected" in str(error), (argument, wrong, error)
            except Exception as error:
                pytest.fail(f"{argument}={wrong!r}: {type(error).__name__}: {error}")


REFUSED = [
    (F.from_indices, dict(num_blocks=4, indices=[1.5]), "indices as a list of integers, got"),
    (F.from_indices, dict(num_blocks=4, indices="12"), "indices as a list of integers, got '12'"),
    (F.from_indices, dict(num_blocks=4, indices=[True]), "indices as a list of integers"),
    (F.from_indices, dict(num_blocks=4, indices={1, 2}), "indices as a list of integers"),
    (F.from_indices, dict(num_blocks=True, indices=[0]), "num_blocks as an integer"),
    (F.random, dict(num_blocks=4, k=2, seed=2**64), "seed"),
    (F.prefix, dict(num_blocks=10**9, k=2), "num_blocks from 1 to 10000"),
    (F.sweep_generate, dict(SWEPT, max_new_tokens=0), "max_new_tokens from 1"),
    (F.sweep_generate, dict(SWEPT, max_new_tokens=2, max_rows=0), "max_rows of at least 1, got 0"),
    (F.sweep_generate, dict(SWEPT, max_new_tokens=2, pad_token_id=16), "pad_token_id from 0 to 15, got 16"),
    (F.sweep_generate, dict(SWEPT, max_new_tokens=2, eos_token_id=[3, 99]), "eos_token_id from 0 to 15, got 99"),
    (
        F.sweep_generate,
        dict(SWEPT, max_new_tokens=2, inputs={"input_ids": IDS + 99}),
        "input_ids from 0 to 15, got 105",
    ),
    (F.generate, dict(SWEPT, max_new_tokens=0), "max_new_tokens from 1"),
    (F.sweep_forward, dict(SWEPT, inputs={"input_ids": [[1, 2]]}), "inputs that are tensors, got .* as input_ids"),
    (F.sweep_forward, dict(SWEPT, inputs={"attention_mask": IDS}), "inputs with input_ids"),
    (F.sweep_forward, dict(SWEPT, masks=MASKS[None]), r"masks of shape \[masks, num_blocks\]"),
    (F.reference_logprob, dict(model=MODEL, inputs=INPUTS, answer_ids=IDS[:1], pad_token_id=0), "answer_ids, integers"),
    (
        F.reference_logprob,
        dict(model=MODEL, inputs=INPUTS, answer_ids=IDS * 0 - 100, pad_token_id=0),
        "answer_ids with at least one token",
    ),
    (
        F.reference_logprob,
        dict(model=MODEL, inputs=INPUTS, answer_ids=IDS + 50, pad_token_id=0),
        "answer_ids from 0 to 15",
    ),
    (F.token_masking, dict(model=MODEL, inputs={"input_ids": IDS[:1] + 50}), "input_ids from 0 to 15"),
    (F.patch, dict(model=MODEL, mask="101", batches=[INPUTS], ridges=()), "ridges, none of them negative"),
    (F.patch, dict(model=MODEL, mask="101", batches=[INPUTS], ridges=(-1.0,)), "ridges, none of them negative"),
    (F.patch, dict(model=MODEL, mask="101", batches=[None]), "batches of a model's inputs by name"),
    (F.check_mask, dict(mask=[1, 0], num_blocks=2), "mask as a Tensor or a list of bools"),
    (F.top_k, dict(importance={"a": 1.0}, k=1), "importance as {block index: score}"),
    (C.AccuracyDropImportance, dict(max_batches=0), "max_batches of at least 1, got 0"),
    (C.BeamSearchAblation, dict(max_batches=0), "max_batches of at least 1, got 0"),
    (C.MaskSweep, dict(masks=[], folder="/x"), "at least one mask"),
    (C.MaskSweep, dict(masks=[[True]], folder="/x", metric="Nope"), "the name of a metric"),
    (M.most_likely, dict(found=[], options=["x"]), "one log-probability for each option, got 0 for 1"),
    (M.cider_d, dict(predictions="ab", references=[["a"], ["b"]]), "predictions as a list of texts"),
    (lit_depth.DepthModule, dict(max_rows=0), "max_rows of at least 1"),
    (lit_depth.DepthModule, dict(max_new_tokens=True), "max_new_tokens as an integer or None"),
    (lit_depth.DepthModule, dict(granularity="head"), "granularity as 'block' or 'sublayer'"),
    (DepthDataModule, dict(num_samples=0), "num_samples of at least 1, got 0"),
    (DepthDataModule, dict(task=5), "task as text, a Task or None"),
]


@pytest.mark.parametrize(
    ("function", "arguments", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_was_taken_without_complaint_or_failed_inside(function, arguments, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        function(**arguments)


def test_numpy_and_torch_numbers_are_numbers():
    assert F.prefix(np.int64(4), torch.tensor(2)).tolist() == [True, True, False, False]
    assert F.from_indices(4, np.array([0, 3])).tolist() == F.from_indices(4, torch.tensor([0, 3])).tolist()
    assert F.mask_id(np.array([True, False])) == "10"
    assert F.threshold(np.array([1.0, 0.2], np.float32), np.float32(0.5)).tolist() == [True, False]
    assert F.percentile_bound(np.arange(1.0, 101.0)) == 99.0


def test_missing_and_unknown_names_are_pythons_own():
    with pytest.raises(TypeError, match="prefix.*missing"):
        F.prefix(4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'kep'"):
        F.prefix(4, 2, kep=[0])


def test_no_public_function_is_forgotten():
    """Value types take what they are given (a `MaskSet` once it is made); Metric classes are tested through update."""
    public = {getattr(package, name) for package in (F, M, C) for name in package.__all__}
    values = {each for each in public if isinstance(each, type) and issubclass(each, tuple)} | {F.MaskSet}
    metrics = {each for each in public if isinstance(each, type) and hasattr(each, "higher_is_better")}
    assert public - values - metrics - set(RIGHT) == set()
    assert all(inspect.signature(function) for function in RIGHT)


@pytest.mark.parametrize("batch", [None, [], {}, {"sample_ids": ["a"]}, torch.zeros(1)])
def test_a_batch_that_is_none_is_named(batch):
    module = lit_depth.DepthModule()
    for step in (module.predict_step, module.validation_step):
        with pytest.raises(ValueError, match="expected an evaluation batch"):
            step(batch)
