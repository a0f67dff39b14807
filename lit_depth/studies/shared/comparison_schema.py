"""Shape of ``m5_mask_strategy_comparison.json``, declared once as types and checked against them.

What results of earlier versions lack is `NotRequired`.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on


def _ordered(value: Any) -> Any:
    if isinstance(value, list):  # what is no list is told as that
        numbers = len(value) == 2 and all(isinstance(limit, (int, float)) for limit in value)
        if not (numbers and value[0] <= value[1]):
            raise PydanticCustomError("interval", "[low, high]")
    return value


Interval = Annotated[list[float], BeforeValidator(_ordered)]

Policy = str
"""Name of the rule that made a mask: prefix, suffix, uniform, random, importance, ..."""


class Summary(TypedDict):
    """Distribution of one stage's time over the samples, in milliseconds. P99 is null where samples are too few."""

    P50: float
    P95: float
    P99: float | None
    mean: float
    std: float
    min: float
    max: float


class Latency(TypedDict):
    """Times of one request, in milliseconds."""

    vision: Summary
    prefill: Summary
    decode_per_token: Summary
    total: Summary


class Agreement(TypedDict):
    """How one mask, or the mean over several, answers beside the full model; what was not recorded is left out.

    Shares of the samples, see `lit_depth.studies.shared.against_full`; ``first_difference`` is a median over
    ``num_different`` answers, and ``tokens_per_check`` a mean. Every interval stands alone.
    """

    same_answer: NotRequired[float]
    same_answer_ci: NotRequired[Interval]
    right_to_wrong: NotRequired[float]
    right_to_wrong_ci: NotRequired[Interval]
    wrong_to_right: NotRequired[float]
    wrong_to_right_ci: NotRequired[Interval]
    flips: NotRequired[float]
    flips_ci: NotRequired[Interval]
    num_different: NotRequired[int]
    first_difference: NotRequired[float | None]
    first_difference_ci: NotRequired[Interval | None]
    reference_agreement: NotRequired[float]
    reference_agreement_ci: NotRequired[Interval]
    acceptance: NotRequired[float]
    acceptance_ci: NotRequired[Interval]
    tokens_per_check: NotRequired[float]
    tokens_per_check_ci: NotRequired[Interval]


class Effect(TypedDict):
    """Quality of one mask, or of the mean over several.

    ``drop`` is quality(full) - quality(mask), paired by sample. Its simultaneous interval, null for the full model, is
    among those of all masks of the report. Intervals are [low, high].
    """

    quality: float
    quality_ci: Interval
    drop: float
    drop_ci: Interval
    drop_simultaneous_ci: NotRequired[Interval | None]
    drop_p_holm: NotRequired[float | None]
    reference_logprob: float
    latency_ms: Latency | None
    agreement: NotRequired[Agreement | None]


class MaskResult(Effect):
    """One mask."""

    mask_id: str
    seed: int | None
    active_block_indices: list[int]
    num_distinct_answers: NotRequired[int | None]


class Strategy(Effect):
    """One policy at one number of active blocks; the mean over its masks (several for random)."""

    policy: Policy
    num_active_blocks: int
    num_total_blocks: int
    masks: list[MaskResult]


class PairwiseComparison(TypedDict):
    """Policy a minus policy b at one number of active blocks (null: mean over all numbers).

    ``ci`` goes with ``p_value``; ``simultaneous_ci``, of the whole family, with ``p_holm`` and the verdict.
    """

    a: Policy
    b: Policy
    num_active_blocks: int | None
    difference: float
    ci: Interval
    simultaneous_ci: NotRequired[Interval]
    p_value: float
    p_holm: float
    verdict: Literal["a", "b", "tie", "withheld"]


class Tie(TypedDict):
    """At this number of active blocks, blocks on both sides of the cut whose order is noise; some of them are kept."""

    num_active_blocks: int
    blocks: list[int]
    kept: list[int]


class Importance(TypedDict):
    """What the importance policy was made from; keys are block indices.

    Intervals, tests and ties are null where the scores come from a file without them.
    """

    source: str
    num_samples: int
    scores: dict[str, float]
    intervals: dict[str, Interval] | None
    simultaneous_intervals: NotRequired[dict[str, Interval] | None]
    p_holm: NotRequired[dict[str, float] | None]
    # in memory by block, in a file by its text
    tied_with: NotRequired[dict[str | int, list[int]] | None]
    ties: NotRequired[list[Tie] | None]


class Reading(TypedDict):
    """What one metric reads in the answers under one mask.

    ``parse_failed`` is the share of answers in which it finds no option, null where it looks for none.
    """

    quality: float
    quality_ci: Interval
    parse_failed: float | None


class Answer(TypedDict):
    """One question answered; the numbers behind it may stand beside as further keys."""

    answer: Literal["yes", "no", "depends on depth", "not shown", "withheld"]
    text: str


class Answers(TypedDict):
    """The questions that the comparison is run for; null where its policies were not run."""

    importance_beats_prefix: Answer | None
    random_worse_than_prefix: Answer | None
    choice_of_blocks_matters: Answer | None
    depth_is_a_scalar: Answer | None


class ChosenMask(TypedDict):
    """The best mask of a decision: its drop as it looks where it was chosen, and corrected for the choice."""

    mask_id: str
    num_options: int
    num_rivals: int
    drop: float
    drop_ci: Interval
    corrected_drop: float
    corrected_drop_ci: Interval


