"""Patch a model whose blocks are skipped, in closed form: no training, and the result is a standard checkpoint.

The idea is that of ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819): what a span of skipped blocks did to the
residual stream is approximated by a linear map, and the map is folded into the block before the span. Block b ends with
x = r + W u, where W is its MLP's down projection. The full model's state behind the span, z, is regressed on u,

    min over D of  sum over tokens of  w |z - x - D u|^2  +  ridge |D|^2,

and W becomes W + D; with D = T W this is ReplaceMe's map. Spans are fitted one after the other, each on what the model
patched so far gives to it, so that later maps make up for what earlier ones leave.

Batches with labels say more than states do: what counts are the answers. Then all linear layers from the block before
the first span on are fitted to these together, see `lit_depth.functional.healing.gauss_newton`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import checked, prompt_inputs, shorten
from lit_depth.functional.healing.gauss_newton import HELD_OUT, Run, answer_logprobs, fits, linear_maps, refit
from lit_depth.functional.healing.healed_weights import HealedWeights
from lit_depth.functional.healing.outputs import OutputMap, find_output, swapped
from lit_depth.functional.healing.ridge import RIDGES, RidgeFit
from lit_depth.functional.inputs import IGNORE, with_positions
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.masking.skip import masked, unmasked
from lit_depth.functional.masks import MaskSet
from lit_depth.functional.model_state import evaluation_mode, only_these_require_grad

# of the fit to the answers, whose steps correct each other
_RIDGE = 3.0


class PatchedSpan(NamedTuple):
    """What was fitted for one span of skipped blocks, or for all of them together, to the answers."""

    skipped: tuple[int, ...]
    block: int  # before the span
    weights: tuple[str, ...]  # those that changed: their names in the state dict
    ridge: float  # in units of the features' (gradients') mean square; infinite = nothing was better than no change
    unexplained: float  # share of the effect of skipping that is left on held-out rows: of states, or of answers
    num_tokens: int  # whose states, or labels, were fitted to


@dataclass(frozen=True, eq=False)
class Patch(HealedWeights):
    """Weights that make up for skipped blocks, in closed form; the model is unchanged until they are applied.

    Attributes:
        spans: One entry per span of skipped blocks, in order; one for all where they were fitted to answers.
    """

    spans: tuple[PatchedSpan, ...]


@checked
def patch(
    model: nn.Module,
    mask: Tensor | str | Iterable[bool],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    blocks: str | None = None,
    ridges: tuple[float, ...] = RIDGES,
    steps: int = 4,
) -> Patch:
    """Fit weights under which the model without some blocks comes close to the whole one.

    ``masked(model, mask)`` within ``patch(...).applied()`` is the healed model, and so is the checkpoint from which the
    skipped blocks were removed. No module is added, and no shape changes.

    Without ``labels`` one map per span of skipped blocks is fitted to states: the last map of the block before the
    span changes, a linear layer (the down projection of an MLP), the down projections of all experts, or, where a norm
    stands behind the MLP, the weight of that norm, one number per channel. For each span the data are read once, by the
    whole model and by the masked one. Memory is that of the products of the features (at most 4096 of them, float64),
    whatever the number of batches.

    With ``labels`` all linear layers and experts' down projections of the blocks that run, from the one before the
    first span on, are fitted together to the log-probabilities that the whole model gives to the labels of each row:
    Gauss-Newton steps, each a ridge regression in closed form. A step takes a forward and a backward pass of the masked
    model, and the gradients of three quarters of the rows are held in memory; where these take more than 4 GiB (rows x
    weights x 4 bytes), spans are fitted as above.

    Args:
        model: Any module that holds a Hugging Face decoder.
        mask: bool ``[num_blocks]`` or its id, True = the block runs. Block 0 runs: a span needs a block before it.
        batches: Calibration batches, read several times: model inputs each, padded on any side. With ``labels``
            ``[batch, seq]`` (aligned with ``input_ids``, -100 = ignored) that are the answers, several tokens or one.
            The last quarter of the rows decides how many steps are taken, so rows about one image stand together. Where
            spans are fitted, a token counts as much as the labels' logits depend on it: the squared gradient with
            respect to its state behind the span, each row divided by its sum. Without labels a token counts the inverse
            of its state's square, so that errors are relative ones; padding counts nothing.
        blocks: Dotted path of the block list where it cannot be found unambiguously.
        ridges: Strengths of the ridge that are tried on every fourth row, in units of the features' mean square; the
            fit takes all rows. Of fits to states alone.
        steps: Gauss-Newton steps at most, with ``labels``; 0 = spans are fitted, which takes less time.

    Raises:
        ValueError: A malformed mask or one that skips block 0; no ridge, or a negative one, or steps;
            batches that can be read
            only once, or of fewer than 4 rows; a block that ends with no map that can be fitted; weights that are
            quantised, offloaded or shared; a model that `masked` refuses.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=4)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes))
    >>> batches = [{"input_ids": torch.arange(32).reshape(4, 8) % 7}]
    >>> healed = patch(model, "1001", batches)
    >>> healed.spans[0].skipped, healed.spans[0].weights
    ((1, 2), ('model.layers.0.mlp.down_proj.weight',))
    """
    module_list = find_blocks(model, blocks)
    bits = mask if isinstance(mask, str | Tensor) else list(mask)
    runs = MaskSet.of([bits], len(module_list), "block")[0]
    if not runs[0]:
        raise ValueError("cannot patch a mask that skips block 0: no block before it can take its part; keep block 0")
    if not len(ridges) or not all(ridge >= 0 for ridge in ridges):  # numbers in a tensor too
        raise ValueError(f"expected ridges, none of them negative, got {ridges}")
    if steps < 0:
        raise ValueError(f"expected steps, none or more, got {steps}")
    if iter(batches) is batches:
        raise ValueError("expected batches that can be read several times (a list, a DataLoader), got an iterator")
    calibration = _Calibration(model, module_list, blocks, runs, batches)
    found: dict[nn.Parameter, Tensor] = {}
    spans: list[PatchedSpan] = []
    # a loop of Lightning runs in inference mode, whose tensors autograd refuses
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model), only_these_require_grad(model, ()):
        together = calibration.refit(steps) if steps and not runs.all() else None
        if together is not None:
            found, spans = together[0], [together[1]]
        else:
            for skipped in _spans(runs):
                new, span = calibration.fit(skipped, found, ridges)
                found |= new
                spans.append(span)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return Patch(model, runs, {names[parameter]: value for parameter, value in found.items()}, tuple(spans))


class _Calibration:
    """The model, its mask and the data that a patch is fitted on."""

    def __init__(
        self,
        model: nn.Module,
        blocks: nn.ModuleList,
        path: str | None,
        mask: Tensor,
        batches: Iterable[Mapping[str, Tensor]],
    ) -> None:
        self.model, self.blocks, self.path, self.mask, self.batches = model, blocks, path, mask, batches
        masked(model, mask, blocks=path)  # refuse early

    def fit(
        self, skipped: tuple[int, ...], found: Mapping[nn.Parameter, Tensor], ridges: tuple[float, ...]
    ) -> tuple[dict[nn.Parameter, Tensor], PatchedSpan]:
        """Fit the map of one span; ``found`` are the weights of the spans before it."""
        before = skipped[0] - 1
        output, sums, num_rows, num_tokens = None, None, 0, 0
        for batch in self.batches:
            inputs = self._inputs(batch)
            target, weights = self._target(skipped[-1], inputs, batch.get("labels"))
            with swapped(found), masked(self.model, self.mask, blocks=self.path):
                if output is None:
                    run = partial(self._run_to, before, inputs)
                    output = find_output(self.blocks[before], target.shape[-1], run)
                state, features = self._state_and_features(before, inputs, output)
            rest = (target.to(state.device).double() - state.double()).flatten(0, 1)
            rows = torch.arange(num_rows, num_rows + len(state), device=state.device)
            held_out = (rows % HELD_OUT == HELD_OUT - 1)[:, None].expand(state.shape[:2]).flatten()
            counts = weights.flatten() > 0
            sums = output.sums(features, rest) if sums is None else sums
            sums.add(features[counts], rest[counts], weights.flatten()[counts], held_out[counts])
            num_rows, num_tokens = num_rows + len(state), num_tokens + int(counts.sum())
        if output is None or sums is None:
            raise ValueError("expected calibration batches, got none")
        return self._fold(skipped, output, sums.solve(ridges), num_tokens)

    def refit(self, steps: int) -> tuple[dict[nn.Parameter, Tensor], PatchedSpan] | None:
        """Fit all linear layers from the block before the first span on to the answers; None where that cannot be.

        There are no labels, no linear layers, or too many weights.
        """
        skipped = tuple((~self.mask).nonzero().flatten().tolist())
        first = skipped[0] - 1
        kept = [block for block, runs in list(zip(self.blocks, self.mask))[first:] if runs]
        questions: list[Run] = []
        whole, num_rows, num_tokens = [], 0, 0
        maps: list[OutputMap] = []
        for batch in self.batches:
            inputs = self._inputs(batch)
            if "labels" not in batch:
                return None
            labels = _outside_inference_mode(batch["labels"])
            run = partial(self._answer_logprobs, inputs, labels)
            if not questions:
                with masked(self.model, self.mask, blocks=self.path):
                    maps = linear_maps(kept, run, labels.numel())
                check_own(self.model, [weight for each in maps for weight in each.weights()])
            questions.append(partial(self._masked, run))
            with unmasked(self.blocks):
                whole.append(run())
            num_rows, num_tokens = num_rows + len(labels), num_tokens + int((labels[:, 1:] != IGNORE).sum())
            if not maps or not fits(maps, num_rows):
                return None
        if not questions:
            raise ValueError("expected calibration batches, got none")
        new, unexplained = refit(maps, questions, whole, steps, _RIDGE)
        if not all(value.isfinite().all() for value in (*whole, *new.values())):
            raise ValueError("expected finite log-probabilities of the answers, got NaN or infinite ones")
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        changed = tuple(names[parameter] for parameter in new)
        return new, PatchedSpan(skipped, first, changed, _RIDGE if new else math.inf, unexplained, num_tokens)

    def _answer_logprobs(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        return answer_logprobs(self.model(**inputs, use_cache=False).logits, labels)

    def _masked(self, run: Callable[[], Tensor]) -> Tensor:
        with masked(self.model, self.mask, blocks=self.path):
            return run()

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model is called with."""
        if not isinstance(batch, Mapping):
            raise ValueError(f"expected batches of a model's inputs by name, got {shorten(batch)}")
        inputs = prompt_inputs(self.model, {name: value for name, value in batch.items() if name != "labels"})
        return {name: _outside_inference_mode(value) for name, value in with_positions(self.model, inputs).items()}

    def _fold(
        self, skipped: tuple[int, ...], output: OutputMap, fit: RidgeFit, num_tokens: int
    ) -> tuple[dict[nn.Parameter, Tensor], PatchedSpan]:
        own = dict(output.module.named_parameters(recurse=False))
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        new = {own[name]: value.to(own[name]) for name, value in output.folded(fit).items()}
        check_own(self.model, new)
        changed = tuple(names[parameter] for parameter in new)
        return new, PatchedSpan(skipped, skipped[0] - 1, changed, fit.ridge, fit.unexplained, num_tokens)

    def _target(self, block: int, inputs: dict[str, Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The whole model's states behind a block, ``[batch, seq, hidden]``, and what each token counts."""
        real = inputs["attention_mask"] != 0
        with unmasked(self.blocks):
            if labels is None:
                state = self._run_to(block, inputs)
                # blocks read states through a norm, so what matters is an error beside the state's own length; without
                # this the few tokens of huge activations would be all that is fitted
                square = state.double().square().sum(-1)
                weights = real.to(state.device) / square.clamp(min=torch.finfo(torch.float32).tiny)
            else:
                state, gradient = self._state_and_gradient(block, inputs, _outside_inference_mode(labels))
                weights = gradient.double().square().sum(-1) * real.to(state.device)
                weights /= weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        if state.shape[:2] != real.shape or not state.isfinite().all() or not weights.isfinite().all():
            raise ValueError(
                f"expected finite states of block {block} for tokens {list(real.shape)}, got {list(state.shape)} "
                "with NaN or infinite ones, or of another shape"
            )
        return state, weights

    def _state_and_gradient(self, block: int, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """States behind a block, and the gradient of the labels' summed logits with respect to them."""
        states: list[Tensor] = []

        def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
            states.append(_tensor(output).detach().requires_grad_())
            return states[0] if isinstance(output, Tensor) else (states[0], *output[1:])

        hook = self.blocks[block].register_forward_hook(cut)
        try:
            with torch.enable_grad():
                logits = self.model(**inputs, use_cache=False).logits[:, :-1]
                targets = labels[:, 1:].to(logits.device)
                chosen = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
                (gradient,) = torch.autograd.grad((chosen * (targets != IGNORE)).sum(), states[0])
        finally:
            hook.remove()
        return states[0].detach(), gradient

    def _state_and_features(self, block: int, inputs: dict[str, Tensor], output: OutputMap) -> tuple[Tensor, Tensor]:
        """States behind a block, and the features of its last map, ``[tokens, features]``."""
        found: list[Tensor] = []
        hook = output.module.register_forward_hook(
            lambda _module, args, given: found.append(output.features(args, given))
        )
        try:
            return self._run_to(block, inputs), found[0]
        finally:
            hook.remove()

    def _run_to(self, block: int, inputs: dict[str, Tensor]) -> Tensor:
        """The states behind a block; the blocks above it do not run."""

        def stop(_module: nn.Module, _args: Any, output: Any) -> None:
            raise _ReachedError(_tensor(output))

        hook = self.blocks[block].register_forward_hook(stop)
        try:
            self.model(**inputs, use_cache=False)
        except _ReachedError as reached:
            return reached.state
        finally:
            hook.remove()
        raise ValueError(f"expected hooks on block {block} to fire: give the model that holds the blocks, not compiled")


class _ReachedError(Exception):
    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


def _spans(mask: Tensor) -> Iterator[tuple[int, ...]]:
    """Runs of skipped blocks, in order."""
    span: list[int] = []
    for block_idx, runs in enumerate([*mask.tolist(), True]):
        if not runs:
            span.append(block_idx)
        elif span:
            yield tuple(span)
            span = []


def check_own(model: nn.Module, weights: Iterable[nn.Parameter]) -> None:
    """Refuse weights that cannot be changed, or whose change would reach another module."""
    for weight in weights:
        names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is weight]
        if len(names) > 1:
            raise ValueError(f"cannot change {names[0]}: it is shared with {', '.join(names[1:])}")
        if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise ValueError(
                f"cannot change {names[0]}, which is {weight.dtype} on {weight.device}: load the model in full "
                "precision, on devices that hold it"
            )


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _outside_inference_mode(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
