"""How far hiding tokens changes each block, drawn from the result of ``lit-depth tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_depth.results.charts.block_charts import HeatCell, heat_map
from lit_depth.results.report import Chart
from lit_depth.results.style import new_figure, plain_axes, whole_numbers
from lit_depth.studies.shared.importance_views import matrix_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {"l2_distance": "L2 distance", "cosine_distance": "Cosine distance"}
_LOOKS = {
    "vision": ("vision token", "#0072B2", "o"),
    "text": ("text token", "#D55E00", "s"),
    "start": ("start token", "#009E73", "^"),
    "generated": ("generated token", "#E69F00", "v"),
    "final": ("final token", "#CC79A7", "D"),
    "image": ("the image", "#0072B2", "o"),
}
# values that differ by more than this are told apart on a logarithmic axis only
_LINEAR_RANGE = 20


def has_distances(result: Mapping[str, Any]) -> bool:
    """Whether any distance is defined; of prompts of one token none is."""
    return any(_curves(result[group], metric) for group in ("averages", "spans") for metric in LABELS)


def token_charts(result: Mapping[str, Any]) -> dict[str, Chart]:
    """Mean ``Full`` distance by kind of the hidden token and block, as interactive maps."""
    titles = {"averages": "{}", "spans": "whole {}"}
    charts = {}
    for metric, label in LABELS.items():
        cells = [
            HeatCell(titles[group].format(kind), str(block), value)
            for group in titles
            for kind, variants in result[group].items()
            for block, value in enumerate(variants["Full"][metric])
        ]
        words = {"title": f"{label} of the residual update at the final position", "subtitle": _remark(result)}
        if any(cell.value is not None for cell in cells):
            charts[f"tokens/{metric}"] = heat_map(cells, words | {"x": "block", "y": "hidden"}, "token")
    return charts


def _remark(result: Mapping[str, Any]) -> str:
    prompts, steps = len(result["prompts"]), result["num_output_tokens"]
    return f"mean over {prompts} prompt{'s' * (prompts > 1)}, {steps} generation step{'s' * (steps > 1)}"


def token_figure(result: Mapping[str, Any]) -> Figure:
    """Mean ``Full`` distance of each block, left L2 and right cosine, one line per kind of token.

    Below, where spans were measured: the same with all tokens of a span hidden together.
    """
    rows = [("averages", "one hidden, mean")] + ([("spans", "hidden as a whole")] if result["spans"] else [])
    figure, panels = new_figure(10, 1 + 3.6 * len(rows), len(rows), len(LABELS), squeeze=False)
    for axes_of_row, (group, remark) in zip(panels, rows):
        for axes, (metric, label) in zip(axes_of_row, LABELS.items()):
            _draw(axes, result[group], metric)
            axes.set_ylabel(f"{label} ({remark})")
        axes_of_row[0].legend(frameon=False, fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel(f"Block (of {result['num_blocks']})")
    title = "Change of the residual update at the final position when tokens are hidden from a block"
    figure.suptitle(f"{title}\n{_remark(result)}", x=0.01, ha="left", fontsize=11)
    return figure


def knockout_rows(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Drop in the answer's log-probability by first block: of the spans of one prompt, or mean over several prompts."""
    if len(result["prompts"]) == 1:
        return {each["span"]: each["drop"] for each in result["prompts"][0]["knockouts"]["spans"]}
    titles = {"image": "the image", "word": "one word, mean", "span": "one span, mean"}
    return {titles[group]: values["drop"] for group, values in result["knockouts"].items()}


def knockout_figure(result: Mapping[str, Any]) -> Figure:
    """`knockout_rows` as coloured cells, red where the answer becomes less likely."""
    rows = knockout_rows(result)
    values = [[0.0 if abs(value) < 0.005 else value for value in row] for row in rows.values()]
    limit = max((abs(value) for row in values for value in row), default=0.0) or 1.0
    names = [name.replace("$", r"\$") for name in rows]
    blocks = [str(block) for block in range(result["num_blocks"])]
    title = "Drop in the answer's log-probability (nats), tokens hidden from a block and all later ones"
    prompts = len(result["prompts"])
    title += f"\nmean over {prompts} prompts" if prompts > 1 else ""
    return matrix_figure(values, names, blocks, title, limit, "Hidden from this block on")


def knockout_charts(result: Mapping[str, Any]) -> dict[str, Chart]:
    """`knockout_rows` as an interactive map."""
    cells = [
        HeatCell(name, str(block), value)
        for name, row in knockout_rows(result).items()
        for block, value in enumerate(row)
    ]
    words = {"title": "Drop in the answer's log-probability (nats)", "subtitle": "tokens hidden from a block on"}
    return {"tokens/knockout": heat_map(cells, words | {"x": "hidden from this block on", "y": ""})}


def _curves(averages: Mapping[str, Any], metric: str) -> dict[str, list[float]]:
    """Values by block of every kind that has some; NaN where undefined."""
    found = {}
    for kind, variants in averages.items():
        values = variants["Full"][metric]
        if any(value is not None for value in values):
            found[kind] = [float("nan") if value is None else value for value in values]
    return found


def _draw(axes: Axes, averages: Mapping[str, Any], metric: str) -> None:
    plain_axes(axes)
    curves = _curves(averages, metric)
    for kind, values in curves.items():
        label, color, marker = _LOOKS[kind]
        label = "the text" if kind == "text" and "image" in averages else label
        # one token of each prompt only: noisier than a mean over many
        faint = kind in ("start", "final")
        width, size, alpha = (1.0, 3, 0.6) if faint else (1.8, 5, 1.0)
        (line,) = axes.plot(range(len(values)), values, color=color, marker=marker, label=label)
        line.set(linewidth=width, markersize=size, alpha=alpha)
    defined = [value for values in curves.values() for value in values if value == value]
    if defined and min(defined) > 0 and max(defined) > _LINEAR_RANGE * min(defined):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    whole_numbers(axes.xaxis)
