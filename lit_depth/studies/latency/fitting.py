"""The model of time that ``lit-depth latency --fit_time_model true`` fits: a few more requests, and its report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lit_depth.functional.latency.static_timing import Decoding
from lit_depth.functional.latency.time_model import Request, StageTimes, TimeModel, fit_time_model
from lit_depth.functional.masking.blocks import context_length
from lit_depth.results.report import Section, Table
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.stored_times import machine_of
from lit_depth.studies.shared.time_masks import time_masks

# of each of a few masks, under each further size of batch and length of prompt; their median counts
NUM_REQUESTS = 3
NUM_MASKS = 5
BATCH_SIZE = 4
HEADERS = ("stage", "cost", "ms each")
_TARGET = 0.05


def measure_and_fit(
    run: Run,
    records: pd.DataFrame,
    masks: Sequence[str],
    new_tokens: int,
    threads: int,
    num_samples: int,
    decoding: Decoding = "dynamic",
) -> TimeModel:
    """Fit the model of time to a run's requests and to a few more, of another batch and with longer prompts.

    Args:
        run: The run; what its folder holds already is not measured again.
        records: Of `time_masks`, for all masks.
        masks: Those of the run.
        new_tokens: Of each request.
        threads: Of torch.
        num_samples: Samples that requests can be made of.
        decoding: How tokens are decoded, see `time_masks`.
    """
    prompt, before = int(prompt_lengths(records).median()), int(records["batch_size"].iloc[0])
    longest = context_length(run.model.model)
    room = prompt if longest is None else max(0, min(prompt, longest - int(prompt_lengths(records).max()) - new_tokens))
    frames = [records]
    for size in sorted({1, before, min(BATCH_SIZE, num_samples)}):
        for more in sorted({0, room}):
            if (size, more) == (before, 0):
                continue  # these are the run's own
            path = run.folder / "time_model" / f"batch_{size}_longer_{more}.jsonl"
            sizes = {"num_requests": min(NUM_REQUESTS, num_samples // size), "new_tokens": new_tokens}
            options: dict[str, Any] = {**sizes, "threads": threads, "batch_size": size, "more_tokens": more}
            some = spread_masks(masks)
            frames.append(time_masks(run, "validation", some, path, **options, decoding=decoding))
    requests: list[Request] = []
    times: list[StageTimes] = []
    for frame in frames:
        asked, took = to_requests(frame)
        requests, times = requests + asked, times + took
    return fit_time_model(requests, times, machine_of(run.trainer, run.model, decoding))


def spread_masks(masks: Sequence[str], number: int = NUM_MASKS) -> list[str]:
    """So many of the masks, from the fewest active blocks to the most.

    >>> spread_masks(["1000", "1100", "1110", "1111"], 3)
    ['1000', '1110', '1111']
    """
    ordered = sorted(masks, key=lambda mask: mask.count("1"))
    places = np.linspace(0, len(ordered) - 1, min(number, len(ordered)))
    return list(dict.fromkeys(ordered[round(place)] for place in places.tolist()))


def prompt_lengths(records: pd.DataFrame) -> "pd.Series[float]":
    """Tokens of a row's prompt, images included, in each record of `time_masks`; the mean over the rows of a batch."""
    return (records["num_text_tokens"] + records["num_vision_tokens"]) / records["batch_size"]


def to_requests(records: pd.DataFrame) -> tuple[list[Request], list[StageTimes]]:
    """What each record of one call of `time_masks` asked for, and what it took.

    Prompts of one task are nearly equally long: all count as the median, so that a mask's times have a median too.
    """
    length, requests, times = round(prompt_lengths(records).median()), [], []
    for row in records.to_dict("records"):
        kept, rows = row["mask"].count("1"), int(row["batch_size"])
        requests.append(Request(kept, kept, rows, length, int(row["num_output_tokens"]) // rows))
        step = row["decode_per_token"]
        times.append(StageTimes(row["vision"], row["prefill"], None if step is None or np.isnan(step) else step))
    return requests, times


def time_model_section(model: Mapping[str, Any]) -> Section:
    """What is told of a model of time, as `TimeModel.to_dict` gives it."""
    rows = [[stage, cost, f"{each:.4g}"] for stage, costs in model["constants"].items() for cost, each in costs.items()]
    return Section("Model of time", describe_errors(model), Table(HEADERS, rows))


def describe_errors(model: Mapping[str, Any]) -> str:
    """How far off it is for masks that it was not fitted to.

    >>> errors = {"total": {"median": 0.02, "largest": 0.07, "num_predictions": 40}}
    >>> describe_errors({"held_out": errors})
    'Requests under masks that were left out of the fit are predicted to 2.0% (median of 40; at worst 7.0%).'
    """
    if not model["held_out"]:
        return "A single number of blocks was measured, so nothing is known of the error for others."
    total = model["held_out"]["total"]
    text = (
        f"Requests under masks that were left out of the fit are predicted to {total['median']:.1%} (median of "
        f"{total['num_predictions']}; at worst {total['largest']:.1%})."
    )
    return text if total["median"] <= _TARGET else f"{text} That is more than {_TARGET:.0%}: time more requests."
