"""Proxy scores of block importance from calibration batches: one forward and one backward give all of them.

Notation: x(t) and y(t) are the hidden states that enter and leave a block at token t, taken from the block itself
(what transformers calls the last hidden state has passed the final norm). t runs over all tokens of all batches except
padding, each of the same weight. L is the mean cross entropy over all labelled tokens of all batches, without the
auxiliary loss of a router; w is one weight of the block and g = dL/dw.

| method | score of a block | unit, range |
|---|---|---|
| ``activation_magnitude`` | mean of norm(y) | that of hidden states, from 0 |
| ``relative_magnitude`` | mean of norm(y - x) / norm(y) | from 0 |
| ``block_influence`` | 1 - mean of cos(x, y) | 0 to 2 |
| ``angular_distance`` | mean of arccos(cos(x, y)) / pi | 0 to 1 |
| ``angular_distance_last_token`` | the same over each row's last token only | 0 to 1 |
| ``gradient`` | sum of abs(g) over the block's weights | nats per unit of weight, from 0 |
| ``taylor`` | sum of abs(w g) | nats, from 0 |
| ``taylor_signed`` | sum of w g | nats |
| ``weight_magnitude`` | sum of abs(w) | unit of a weight, from 0; no sample is needed |
| ``attention_entropy`` | mean over heads and queries of -sum p ln p | nats, 0 to ln(seq) |

Norms are Euclidean, p are the attention weights of one query (keys that it cannot see have p = 0). A state of zeros,
such as the embedding of a padding token, has no direction: where x = y = 0 all distances are 0, where one of them is 0
the cosine is 0 and relative magnitude 1. States, losses and gradients that are NaN or infinite are an error, never a
score.

Higher is taken as more important, with two exceptions: L is expected to grow by *minus* ``taylor_signed`` when the
weights become zero, and entropy has no agreed direction (high = the block spreads its attention).

Sources. Block influence: Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You
Expect*, which also compares relative magnitude. Angular distance: Gromov et al. 2024, *The Unreasonable Ineffectiveness
of the Deeper Layers*, which takes it at the last token. Gradient and Taylor: Molchanov et al. 2019, *Importance
Estimation for Neural Network Pruning*; Michel et al. 2019, *Are Sixteen Heads Really Better than One?* (both score
other units than blocks, and Molchanov et al. square what is here an absolute value). Weight magnitude: Li et al. 2017,
*Pruning Filters for Efficient ConvNets*; of whole blocks Kim et al. 2024, *Shortened LLaMA: Depth Pruning for Large
Language Models with Comparison of Retraining Methods*, as a baseline. Attention entropy: Clark et al.
2019, *What Does BERT Look At? An Analysis of BERT's Attention*.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import check_token_ids, checked, prompt_inputs
from lit_depth.functional.importance.methods import (
    GRADIENT_METHODS,
    METHODS,
    TABLE,
    Kind,
    Method,
    at_least_float32,
    check_methods,
    find_method,
)
from lit_depth.functional.importance.recorder import BlockRecorder, check_values
from lit_depth.functional.inputs import IGNORE, keep_last, with_positions
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.model_state import eager_attention, evaluation_mode, only_these_require_grad


@checked
def proxy_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    methods: Sequence[str] = METHODS,
    *,
    blocks: str | nn.ModuleList | None = None,
) -> dict[str, Tensor]:
    """Scores of every block over all ``batches``; see `ProxyScores` for arguments and errors.

    Args:
        batches: Model inputs each, with ``labels`` where a gradient method is asked for.

    Returns:
        Method -> float64 ``[num_blocks]`` on the CPU.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> model, ids = LlamaForCausalLM(LlamaConfig(**sizes)), torch.tensor([[1, 2, 3], [4, 5, 6]])
    >>> scores = proxy_importance(model, [{"input_ids": ids, "labels": ids}], ["taylor", "block_influence"])
    >>> {method: list(values.shape) for method, values in scores.items()}
    {'taylor': [3], 'block_influence': [3]}
    """
    scores = ProxyScores(model, methods, blocks)
    for batch in batches:
        scores.update(batch)
    return scores.compute()


class ProxyScores:
    """Accumulates proxy scores over batches: `update` for each, `compute` at the end.

    Scores belong to all samples together and do not depend on how these are cut into batches: hidden states and
    attention are averaged over tokens, and the gradient is that of L over everything (gradients of the batches' summed
    losses are added up, divided by the number of labelled tokens, and only then made absolute). So gradient methods
    keep one gradient of the blocks' weights, in float32, from the first batch to the last, and hold a second one in the
    weights' own format during an update. Nothing but the blocks gets a gradient: no embeddings, vision tower or head.

    The model is changed during `update` alone, and given back exactly, also after an exception: training mode (updates
    run in evaluation mode), ``requires_grad`` flags, hooks, attention implementation. ``.grad`` is not touched. For the
    attention entropy the decoder runs with eager attention, through transformers' ``set_attn_implementation``: other
    implementations do not return weights. The switch is an entry of the decoder's config, which is restored by value;
    the other methods are then taken under eager attention too, equal but for rounding.

    A block skipped by `masked` is scored as the identity it is. A block without attention weights (skipped, or of
    linear attention) has NaN for entropy.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        methods: Some of :data:`METHODS`, or functions of one's own by their dotted paths, see
            `lit_depth.functional.importance.methods.find_method`.
        blocks: The blocks, or their dotted path, where they cannot be found.

    Raises:
        ValueError: Unknown or no methods; no decoder blocks; a gradient method for weights that cannot take a gradient
            (quantised or offloaded).

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> scores = ProxyScores(LlamaForCausalLM(LlamaConfig(**sizes)), ["attention_entropy"])
    >>> scores.update({"input_ids": torch.tensor([[1]])})
    >>> scores.compute()["attention_entropy"] + 0.0  # a token that sees but itself
    tensor([0., 0., 0.], dtype=torch.float64)
    """

    @checked
    def __init__(
        self, model: nn.Module, methods: Sequence[str] = METHODS, blocks: str | nn.ModuleList | None = None
    ) -> None:
        self.methods = check_methods(methods)
        self._table = [find_method(name) for name in self.methods]
        self.model = model
        self.blocks = blocks if isinstance(blocks, nn.ModuleList) else find_blocks(model, blocks)
        self.decoder = find_decoder(model, self.blocks)
        self._weights: list[nn.Parameter] = []
        if self.needs_labels:
            _check_weights(model, self.blocks)
            self._weights = list(dict.fromkeys(self.blocks.parameters()))
        if self._of_kind("weight"):
            _check_readable(model, self.blocks, [method.name for method in self._of_kind("weight")])
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._num_labels = 0
        # method -> [sum, number of tokens or rows] x blocks
        self._totals = {
            method.name: torch.zeros(2, len(self.blocks), dtype=torch.float64)
            for method in self._table
            if method.kind not in ("gradient", "weight")
        }

    @property
    def needs_labels(self) -> bool:
        """Whether a gradient method was asked for."""
        return bool(self._of_kind("gradient"))

    def _of_kind(self, kind: Kind) -> list[Method]:
        return [method for method in self._table if method.kind == kind]

    @checked
    def update(self, inputs: Mapping[str, Tensor], labels: Tensor | None = None) -> None:
        """Add a batch: one forward, and one backward where a gradient method was asked for.

        Args:
            inputs: Model inputs: ``input_ids`` ``[batch, seq]``; ``attention_mask`` ``[batch, seq]``, 1 = real token,
                padding on either side (absent: every token is real); whatever else the model takes.
            labels: ``[batch, seq]``, aligned with ``input_ids``, -100 = ignored, as are padding and what follows on it
                (a row's first token). Default: ``inputs["labels"]``. Needed by gradient methods only.

        Raises:
            ValueError: Inputs or labels of the wrong shape, or missing ones; attention weights unavailable; a block
                that did not run; states, attention weights or a loss that are NaN or infinite; gradient methods for a
                model without logits of tokens. The batch is then not counted.
        """
        if len(self._of_kind("weight")) == len(self._table):
            return
        # a loop of Lightning runs in inference mode, whose tensors autograd refuses
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_labels), ExitStack() as stack:
            inputs = {name: _outside_inference_mode(value) for name, value in inputs.items()}
            given_labels = inputs.pop("labels", None)
            labels = given_labels if labels is None else _outside_inference_mode(labels)
            inputs = prompt_inputs(self.model, inputs)
            stack.enter_context(evaluation_mode(self.model))
            if self._of_kind("attention"):
                stack.enter_context(eager_attention(self.decoder))
            recorder = stack.enter_context(BlockRecorder(self.blocks, inputs["attention_mask"], self._table))
            targets, keep = None, 1
            if self.needs_labels:
                targets = _from_first_label(labels, inputs["attention_mask"])
                check_token_ids(self.model, labels=targets[targets != IGNORE])
                keep = targets.shape[1]
                stack.enter_context(only_these_require_grad(self.model, self._weights))
            extras = {"use_cache": False, **keep_last(self.model, keep)}
            output = self.model(**with_positions(self.model, inputs), **extras)
            recorder.check(self.decoder)
            if targets is not None:
                self._add_gradients(self._logits(output, keep), targets)
        for method, total in recorder.totals().items():
            self._totals[method] = self._totals[method] + total

    def _logits(self, output: Any, keep: int) -> Tensor:
        """The last logits ``[batch, keep, vocabulary]`` of what the model returned."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[1] < keep:
            given = list(logits.shape) if isinstance(logits, Tensor) else "none"
            raise ValueError(
                f"gradient methods ({', '.join(GRADIENT_METHODS)}) need logits [batch, seq, vocabulary], and "
                f"{type(self.model).__name__} gave {given}; choose other methods"
            )
        return logits[:, -keep:]

    def _add_gradients(self, logits: Tensor, labels: Tensor) -> None:
        targets = labels[:, 1:].to(logits.device)
        num_labels = int((targets != IGNORE).sum())
        if num_labels == 0:
            return
        # the sum over tokens, so that batches add up
        loss = nn.functional.cross_entropy(
            at_least_float32(logits[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        if not loss.isfinite():
            raise ValueError(f"expected a finite loss on labelled tokens, got {loss.item()} from this batch")
        gradients = list(torch.autograd.grad(loss, self._weights, allow_unused=True))
        owned = set()
        for weight in reversed(self._weights):
            gradient = gradients.pop()
            if gradient is None:
                continue
            if weight in self._gradients:
                self._gradients[weight] += gradient
            else:
                # autograd may return one tensor for two weights, or an expanded one: neither can be added to in place
                shared = gradient.data_ptr() in owned or not gradient.is_contiguous()
                owned.add(gradient.data_ptr())
                self._gradients[weight] = at_least_float32(gradient, copy=shared)
        self._num_labels += num_labels

    def reduce(self, all_sum: Callable[[Tensor], Tensor]) -> None:
        """Pool the batches of several processes; each calls this once, after its last update."""
        self._totals = {method: all_sum(total) for method, total in self._totals.items()}
        self._num_labels = int(all_sum(torch.tensor([self._num_labels])))
        for weight in self._weights:
            if weight not in self._gradients:
                self._gradients[weight] = torch.zeros_like(at_least_float32(weight))
            self._gradients[weight] = all_sum(self._gradients[weight])

    @torch.inference_mode(False)
    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        """Scores of everything added so far.

        Returns:
            Method -> float64 ``[num_blocks]`` on the CPU, in the order of ``methods``.

        Raises:
            ValueError: No token was added, or no labelled one for a gradient method; gradients are not finite.
        """
        if self.needs_labels and self._num_labels == 0:
            raise ValueError("expected labelled tokens for gradient methods, got none (labels are -100 throughout)")
        scores = {method: total[0] / total[1] for method, total in self._totals.items()}
        if self.needs_labels:
            by_block = [self._gradient_scores(block_idx, block) for block_idx, block in enumerate(self.blocks)]
            scores |= {name: torch.stack([each[name] for each in by_block]) for name in by_block[0]}
        elif self._totals and not any(total[1].any() for total in self._totals.values()):
            raise ValueError("expected at least one batch with a token that is not padding, got none")
        for method in self._of_kind("weight"):
            scores[method.name] = torch.stack([_weight_score(method, block) for block in self.blocks])
        return {method: scores[method] for method in self.methods}

    def _gradient_scores(self, block_idx: int, block: nn.Module) -> dict[str, Tensor]:
        """Scores of one block by the gradient methods that were asked for."""
        methods = self._of_kind("gradient")
        sums = {method.name: torch.zeros((), dtype=torch.float64) for method in methods}
        for name, weight in block.named_parameters():
            if weight not in self._gradients:
                continue
            for gradient, piece in _pieces(self._gradients[weight], weight):
                for method in methods:
                    value = method.function(gradient=gradient, weight=piece)
                    sums[method.name] += check_values(method, value, ()).cpu()
            if not all(each.isfinite() for each in sums.values()):
                raise ValueError(
                    f"expected finite gradients, got NaN or infinite ones for {name} of block {block_idx}; numbers "
                    "of 16 bits overflow: load the model in float32"
                )
        return {name: each / self._num_labels for name, each in sums.items()}


def _from_first_label(labels: Tensor | None, attention_mask: Tensor) -> Tensor:
    """Labels from one position before the first that counts in any row: no logits are needed before it."""
    if labels is None:
        raise ValueError(
            f"gradient methods ({', '.join(GRADIENT_METHODS)}) need labels [batch, seq], got none; without labels, "
            "choose other methods"
        )
    shape = list(attention_mask.shape)
    if list(labels.shape) != shape:
        raise ValueError(f"expected labels of the shape of input_ids {shape}, got {list(labels.shape)}")
    real = (attention_mask != 0).to(labels.device)
    labels = labels.masked_fill(~(real & real.roll(1, dims=1)), IGNORE)
    counting = (labels[:, 1:] != IGNORE).any(0).nonzero()
    return labels[:, int(counting[0]) if len(counting) else shape[1] - 1 :]


def _weight_score(method: Method, block: nn.Module) -> Tensor:
    """Sum of a method's values over the weights of one block."""
    values = [method.function(weight=piece) for weight in block.parameters() for piece in weight.flatten().split(2**26)]
    return sum((check_values(method, value, ()).cpu() for value in values), torch.zeros((), dtype=torch.float64))


def _pieces(gradient: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a gradient and of its weight tensor, ``[n]`` each."""
    # products of a whole tensor would be written to memory and read again: on a CPU small pieces are 15 times as fast,
    # and what float32 loses in the sum of one piece is nothing beside its rounding of the gradient
    size = 2**15 if gradient.device.type == "cpu" else 2**26
    return zip(gradient.flatten().split(size), weight.flatten().split(size))


def _check_weights(model: nn.Module, blocks: nn.ModuleList) -> None:
    reason = next(_reasons_against_gradients(model, blocks), None)
    if reason is not None:
        others = ", ".join(name for name, method in TABLE.items() if method.kind not in ("gradient", "weight"))
        raise ValueError(
            f"{', '.join(GRADIENT_METHODS)} need weights that can take a gradient, but {reason}; "
            f"load the model in full precision, or choose among {others}"
        )


def _check_readable(model: nn.Module, blocks: nn.ModuleList, names: Sequence[str]) -> None:
    reason = next(_reasons_against_reading(model, blocks), None)
    if reason is not None:
        raise ValueError(
            f"{', '.join(names)} needs the weights themselves, but {reason}; load the model in full precision, or "
            "choose other methods"
        )


def _reasons_against_gradients(model: nn.Module, blocks: nn.ModuleList) -> Iterator[str]:
    yield from _reasons_against_reading(model, blocks)
    for block_idx, block in enumerate(blocks):
        for name, weight in block.named_parameters():
            if weight.is_inference():
                yield f"{name} of block {block_idx} was made in inference mode"


def _reasons_against_reading(model: nn.Module, blocks: nn.ModuleList) -> Iterator[str]:
    if any(getattr(module, "is_quantized", False) for module in model.modules()):
        yield f"{type(model).__name__} is quantised"
    for block_idx, block in enumerate(blocks):
        if next(block.parameters(), None) is None:
            yield f"block {block_idx} has no parameters (quantised ones may be buffers)"
        for name, weight in block.named_parameters():
            # fewer than 16 bits are storage formats that no layer differentiates
            if not weight.is_floating_point() or weight.dtype.itemsize < 2:
                yield f"{name} of block {block_idx} is {weight.dtype} (quantised?)"
            if weight.is_meta:
                yield f"{name} of block {block_idx} is not in memory (offloaded?)"


def _outside_inference_mode(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
