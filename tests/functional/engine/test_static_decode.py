"""Decoding on static buffers: the tokens are those of `masked` and ``generate``, and no step runs for another mask."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from lit_depth.functional import StaticDecoder, find_blocks, leave_one_out, masked, random
from lit_depth.functional.engine.static_decode import experts_by
from lit_depth.functional.latency.stage_timer import StageTimer
from tests.helpers.model_zoo import ZOO, plain_answers
from tests.helpers.replayed import replayed
from tests.helpers.sweep_laws import FULL, plain
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model
from tests.helpers.tiny_molmo import FAMILIES as MOLMO_FAMILIES
from tests.helpers.tiny_molmo import tiny_inputs, tiny_molmo

NEW = 10
MASKS = (FULL, leave_one_out(4)[0], random(4, 2, seed=1), leave_one_out(4)[3], FULL)
ENDS = [5, 9, 30, 31, 32, 33]
REFUSED = "static buffers do not serve"


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


class Recorder:
    """Stands for a CUDA graph: runs a step as it was recorded, and notes which one ran."""

    def __init__(self) -> None:
        self.made, self.ran = 0, []

    def __call__(self, step, reset):
        number, self.made = self.made, self.made + 1
        for _ in range(2):  # as before a recording, which leaves the buffers changed
            step()
        reset()

        def replay() -> None:
            self.ran.append(number)
            step()

        return replay

    def last(self) -> set[int]:
        found, self.ran = set(self.ran), []
        return found


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate(family):
    model = tiny_model(family)
    inputs, decoder = tiny_batch(model), StaticDecoder(model, capture=Recorder())
    for mask in MASKS:
        assert torch.equal(decoder.generate(inputs, mask, NEW), plain(model, inputs, mask, new_tokens=NEW))
    assert decoder.num_captures == len(MASKS) - 1


@pytest.mark.parametrize("family", MOLMO_FAMILIES)
def test_tokens_of_molmo_are_those_of_generate(family):
    model = tiny_molmo(family)
    decoder = StaticDecoder(model)
    for rows in (1, 3):
        inputs = tiny_inputs(rows)
        for mask in (torch.ones(3, dtype=torch.bool), *leave_one_out(3)):
            assert torch.equal(decoder.generate(inputs, mask, NEW), plain(model, inputs, mask, new_tokens=NEW))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_end_at_different_steps(llama, rows):
    inputs = {name: value[:rows] for name, value in tiny_batch(llama).items()}
    decoder = StaticDecoder(llama)
    for mask in MASKS[:3]:
        for new_tokens in (1, 2, 30):  # more than once the host looks whether all have ended
            found = decoder.generate(inputs, mask, new_tokens, eos_token_id=ENDS)
            assert torch.equal(found, plain(llama, inputs, mask, eos=ENDS, new_tokens=new_tokens))


def test_decoding_stops_soon_after_all_rows_have_ended(llama):
    inputs, recorder = tiny_batch(llama), Recorder()
    decoder = StaticDecoder(llama, capture=recorder)
    full = decoder.generate(inputs, FULL, 50)
    recorder.last()
    ends = full[:, 3].unique().tolist()
    recorder.ran = []
    expected = plain(llama, inputs, FULL, eos=ends, new_tokens=50)
    assert torch.equal(decoder.generate(inputs, FULL, 50, eos_token_id=ends), expected)
    assert len(recorder.ran) == 8


def test_a_step_runs_for_its_own_mask_and_shape_alone(llama):
    recorder = Recorder()
    decoder = StaticDecoder(llama, capture=recorder)
    own = {}
    for _ in range(2):
        for rows, length in ((4, 8), (1, 8), (4, 70)):
            inputs = tiny_batch(llama, length, rows)
            for index, mask in enumerate(MASKS[:3]):
                found = decoder.generate(inputs, mask, NEW)
                assert torch.equal(found, plain(llama, inputs, mask, new_tokens=NEW))
                (ran,) = recorder.last()
                assert own.setdefault((rows, length, index), ran) == ran
    assert len(set(own.values())) == recorder.made == decoder.num_captures == 9


def test_halves_of_blocks_are_masked_too(llama):
    inputs, decoder = tiny_batch(llama), StaticDecoder(llama, capture=Recorder())
    for mask in leave_one_out(8)[:4]:
        with masked(llama, mask, granularity="sublayer"):
            expected = plain_answers(llama, inputs, NEW)
        assert torch.equal(decoder.generate(inputs, mask, NEW, granularity="sublayer"), expected)
    # the same bits of whole blocks would be another mask
    assert decoder.num_captures == 4


def test_few_steps_are_kept_and_their_buffers_are_shared(llama):
    inputs = tiny_batch(llama)
    decoder = StaticDecoder(llama, max_steps=2)
    for mask in (*MASKS[:3], MASKS[2], MASKS[1], MASKS[0]):
        assert torch.equal(decoder.generate(inputs, mask, NEW), plain(llama, inputs, mask, new_tokens=NEW))
    assert decoder.num_captures == 4
    assert len(decoder._steps) == 2


def test_masks_of_one_shape_share_keys_and_values(llama):
    """The memory that they take is that of one mask, however many are kept."""
    inputs, decoder = tiny_batch(llama), StaticDecoder(llama, capture=replayed)
    for _ in range(2):
        for mask in (MASKS[1], *MASKS):
            assert torch.equal(decoder.generate(inputs, mask, NEW), plain(llama, inputs, mask, new_tokens=NEW))
    assert decoder.num_captures == 4
    assert len({id(kept.buffers) for kept in decoder._steps.values()}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_recorded_answers_other_prompts(family):
    model = tiny_model(family)
    inputs, decoder = tiny_batch(model), StaticDecoder(model, capture=replayed)
    turned = {name: value.flip(0) for name, value in inputs.items()}
    for given in (inputs, turned, inputs):
        assert torch.equal(decoder.generate(given, FULL, NEW), plain(model, given, FULL, new_tokens=NEW))
    assert decoder.num_captures == 1


def test_changed_weights_are_never_answered_from_old_steps():
    model = tiny_model("llama")
    inputs, recorder = tiny_batch(model), Recorder()
    decoder = StaticDecoder(model, capture=recorder)

    def check(made: int) -> None:
        assert torch.equal(decoder.generate(inputs, FULL, NEW), plain(model, inputs, FULL, new_tokens=NEW))
        assert recorder.made == made

    check(made=1)
    with torch.no_grad():  # read where they lie
        model.model.layers[0].mlp.up_proj.weight.mul_(-1.0)
    check(made=1)
    model.model.layers[1].mlp.up_proj.weight.data = model.model.layers[1].mlp.up_proj.weight.data.flip(0).clone()
    check(made=2)
    hook = model.model.layers[2].register_forward_hook(lambda *_: None)
    check(made=3)
    hook.remove()
    model.model.layers[2].self_attn.scaling *= 2
    check(made=4)
    check(made=4)


def test_changed_functions_and_settings_are_never_answered_from_old_steps():
    model = tiny_model("gemma2")
    inputs, decoder = tiny_batch(model), StaticDecoder(model, capture=replayed)

    def check() -> None:
        assert torch.equal(decoder.generate(inputs, FULL, NEW), plain(model, inputs, FULL, new_tokens=NEW))

    for factor in (1.0, -3.0, 0.2, 5.0):  # each may lie where the one before it lay
        hook = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output, by=factor: output * by)
        check()
        hook.remove()
    model.config.final_logit_softcapping = 1e-3  # all logits become one
    check()
    assert decoder.num_captures == 5


def test_tensors_of_inference_mode_and_others_may_alternate(llama):
    decoder, inputs = StaticDecoder(llama), tiny_batch(llama)
    expected = plain(llama, inputs, FULL, new_tokens=NEW)
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            assert torch.equal(decoder.generate(inputs, FULL, NEW), expected)


class _NoWaiting(TorchDispatchMode):
    """Refuses what waits for a device, or gives a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "model", [lambda: tiny_molmo("olmoe"), lambda: tiny_model("gemma2")], ids=["experts", "window"]
)
def test_no_step_waits_for_the_device(model, monkeypatch):
    model = model()
    inputs = tiny_inputs(2) if model.config.model_type == "molmo" else tiny_batch(model)
    num_blocks = len(find_blocks(model))
    steps = []

    def capture(step, reset):
        def strict() -> None:
            steps.append(step)
            # as in a stream that records, where transformers does not look at values either
            with monkeypatch.context() as patch, _NoWaiting():
                patch.setattr(masking_utils, "is_tracing", lambda *_: True)
                step()

        return strict

    mask = leave_one_out(num_blocks)[0]
    expected = plain(model, inputs, mask, new_tokens=NEW)
    assert torch.equal(StaticDecoder(model, capture=capture).generate(inputs, mask, NEW), expected)
    assert len(steps) == NEW - 1
    if model.config.model_type == "molmo":
        with pytest.raises(AssertionError, match="nonzero"):
            StaticDecoder(model, capture=capture, experts="eager").generate(inputs, mask, NEW)


