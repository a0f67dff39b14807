"""Fit the linear layers that are left to the answers: Gauss-Newton steps, each a ridge regression in closed form.

Let f be the log-probabilities that the masked model gives to the answers of the calibration questions, one number per
question, and f* those of the whole model. With weights W + D, f is about f + J D, where J holds the gradient of each
question's number. A step takes

    min over D of  |f* - f - J D|^2  +  ridge |D|^2,    D = J' (J J' + ridge)^-1 (f* - f),

so that as many equations are solved as there are questions, however many weights there are (ridge regression in its
dual form; J J' is the tangent kernel of Jacot et al. 2018, arXiv:1806.07572). Steps with a new J each are those of
Levenberg (1944) and Marquardt (1963), with a fixed damping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.healing.outputs import ExpertsMap, LinearMap, OutputMap, swapped
from lit_depth.functional.healing.ridge import RidgeFit
from lit_depth.functional.inputs import IGNORE

# nats of a question that one step asks for: further away the weights' effect is not linear
MOST_NATS = 5.0
# the share of the questions that decides when to stop: one in so many
HELD_OUT = 4
# of the gradients of all questions, in float32
MOST_BYTES = 4 * 2**30

Weights = dict[nn.Parameter, Tensor]
# runs the masked model on a batch: log-probabilities of its answers, [batch]
Run = Callable[[], Tensor]


class Refit(NamedTuple):
    """What the steps found: new ``weights``, none of them where no step helped; ``unexplained`` is the share of what
    the answers lost (in squared nats) that is left on the questions held out."""

    weights: Weights
    unexplained: float


def answer_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's labels in nats, ``[batch]``, from logits ``[batch, seq, vocab]``.

    >>> answer_logprobs(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 1]])).exp().reciprocal()
    tensor([16.])
    """
    targets = labels[:, 1:].to(logits.device)
    rows, places = (targets != IGNORE).nonzero(as_tuple=True)
    chosen = _single(logits[rows, places]).log_softmax(-1).gather(-1, targets[rows, places][:, None])[:, 0]
    return chosen.new_zeros(len(logits)).index_add(0, rows, chosen)


def linear_maps(blocks: Sequence[nn.Module], run: Callable[[], object], num_tokens: int) -> list[OutputMap]:
    """Linear layers of blocks, and experts, that run once for all tokens.

    Args:
        blocks: The blocks.
        run: Runs the model.
        num_tokens: Tokens of the run, padding among them.
    """
    calls: dict[nn.Module, list[int]] = {}
    maps = [found for block in blocks for module in block.modules() if (found := _map_of(module)) is not None]

    def count(module: nn.Module, _args: object, output: Tensor) -> None:
        calls.setdefault(module, []).append(output.shape[:-1].numel())

    with ExitStack() as stack:
        for each in maps:
            stack.callback(each.module.register_forward_hook(count).remove)
        run()
    return [each for each in maps if calls.get(each.module) == [num_tokens]]


def fits(maps: Sequence[OutputMap], num_questions: int) -> bool:
    """Whether the gradients of so many questions can be held."""
    return 4 * num_questions * sum(each.num_weights for each in maps) <= MOST_BYTES


def refit(maps: Sequence[OutputMap], runs: Sequence[Run], whole: Sequence[Tensor], steps: int, ridge: float) -> Refit:
    """Take steps as long as they help the questions that are held out, the last quarter.

    Args:
        maps: What may change.
        runs: One per batch.
        whole: Per batch, the log-probabilities ``[batch]`` of the whole model.
        steps: How many at most.
        ridge: Its strength, in units of the mean of the diagonal of J J'.

    Raises:
        ValueError: Fewer than 4 questions.
    """
    target = torch.cat(list(whole)).double()
    # the last ones, because neighbours often ask about one image
    num_fitted = len(target) - len(target) // HELD_OUT
    if num_fitted == len(target):
        raise ValueError(f"expected rows to fit and rows held out, at least {HELD_OUT}, got {len(target)}")
    best, current, least, lost = Refit({}, 1.0), Weights(), float("inf"), 0.0
    for step in range(steps + 1):
        with swapped(current):
            values, rows = _pass(maps if step < steps else (), runs, num_fitted)
            rest = (target - values).clamp(-MOST_NATS, MOST_NATS)
            left = float(rest[num_fitted:].square().sum())
            if left >= least:
                return best
            least, lost = left, lost or left
            best = Refit(current, left / lost if current else 1.0)
            if step < steps:
                found = gauss_newton_step(rows, rest[:num_fitted], ridge)
                current = _folded(maps, found)
    return best


