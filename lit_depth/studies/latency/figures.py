"""Latency against active blocks, drawn from the result of ``lit-depth latency``."""

from typing import TYPE_CHECKING, Any

from lit_depth.results.style import STAGES, new_figure, plain_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latency_figure(result: dict[str, Any]) -> "Figure":
    """Median of every stage against the number of active blocks, with the fitted line and the ideal one.

    The ideal total is that of the full model times the share of active blocks: what skipping would give if nothing
    else took time.
    """
    figure, (request, token) = new_figure(10, 5, 1, 2)
    num_blocks, configurations = result["num_blocks"], result["configurations"]
    counts = [entry["num_active_blocks"] for entry in configurations]
    for stage, (label, color, marker) in STAGES.items():
        axes = token if stage == "decode_per_token" else request
        times = [entry["latency_ms"][stage] for entry in configurations]
        if any(entry is None for entry in times):
            continue
        medians = [entry["P50"] for entry in times]
        bars = [[0.0] * len(times), [max(0.0, entry["P95"] - entry["P50"]) for entry in times]]
        axes.errorbar(counts, medians, yerr=bars, fmt=marker, color=color, markersize=5, elinewidth=1, label=label)
        if stage in result["fits"]:
            line, ends = result["fits"][stage], [0, num_blocks]
            fit = "" if line["r2"] is None else f", R² {line['r2']:.3f}"
            text = f"{line['intercept']:.1f} {line['slope']:+.2f} per block{fit}"
            heights = [line["intercept"] + line["slope"] * end for end in ends]
            axes.plot(ends, heights, "--", color=color, linewidth=1, label=f"{label}: {text}")
    full = next(entry for entry in configurations if entry["num_active_blocks"] == num_blocks)
    top = full["latency_ms"]["total"]["P50"]
    request.plot([0, num_blocks], [0, top], ":", color="#888888", linewidth=1.5, label="total, ideal k/L")
    for axes, unit in ((request, "request"), (token, "decoded token")):
        plain_axes(axes)
        axes.set_xlabel(f"Active blocks (of {num_blocks})")
        axes.set_ylabel(f"Median time per {unit} (ms); bars to P95")
        axes.set_xlim(0, num_blocks + 0.5)
        axes.set_ylim(bottom=0)  # a saving is read as a share of the height
        whole_numbers(axes.xaxis)
        if axes.get_legend_handles_labels()[0]:  # a single token takes no decode step
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    title = (
        f"{result['task']}, {result['num_requests']} requests of batch size {result['batch_size']}, {result['device']}"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