@torch.no_grad()
def test_gathered_experts_are_those_of_the_plain_loop():
    model = tiny_molmo("olmoe")
    inputs = tiny_inputs(4)
    logits = {}
    for name in ("eager", "batched_mm"):
        with experts_by(model, name):
            logits[name] = model(**inputs).logits
    torch.testing.assert_close(logits["batched_mm"], logits["eager"], atol=1e-5, rtol=1e-5)
    model.set_experts_implementation("eager")
    before = model.get_experts_implementation()
    found = StaticDecoder(model).generate(inputs, [True, False, True], NEW)
    assert torch.equal(found, plain(model, inputs, torch.tensor([True, False, True]), new_tokens=NEW))
    assert model.get_experts_implementation() == before


def test_each_step_runs_in_the_context_given(llama):
    inputs = tiny_batch(llama)
    decoder = StaticDecoder(llama)
    decoder.generate(inputs, FULL, NEW)
    with StageTimer(llama) as timer:
        decoder.generate(inputs, FULL, NEW, around_step=timer.step)
    (request,) = timer.requests()
    assert len(request["decode_steps"]) == NEW - 1 and request["num_output_tokens"] == 4 * NEW
    assert request["total"] == pytest.approx(request["vision"] + request["prefill"] + request["decode"])
    assert all(step > 0 for step in request["decode_steps"]) and sum(request["decode_steps"]) <= request["decode"]


