"""What a run would be able to show, and what it would compute, told before anything is measured."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from lit_depth.data import DepthDataModule
from lit_depth.functional import MaskSet
from lit_depth.functional.statistics.power import samples_needed, shown_difference
from lit_depth.module import DepthModule
from lit_depth.results.table import Cell, format_table
from lit_depth.results.terminal import tell
from lit_depth.studies.shared.effort import block_forwards

DROP = 0.02
POWER = 0.8
DISCORDANCE = (0.02, 0.05, 0.1, 0.2)  # shares of samples that only one of two models answers rightly
Sweep = tuple[str, MaskSet]


def plan_run(
    command: str, model: DepthModule, datamodule: DepthDataModule, sweeps: Sequence[Sweep], confidence: float
) -> dict[str, Any]:
    """Tell, and return, how many samples show a drop of two points, how many there are, and the rows to compute.

    Args:
        command: Whose plan it is.
        model: Needs no weights.
        datamodule: Gives the tasks.
        sweeps: Split and masks of each evaluation, the full model among them; differences are told of the last.
        confidence: Of the run's intervals. One test is planned at what is left of it, and the worst of all masks at
            that divided by their number (the first step of Holm's correction).
    """
    split, masks = sweeps[-1]
    counts = {
        name: [len(each.eval_dataset(name)) for each in datamodule.for_each_task()]
        for name in dict.fromkeys(name for name, _ in sweeps)
    }
    num_tests, alpha = max(len(masks) - 1, 1), 1 - confidence
    power = [
        {
            "discordance": share,
            "alone": samples_needed(DROP, share, alpha, POWER),
            "corrected": samples_needed(DROP, share, alpha / num_tests, POWER),
            "shown_alone": shown_difference(sum(counts[split]), share, alpha, POWER),
            "shown_corrected": shown_difference(sum(counts[split]), share, alpha / num_tests, POWER),
        }
        for share in DISCORDANCE
    ]
    forwards = [block_forwards(model, asked) for _, asked in sweeps]
    sizes = [sum(counts[name]) for name, _ in sweeps]
    result = {
        "command": f"{command} --plan",
        "drop": DROP,
        "power": POWER,
        "confidence": confidence,
        "num_tests": num_tests,
        "num_samples": {name: sum(each) for name, each in counts.items()},
        "rows": sum(len(asked) * size for (_, asked), size in zip(sweeps, sizes)),
        "sequential_block_forwards": sum(alone * size for (alone, _), size in zip(forwards, sizes)),
        "block_forwards": sum(together * size for (_, together), size in zip(forwards, sizes)),
        "differences": power,
    }
    tell(_as_text(result, split), result)
    return result


def _as_text(result: dict[str, Any], split: str) -> str:
    rows: list[Sequence[Cell]] = [
        [
            f"{each['discordance']:.0%}",
            *(f"{each[key]:,}" for key in ("alone", "corrected")),
            *("none" if each[key] is None else f"{each[key]:.1%}" for key in ("shown_alone", "shown_corrected")),
        ]
        for each in result["differences"]
    ]
    tests = result["num_tests"]
    headers = (
        "answered by one alone",
        "samples, one test",
        f"samples, {tests} tests",
        "this run shows",
        "of all tests",
    )
    saved = 1 - result["block_forwards"] / result["sequential_block_forwards"]
    samples = ", ".join(f"{count:,} of the {name} split" for name, count in result["num_samples"].items())
    return "\n".join(
        [
            "",
            f"Samples that show a drop of {DROP:.0%} from the full model with probability {POWER:.0%} at "
            f"{result['confidence']:.0%} confidence, paired (Connor 1987), if such a share of them is answered rightly "
            f"by one of the two alone; corrected for {tests} masks (Holm, at its first step). Several questions about "
            "one image count for less than as many about images of their own.",
            "",
            format_table(rows, headers),
            "",
            f"This run has samples: {samples}; drops are reported on the {split} split.",
            f"Rows to compute (mask and sample): {result['rows']:,}; {result['block_forwards']:,} block forwards on "
            f"prompts, {saved:.0%} less than one mask after another. How long that takes is not known before it is "
            "measured: the last line of every run tells its rows per second.",
        ]
    )


def with_full(model: DepthModule, masks: Iterable[Tensor]) -> MaskSet:
    """The full model's mask and these, each once."""
    return MaskSet.of([*MaskSet.full(model.num_units), *masks]).unique()