def gauss_newton_step(gradients: Sequence[Tensor], rest: Tensor, ridge: float) -> list[Tensor]:
    """The change of weights that makes up for ``rest``, to first order.

    Args:
        gradients: Per layer ``[questions, features, outputs]``.
        rest: ``[questions]``, what is missing.
        ridge: In units of the mean square of a question's gradient.

    Returns:
        Per layer, float64 ``[features, outputs]``.
    """
    gram = torch.stack([each.flatten(1) @ each.flatten(1).T for each in gradients]).double().sum(0)
    strength = max(ridge * float(gram.diagonal().mean()), torch.finfo(torch.float64).tiny)
    parts = torch.linalg.solve(gram + strength * torch.eye(len(gram)).to(gram), rest.to(gram))
    return [torch.tensordot(parts.to(each), each, 1).double() for each in gradients]


def gradient_rows(maps: Sequence[OutputMap], run: Run) -> tuple[Tensor, list[Tensor]]:
    """What ``run`` returns, ``[questions]``, and each number's gradient per layer ``[questions, features, outputs]``.

    A question's number may depend on the tokens of its own row alone.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    with torch.enable_grad(), ExitStack() as stack:
        for each in maps:
            stack.callback(each.module.register_forward_hook(_keep(each, seen)).remove)
        values = run()
        outputs = [seen[each.module][1] for each in maps]
        gradients = torch.autograd.grad(values.sum(), outputs, allow_unused=True, materialize_grads=True)
    shape = (len(values), -1)
    rows = []
    for each, gradient in zip(maps, gradients):
        features = seen[each.module][0]
        features, gradient = (_single(x).reshape(*shape, x.shape[-1]) for x in (features, gradient))
        rows.append(features.transpose(1, 2) @ gradient)
    return values.detach(), rows


def _keep(output_map: OutputMap, seen: dict[nn.Module, tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
        kept = output if output.requires_grad else output.detach().requires_grad_()
        with torch.no_grad():
            plain = tuple(each.detach() if isinstance(each, Tensor) else each for each in args)
            seen[module] = output_map.features(plain, output.detach()), kept
        # some blocks add to the output in place
        return kept.clone()

    return hook


def _pass(maps: Sequence[OutputMap], runs: Sequence[Run], num_fitted: int) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of all questions, and the gradients of the first ones."""
    values: list[Tensor] = []
    rows: list[Tensor] = []
    start = 0
    for run in runs:
        value, found = gradient_rows(maps, run) if maps and start < num_fitted else (run(), [])
        # filled in place: parts that are joined at the end take the memory twice
        rows = rows or [each.new_empty(num_fitted, *each.shape[1:]) for each in found]
        for whole, each in zip(rows, found):
            part = whole[start : start + len(value)]
            part.copy_(each[: len(part)])
        values.append(value.double())
        start += len(value)
    return torch.cat(values), rows


def _folded(maps: Sequence[OutputMap], changes: Sequence[Tensor]) -> Weights:
    """New weights; the model has those that the changes are added to."""
    found: Weights = {}
    for each, change in zip(maps, changes):
        own: Mapping[str, nn.Parameter] = dict(each.module.named_parameters(recurse=False))
        new = each.folded(RidgeFit(change.cpu(), 0.0, 0.0))
        found |= {own[name]: value.to(own[name]) for name, value in new.items()}
    return found


def _map_of(module: nn.Module) -> OutputMap | None:
    if isinstance(module, nn.Linear):
        return LinearMap(module)
    experts = getattr(module, "down_proj", None)
    return ExpertsMap(module) if isinstance(experts, nn.Parameter) and experts.ndim == 3 else None


def _single(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