def test_what_changes_from_call_to_call_is_refused(llama):
    inputs, decoder = tiny_batch(llama), StaticDecoder(llama)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        decoder.generate(inputs, FULL, NEW)
    llama.train()
    try:
        with pytest.raises(ValueError, match="evaluation mode"):
            decoder.generate(inputs, FULL, NEW)
    finally:
        llama.eval()
    with pytest.raises(ValueError, match="at least one active"):
        decoder.generate(inputs, [False] * 4, NEW)
    with pytest.raises(ValueError, match="128 tokens"):
        decoder.generate(inputs, FULL, 200)


def test_penalties_that_a_model_got_later_are_refused():
    model = tiny_model("llama")
    inputs, decoder = tiny_batch(model), StaticDecoder(model)
    decoder.generate(inputs, FULL, NEW)
    model.generation_config.repetition_penalty = 3.0
    with pytest.raises(ValueError, match="RepetitionPenalty"):
        decoder.generate(inputs, FULL, NEW)


@pytest.mark.parametrize(("error", "expected"), [(RuntimeError, ValueError), (torch.OutOfMemoryError,) * 2])
def test_a_step_that_cannot_be_recorded_is_refused(llama, error, expected):
    def capture(step, reset):
        raise error("operation not permitted when stream is capturing\nCUDA kernel errors might be reported")

    with pytest.raises(expected, match="not permitted when stream is capturing"):
        StaticDecoder(llama, capture=capture).generate(tiny_batch(llama), FULL, NEW)


def test_a_model_whose_steps_would_differ_is_refused(llama, monkeypatch):
    def off(module, args, kwargs, output):
        # looks at how many keys there are
        if len(kwargs["attention_mask"].shape) and kwargs["attention_mask"].shape[-1] >= 64:
            return output + 1.0
        return output

    model = tiny_model("llama")
    model.model.layers[1].register_forward_hook(off, with_kwargs=True)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="other logits"):
        StaticDecoder(model).generate(tiny_batch(model), FULL, NEW)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ZOO)
def test_every_family_is_answered_alike_or_refused(name):
    model, inputs = ZOO[name]()
    num_blocks = len(find_blocks(model))
    try:
        decoder = StaticDecoder(model, capture=replayed)
    except ValueError:
        return
    for mask in (torch.ones(num_blocks, dtype=torch.bool), *leave_one_out(num_blocks)):
        try:
            with masked(model, mask):
                expected = plain_answers(model, inputs, 6)
        except (ValueError, AttributeError):
            continue
        try:
            found = decoder.generate(inputs, mask, 6)
        except ValueError as error:
            assert REFUSED in str(error)
            return
        assert torch.equal(found, expected)
