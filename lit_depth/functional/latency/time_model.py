"""A model of time: what any mask, batch, prompt and output length takes on one machine, from a few measurements.

Each stage is a sum of costs, none of them negative: fixed ones; one for every kept attention and MLP, such as the
launch of a kernel and the reading of its weights; one for every token that goes through it, which is its arithmetic;
and in attention one for every pair of tokens. Such analytical costs are those of Pope et al. 2023 (arXiv:2211.05102),
with constants that are measured instead of taken from a data sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lit_depth.functional.arguments import check_least, checked

Floats = NDArray[np.float64]

STAGES = ("vision", "prefill", "decode_per_token")


class Request(NamedTuple):
    """What is asked of a model at once."""

    num_attentions: int
    """Kept by the mask."""
    num_mlps: int
    batch_size: int
    prompt_tokens: int
    """Of each row, images included."""
    new_tokens: int
    """Of each row."""


class StageTimes(NamedTuple):
    """Milliseconds of a request's stages."""

    vision: float
    prefill: float
    decode_per_token: float | None
    """None of a single new token, which takes no decode step."""

    def total(self, new_tokens: int) -> float:
        """Milliseconds of the whole request.

        >>> StageTimes(3.0, 20.0, 2.0).total(new_tokens=4)
        29.0
        """
        return self.vision + self.prefill + (new_tokens - 1) * (self.decode_per_token or 0.0)


class Errors(NamedTuple):
    """Relative errors of predictions for masks that were not fitted."""

    median: float
    largest: float
    num_predictions: int


