"""Greedy decoding on static buffers: every step runs at fixed addresses, and on a GPU as one CUDA graph.

At batch 1 a decode step of a small model is a few hundred kernels of some microseconds each. Launching them one by one
takes longer than running them, and so does asking the device what it has found. Here a step is recorded once for each
mask and shape, and started as a whole (`lit_depth.functional.engine.cuda_graph`).

The prompt is read as `generate` reads it, and its keys and values are copied into the buffers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.functional.arguments import (
    MAX_TOKENS,
    check_goes_on,
    check_least,
    check_range,
    check_token_ids,
    checked,
    prompt_inputs,
)
from lit_depth.functional.engine.cuda_graph import Capture, Step, capture_for
from lit_depth.functional.engine.decoding_configuration import (
    CannotDriveError,
    PreparedPrompt,
    greedy_options,
    inside_generate,
)
from lit_depth.functional.engine.proof import same_logits
from lit_depth.functional.engine.static_buffers import Prompt, StaticBuffers
from lit_depth.functional.engine.static_support import check_now, check_serves_static, state_of
from lit_depth.functional.latency.stage_timer import untimed
from lit_depth.functional.masking.blocks import context_length, find_blocks
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masks import Granularity, MaskSet, units_of

# capacities are multiples of this, so that prompts of nearly the same length share a step
_PIECE = 64
# steps between two looks at whether all rows have ended: the host waits for the device only then
_LOOK_EVERY = 8
# steps that are compared with the model's own before a mask and shape is used
_COMPARED = 2
# the most rows whose experts are gathered: of more rows most experts are read anyway
_GATHERED_ROWS = 8


class _Kept(NamedTuple):
    """A step of one mask and shape, ready to be run again."""

    run: Step
    buffers: StaticBuffers


class StaticDecoder:
    """Answers batches under one block mask each, on buffers of fixed addresses; on a GPU every step is a CUDA graph.

    Equal to `masked` and greedy ``generate``, token for token in float32 up to exact ties. A step is made once for each
    mask, batch size, number of tokens (in pieces of 64) and number format, and kept; it is never run for another mask.
    A skipped block is not in it at all. Steps of one shape share their buffers, and all share one pool of memory. When
    a weight, a module, a hook or a setting of the model has changed since, all steps are made anew.

    Before a new step is used, its first logits are compared with those of the model's own forward. The experts of a
    mixture are computed by transformers' ``batched_mm``, which gathers the weights of the experts that tokens are
    routed to and does not ask the device how many these are; with more than 8 rows by ``grouped_mm``, where the model
    has that.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``, in evaluation mode.
        blocks: Dotted path of the blocks where they cannot be found.
        max_steps: Steps of masks and shapes that are kept; the one not used for longest goes first.
        experts: Implementation of the experts in a step; None = as said above.
        capture: What makes a step repeatable: it takes the step and what resets its buffers, and gives what runs it.
            None = a CUDA graph on a GPU, the step itself elsewhere.

    Attributes:
        num_captures: Steps that were made so far.

    Raises:
        ValueError: A model that this way of decoding does not serve: without ``generate``; blocks that cannot be
            skipped, or that keep a state other than keys and values; weights that are quantised, lie on several
            devices or are split over processes; flash or flex attention, whose calls depend on values; rotary
            positions that depend on the longest row; a generation_config with penalties.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> decoder = StaticDecoder(LlamaForCausalLM(LlamaConfig(**sizes)).eval())
    >>> prompt = {"input_ids": torch.tensor([[1, 2, 3]])}
    >>> decoder.generate(prompt, [True, False, True], max_new_tokens=4).shape
    torch.Size([1, 4])
    >>> _ = decoder.generate(prompt, [True, False, True], max_new_tokens=4)
    >>> decoder.num_captures
    1
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: str | None = None,
        max_steps: int = 32,
        experts: str | None = None,
        capture: Callable[..., Any] | None = None,
    ) -> None:
        check_least(1, max_steps=max_steps)
        self.model, self.path, self.max_steps, self.experts = model, blocks, max_steps, experts
        self.blocks = find_blocks(model, blocks)
        check_serves_static(model, self.blocks)
        self.num_captures = 0
        self._capture: Capture | None = capture
        self._steps: OrderedDict[Any, _Kept] = OrderedDict()
        self._buffers: WeakValueDictionary[Any, StaticBuffers] = WeakValueDictionary()
        self._state: Any = None

    @checked
    @torch.inference_mode(False)  # what is made here is written to by later calls, inside of that mode or not
    @torch.no_grad()
    def generate(
        self,
        inputs: Mapping[str, Tensor],
        mask: Tensor | Sequence[bool],
        max_new_tokens: int,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        granularity: Granularity = "block",
        around_step: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """Greedy answers of a batch under one mask.

        Args:
            inputs: Left-padded prompt: ``input_ids`` and ``attention_mask`` ``[batch, seq]`` and the model's images.
            mask: Bool ``[num_blocks]``, True = the block runs; for sublayers ``[2 * num_blocks]``.
            max_new_tokens: Longest answer.
            eos_token_id: Token (or tokens) that end an answer; None = never.
            pad_token_id: Fills a row after its end.
            granularity: What one unit of the mask switches, see `masked`.
            around_step: Makes a context that each step runs in, such as one that times it.

        Returns:
            Long ``[batch, max_new_tokens]``, on the CPU.

        Raises:
            ValueError: As for the class; also a malformed mask, a prompt that is not padded on the left alone or too
                long, autocast, and a model whose steps on static buffers differ from its own.
        """
        check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
        inputs = prompt_inputs(self.model, inputs)
        check_goes_on(inputs, max_new_tokens, context_length(self.model))
        ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
        check_token_ids(self.model, eos_token_id=torch.tensor(ends, dtype=torch.long), pad_token_id=pad_token_id)
        chosen = MaskSet.of([mask], units_of(len(self.blocks), granularity), granularity)
        device = inputs["input_ids"].device
        check_now(self.model, device)
        if self._state != (state := state_of(self.model)):
            self._steps.clear()
            self._state = state
        masking, made = (chosen.ids[0], granularity), self.num_captures

        def answer(prompt: PreparedPrompt) -> Tensor:
            return self._decode(prompt, masking, max_new_tokens, ends, around_step)

        with masked(self.model, chosen[0], blocks=self.path, granularity=granularity):
            try:
                tokens = inside_generate(self.model, inputs, greedy_options(max_new_tokens, ends, pad_token_id), answer)
            except CannotDriveError as error:
                raise ValueError(f"static buffers do not serve {type(self.model).__name__}: {error}") from error
        if self.num_captures > made:  # a model's very first forward may have added hooks of its own
            self._state = state_of(self.model)
        is_end = torch.isin(tokens, torch.tensor(ends, dtype=torch.long))
        tokens = tokens.masked_fill(is_end.cumsum(1) - is_end.long() > 0, pad_token_id)
        return nn.functional.pad(tokens, (0, max_new_tokens - tokens.shape[1]), value=pad_token_id)

    def _decode(
        self,
        prompt: PreparedPrompt,
        masking: tuple[str, str],
        max_new_tokens: int,
        ends: list[int],
        around_step: Callable[[], AbstractContextManager[Any]],
    ) -> Tensor:
        """Tokens ``[batch, max_new_tokens or fewer]``; behind a row's end stand more."""
        if prompt.processors:  # a generation_config may have changed since the decoder was made
            names = ", ".join(type(each).__name__ for each in prompt.processors)
            raise CannotDriveError(f"its generation_config asks for a {names}")
        outputs = prompt.forward()
        first = prompt.next_tokens(outputs.logits[:, -1])[:, None]
        if max_new_tokens == 1:
            return first.cpu()
        prompt = prompt.extended(first, outputs)
        del outputs
        begun = Prompt.of(prompt.forward_inputs(num_new=1))
        experts = self.experts or _experts_for(prompt.model, begun.batch)
        with experts_by(prompt.model, experts):
            kept = self._step(prompt, begun, (*masking, experts), max_new_tokens)
            kept.buffers.load(begun)
            begun = begun._replace(keys_values=[])  # they were copied
            for step in range(1, max_new_tokens):
                with around_step():
                    kept.run()
                if ends and step % _LOOK_EVERY == 0 and _all_over(first, kept.buffers.found[:, :step], ends):
                    break
        return torch.cat([first, kept.buffers.found[:, :step]], dim=1).cpu()

    def _step(
        self, prompt: PreparedPrompt, begun: Prompt, masking: tuple[str | None, ...], max_new_tokens: int
    ) -> _Kept:
        """The step of a mask and shape, made now where there is none yet."""
        needed = begun.length + max(max_new_tokens, _COMPARED) + 1
        capacity = -(-needed // _PIECE) * _PIECE
        shape = (capacity, begun.kind())  # whatever the mask
        key = (masking, shape)
        if key in self._steps:
            self._steps.move_to_end(key)
            return self._steps[key]
        buffers = self._buffers.get(shape)
        if buffers is None:
            self._buffers[shape] = buffers = StaticBuffers(begun, capacity)
        buffers.make_room(begun)
        forward = buffers.forward(prompt.model, begun)
        if self._capture is None:
            self._capture = capture_for(begun.inputs["input_ids"].device)
        with untimed():
            _compare(self.model, buffers, forward, begun, prompt, min(_COMPARED, max_new_tokens - 1))
            try:
                run = self._capture(lambda: buffers.advance(forward()), lambda: buffers.load(begun))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # CUDA's, of a step that asks for a value while it is recorded
                raise CannotDriveError(f"a step cannot be recorded: {str(error).splitlines()[0]}") from error
        self.num_captures += 1
        self._steps[key] = _Kept(run, buffers)
        if len(self._steps) > self.max_steps:
            self._steps.popitem(last=False)
        return self._steps[key]


def _compare(
    model: nn.Module,
    buffers: StaticBuffers,
    forward: Callable[[], Tensor],
    begun: Prompt,
    prompt: PreparedPrompt,
    num_steps: int,
) -> None:
    """Raise `CannotDriveError` unless the first steps on buffers give the logits of the model's own steps."""
    buffers.load(begun)
    for _ in range(num_steps):
        found, outputs = forward(), prompt.forward(num_new=1)
        if not same_logits(model, found, outputs.logits[:, -1]):
            raise CannotDriveError("a step on them gives other logits than a step of generate")
        buffers.advance(found)
        prompt = prompt.extended(buffers.tokens.clone(), outputs)


@contextmanager
def experts_by(model: nn.Module, implementation: str | None) -> Iterator[None]:
    """The experts of a mixture are computed by another implementation; None = as they are."""
    if implementation is None or not isinstance(model, PreTrainedModel):
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation(implementation)
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _experts_for(model: nn.Module, batch: int) -> str | None:
    """An implementation of the experts that does not wait for the device; None = nothing is to be changed."""
    if not isinstance(model, PreTrainedModel):
        return None
    names = set(model.get_experts_implementation().values())
    return None if batch > _GATHERED_ROWS and "grouped_mm" in names else "batched_mm"


def _all_over(first: Tensor, found: Tensor, ends: list[int]) -> bool:
    """Whether every row has ended. This waits for the device."""
    tokens = torch.cat([first, found], dim=1)
    return bool(torch.isin(tokens, torch.tensor(ends, device=tokens.device)).any(1).all())