class Decision(TypedDict):
    """Which mask is best at one size (``name``), and how firmly, see `lit_depth.studies.shared.decisions`."""

    name: str
    skipped: list[int]
    inclusion: dict[str, float]
    repeated: float
    agreement: float
    samples_needed: int | None
    num_samples: int
    best: ChosenMask


class Regret(TypedDict):
    """What the best masks by one task's scores cost on another's, against its own best masks."""

    chosen: str
    paid: str
    regret: float
    regret_ci: Interval
    regret_simultaneous_ci: Interval
    p_holm: float
    num_shared: int
    num_choices: int


class Baseline(TypedDict):
    """The best constant answer: the same text (null: one for each of several tasks) in answer to every question.

    ``difference`` is quality(full) - quality(constant), paired by sample; ``beaten`` if its interval lies above 0.
    ``reason`` says why the answer was found on the very questions reported on, and is null if it was not.
    """

    answer: str | None
    quality: float
    quality_ci: Interval
    difference: float
    difference_ci: Interval
    p_value: float
    beaten: bool
    split: str
    num_candidates: int
    reason: str | None


# strict: Python counts true as a number, and a text of digits would be read as one
@with_config(ConfigDict(strict=True, allow_inf_nan=False))
class Comparison(TypedDict):
    """The whole file; of several tasks with the result of each. Further keys are allowed at every level."""

    command: str
    task: str
    metric: str
    max_score: NotRequired[float | None]  # largest possible quality; null of log-probabilities
    num_blocks: int
    num_samples: int
    num_bad_samples: int
    confidence: float
    importance: Importance
    full: MaskResult
    strategies: list[Strategy]
    comparisons: list[PairwiseComparison]
    answers: Answers
    baseline: NotRequired[Baseline | None]
    model: NotRequired[dict[str, str | int | None]]
    latency_requests: NotRequired[int | None]
    # device, threads, batch_size and new_tokens; and of each timed mask and stage an interval of the median
    latency_settings: NotRequired[dict[str, Any]]
    latency_limits_ms: NotRequired[dict[str, dict[str, Interval]]]
    # of each mask by stage, in one request: floating-point operations
    flops: NotRequired[dict[str, dict[str, int]]]
    # by metric and mask, where the same answers are read in several ways
    readings: NotRequired[dict[str, dict[str, Reading]]]
    decisions: NotRequired[list[Decision]]
    undecided: NotRequired[dict[str, str]]  # by name, why there is no decision
    regret: NotRequired[list[Regret]]  # of several tasks
    tasks: NotRequired[list["Comparison"]]


_COMPARISON = TypeAdapter(Comparison)
_EXPECTED = {
    "dict_type": "an object",
    "list_type": "a list",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "int_type": "int",
    "string_type": "str",
    "bool_type": "true or false",
}


def validate_comparison(obj: Any) -> Comparison:
    """Check a comparison result, as built or as read from JSON, against its schema and itself, and return it.

    Raises:
        ValueError: Naming the first wrong field, such as ``strategies[2].masks[0].quality``.
    """
    try:
        _COMPARISON.validate_python(obj)
    except ValidationError as error:
        raise ValueError(_first_wrong(error.errors(include_url=False)[0])) from None
    _check_masks(obj, "")
    for i, task in enumerate(obj.get("tasks", ())):
        _check_masks(task, f"tasks[{i}].")
    return obj


def _check_masks(obj: Comparison, place: str) -> None:
    num_blocks = obj["num_blocks"]
    _check_mask(obj["full"], num_blocks, num_blocks, f"{place}full")
    for i, strategy in enumerate(obj["strategies"]):
        where, total, masks = f"{place}strategies[{i}]", strategy["num_total_blocks"], strategy["masks"]
        _require(total == num_blocks, f"{where}.num_total_blocks", num_blocks, total)
        _require(len(masks) > 0, f"{where}.masks", "at least one mask", masks)
        for j, mask in enumerate(masks):
            _check_mask(mask, num_blocks, strategy["num_active_blocks"], f"{where}.masks[{j}]")


def _check_mask(mask: MaskResult, num_blocks: int, num_active: int, where: str) -> None:
    name, given = mask["mask_id"], mask["active_block_indices"]
    bits = len(name) == num_blocks and set(name) <= set("01")
    _require(bits, f"{where}.mask_id", f"{num_blocks} characters 0 or 1", name)
    _require(name.count("1") == num_active, f"{where}.mask_id", f"{num_active} active blocks", name)
    active = [block for block, bit in enumerate(name) if bit == "1"]
    _require(given == active, f"{where}.active_block_indices", f"{active} (mask {name})", given)


def _first_wrong(error: ErrorDetails) -> str:
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"]).lstrip(".")
    kind, given = error["type"], error["input"]
    if kind == "missing":  # pydantic gives the object that lacks the field
        return f"{where}: expected this field, got only {sorted(given)}"
    expected = _EXPECTED.get(kind, error["msg"])
    if kind == "literal_error":
        expected = f"one of [{error['ctx']['expected'].replace(' or ', ', ')}]"
    return f"{where or 'comparison'}: expected {expected}, got {given!r}"


def _require(condition: bool, where: str, expected: Any, value: Any) -> None:
    if not condition:
        raise ValueError(f"{where}: expected {expected}, got {value!r}")