@dataclass(frozen=True)
class TimeModel:
    """The constants of one model on one machine; make it with `fit_time_model`.

    Attributes:
        constants: Milliseconds by stage and cost, see `cost_names`.
        whole_blocks: No mask that was measured keeps one half of a block: the halves are not told apart.
        held_out: By stage, and of the ``total``: errors for masks that were left out of the fit; None of a single mask.
        ranges: Smallest and largest batch, prompt and output that were measured; beyond them it extrapolates.
        machine: What the constants are true of.
    """

    constants: Mapping[str, Mapping[str, float]]
    whole_blocks: bool
    held_out: Mapping[str, Errors] | None
    ranges: Mapping[str, tuple[int, int]]
    machine: Mapping[str, Any] = field(default_factory=dict)

    @checked
    def predict(self, request: Request) -> StageTimes:
        """Predicted milliseconds.

        Raises:
            ValueError: If a number of the request is below 1 (of halves below 0), halves are asked for that were not
                measured, or decode steps of which none was.
        """
        check_least(0, num_attentions=request.num_attentions, num_mlps=request.num_mlps)
        sizes = request._asdict()
        check_least(1, **{name: sizes[name] for name in ("batch_size", "prompt_tokens", "new_tokens")})
        if self.whole_blocks and request.num_attentions != request.num_mlps:
            raise ValueError(
                "expected a mask of whole blocks, as were measured, got one of halves: fit the model of time on masks "
                "of halves too"
            )
        if request.new_tokens > 1 and not self.constants["decode_per_token"]:
            raise ValueError("expected requests of one new token, as were measured: fit on requests of several")
        vision, prefill, step = (self._stage(stage, request) for stage in STAGES)
        return StageTimes(vision, prefill, step if request.new_tokens > 1 else None)

    def extrapolates(self, request: Request) -> bool:
        """Whether a request lies outside what was measured."""
        return any(not low <= getattr(request, name) <= high for name, (low, high) in self.ranges.items())

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; `from_dict` reads it."""
        held_out = {stage: errors._asdict() for stage, errors in (self.held_out or {}).items()} or None
        ranges = {name: list(limits) for name, limits in self.ranges.items()}
        return {**asdict(self), "held_out": held_out, "ranges": ranges}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            ValueError: If it is something else.
        """
        try:
            errors = content["held_out"]
            held_out = None if errors is None else {name: Errors(**each) for name, each in errors.items()}
            constants = {stage: {name: float(v) for name, v in content["constants"][stage].items()} for stage in STAGES}
            ranges = {name: (int(low), int(high)) for name, (low, high) in content["ranges"].items()}
            return cls(constants, bool(content["whole_blocks"]), held_out, ranges, dict(content["machine"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"expected a model of time as `lit-depth latency` writes it ({error})") from error

    def _stage(self, stage: str, request: Request) -> float:
        constants, costs = self.constants[stage], _costs(stage, request)
        return float(sum(constant * costs[name] for name, constant in constants.items()))


def _costs(stage: str, request: Request) -> dict[str, float]:
    """How often each cost of a stage occurs; pairs of tokens per thousand."""
    attentions, mlps, rows, prompt, new = request
    if stage == "vision":
        return {"fixed": 1, "row": rows}
    # each step reads what is in the cache by then: on average the prompt and half of what is new
    tokens, pairs = (rows * prompt, rows * prompt * prompt) if stage == "prefill" else (rows, rows * (prompt + new / 2))
    return {
        "fixed": 1,
        "token": tokens,
        "attention": attentions,
        "mlp": mlps,
        "attention_token": attentions * tokens,
        "mlp_token": mlps * tokens,
        "attention_pair": attentions * pairs / 1000,
    }


def cost_names(stage: str) -> tuple[str, ...]:
    """Names of a stage's costs: ``fixed``, of each ``token``, of each kept ``attention`` or ``mlp``, ...

    >>> cost_names("vision")
    ('fixed', 'row')
    """
    return tuple(_costs(stage, Request(1, 1, 1, 1, 1)))


@checked
def fit_time_model(
    requests: Sequence[Request], times: Sequence[StageTimes], machine: Mapping[str, Any] | None = None
) -> TimeModel:
    """Fit the constants by non-negative least squares of relative errors, on the medians of equal requests.

    The error of a prediction is measured on masks that were left out: every number of kept halves is predicted by a fit
    to the others.

    Args:
        requests: That were measured.
        times: Milliseconds of each.
        machine: Kept with the constants.

    Raises:
        ValueError: No request, or lists of different lengths.

    >>> requests = [Request(n, n, rows, 50, 4) for n in (1, 2, 4) for rows in (1, 2)]
    >>> times = [StageTimes(3.0, 5.0 + 2.0 * n, 1.0 + 0.5 * n) for n, _, rows, *_ in requests]
    >>> predicted = fit_time_model(requests, times).predict(Request(3, 3, 1, 50, 4))
    >>> round(predicted.prefill, 3), round(predicted.total(4), 3)
    (11.0, 21.5)
    """
    if not len(requests) or len(requests) != len(times):
        raise ValueError(f"expected as many times as requests, got {len(times)} and {len(requests)}")
    distinct = dict.fromkeys(requests)
    medians = [_median([time for each, time in zip(requests, times) if each == request]) for request in distinct]
    known = list(distinct)
    whole_blocks = all(each.num_attentions == each.num_mlps for each in known)
    kept = [(each.num_attentions, each.num_mlps) for each in known]
    held_out: dict[str, Errors] | None = None
    if len(set(kept)) > 1:
        pairs: list[tuple[Request, StageTimes, StageTimes]] = []
        for left_out in dict.fromkeys(kept):
            rest = [index for index, each in enumerate(kept) if each != left_out]
            constants = _fit([known[i] for i in rest], [medians[i] for i in rest], whole_blocks)
            without = TimeModel(constants, whole_blocks, None, {})
            for index, each in enumerate(kept):
                if each == left_out:
                    pairs.append((known[index], without.predict(known[index]), medians[index]))
        held_out = _errors(pairs)
    ranges = {
        name: (min(values), max(values))
        for name in ("batch_size", "prompt_tokens", "new_tokens")
        if (values := [getattr(each, name) for each in known])
    }
    return TimeModel(_fit(known, medians, whole_blocks), whole_blocks, held_out, ranges, dict(machine or {}))


def _median(times: Sequence[StageTimes]) -> StageTimes:
    steps = [each.decode_per_token for each in times if each.decode_per_token is not None]
    vision, prefill = (float(np.median([each[stage] for each in times])) for stage in (0, 1))
    return StageTimes(vision, prefill, float(np.median(steps)) if steps else None)


def _fit(requests: Sequence[Request], times: Sequence[StageTimes], whole_blocks: bool) -> dict[str, dict[str, float]]:
    return {
        stage: _fit_stage(stage, requests, [getattr(each, stage) for each in times], whole_blocks) for stage in STAGES
    }


def _fit_stage(
    stage: str, requests: Sequence[Request], times: Sequence[float | None], whole_blocks: bool
) -> dict[str, float]:
    """Constants of one stage; none where it was never seen."""
    rows = [(request, time) for request, time in zip(requests, times) if time is not None]
    if not rows:
        return {}
    # of whole blocks the attention's costs stand for both halves
    names = [name for name in cost_names(stage) if not (whole_blocks and name.startswith("mlp"))]
    table = np.array([[_costs(stage, request)[name] for name in names] for request, _ in rows], dtype=float)
    target = np.array([time for _, time in rows], dtype=float)
    table /= np.maximum(target, 1e-9)[:, None]  # each row's error counts relative to its time
    sizes = np.linalg.norm(table, axis=0)
    sizes[sizes == 0] = 1.0
    found, _ = nnls(table / sizes, (target > 0).astype(float))
    return dict(zip(names, (found / sizes).tolist()))


def _errors(pairs: Sequence[tuple[Request, StageTimes, StageTimes]]) -> dict[str, Errors]:
    shares: dict[str, list[float]] = {name: [] for name in (*STAGES, "total")}
    for request, predicted, measured in pairs:
        told = {**predicted._asdict(), "total": predicted.total(request.new_tokens)}
        true = {**measured._asdict(), "total": measured.total(request.new_tokens)}
        for name, found in shares.items():
            if true[name]:
                found.append(abs(told[name] / true[name] - 1))
    return {
        name: Errors(float(np.median(found)), float(max(found)), len(found)) for name, found in shares.items() if found
    }
