"""What ``lit-depth latency`` tells of its result."""

from functools import partial
from typing import Any

from lit_depth.results.flop_shares import FLOPS_NOTE, share_of_full, told_share
from lit_depth.results.report import Curves, Report, Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import SIMULTANEOUS
from lit_depth.studies.latency.figures import latency_charts, latency_figure
from lit_depth.studies.latency.fitting import time_model_section

DETAILS = "latency_details.json"
HEADERS = (
    *("policy", "blocks", "vision", "prefill", "decode/token", "total P50", "P95"),
    *("of full", "interval", "p (Holm)", "FLOPs of full"),
)

_STEP = "num_active_blocks"


def report(result: dict[str, Any]) -> Report:
    """The report of the content of ``latency_details.json``."""
    figure = "latency_vs_blocks"
    lines = {
        f"latency/{stage}_ms_{key}": line[number]
        for stage, line in result["fits"].items()
        for key, number in (("per_block", "slope"), ("fixed", "intercept"))
    }
    return Report(
        title=f"Latency against active blocks, {result['task']}",
        headline=_headline(result),
        sections=[
            Section("Latency", table=Table(HEADERS, _rows(result)), figures=[figure]),
            *([time_model_section(result["time_model"])] if "time_model" in result else []),
        ],
        kind="latency",
        figures={figure: partial(latency_figure, result)},
        files={DETAILS: result},
        tables={"latency/configurations": _configurations(result)},
        charts=latency_charts(result),
        drawn={"latency_per_request": figure},
        curves=_curves(result),
        scalars={"latency/num_requests": result["num_requests"], **lines},
        metadata={"device": result["device"], "decoding": result.get("decoding", "dynamic")},
    )


def _headline(result: dict[str, Any]) -> str:
    text = (
        f"{result['num_requests']} requests of batch size {result['batch_size']} on {result['device']}, "
        f"{result['new_tokens']} new tokens each; medians in milliseconds. 'of full' is the time relative to all "
        f"{result['num_blocks']} blocks on the same request (geometric mean, {result['confidence']:.0%} "
        f"{SIMULTANEOUS})."
    )
    text += f" Decoded on {on}." if (on := result.get("decoded_on")) else ""
    text += f" {FLOPS_NOTE}" if result.get("flops") else ""
    if "total" in result["fits"]:
        line = result["fits"]["total"]
        fit = "" if line["r2"] is None else f" (R squared {line['r2']:.3f})"
        text += (
            f" Total = {line['intercept']:.2f} ms + {line['slope']:.2f} ms per block{fit}: the first part no skipped "
            "block saves."
        )
    return text


def _rows(result: dict[str, Any]) -> list[list[Cell]]:
    rows = []
    for entry in result["configurations"]:
        times = entry["latency_ms"]
        share = entry["of_full"]["total"]
        per_token = times["decode_per_token"]
        rows.append(
            [
                ", ".join(entry["policies"]),
                entry["num_active_blocks"],
                *(f"{times[stage]['P50']:.2f}" for stage in ("vision", "prefill")),
                f"{per_token['P50']:.2f}" if per_token else None,
                f"{times['total']['P50']:.2f}",
                f"{times['total']['P95']:.2f}",
                f"{share['ratio']:.3f}",
                format_interval(share["simultaneous_ci"], ""),
                format_p_value(share["p_holm"]),
                told_share(share_of_full(result.get("flops"), entry["mask_id"])),
            ]
        )
    return rows


def _curves(result: dict[str, Any]) -> Curves:
    """Median and 95th percentile of each stage along the number of active blocks; the last mask of equally many."""
    rows: dict[int, dict[str, float]] = {}
    for entry in sorted(result["configurations"], key=lambda entry: entry["num_active_blocks"]):
        row = rows.setdefault(entry["num_active_blocks"], {_STEP: entry["num_active_blocks"]})
        for stage, times in entry["latency_ms"].items():
            row |= {f"latency/{stage}_{key}_ms": times[key] for key in ("P50", "P95")} if times else {}
    return Curves(_STEP, list(rows.values()))


def _configurations(result: dict[str, Any]) -> Table:
    stages = list(result["configurations"][0]["latency_ms"])
    rows = []
    for entry in result["configurations"]:
        times = [entry["latency_ms"][stage] for stage in stages]
        medians = [None if time is None else time["P50"] for time in times]
        shape = [", ".join(entry["policies"]), entry["num_active_blocks"], entry["mask_id"]]
        rows.append([*shape, *medians, entry["of_full"]["total"]["ratio"]])
    medians_of = [f"{stage}_P50_ms" for stage in stages]
    return Table(["policies", "num_active_blocks", "mask_id", *medians_of, "of_full"], rows)
