"""What ``lit-depth select --lossless true`` tells of drafts: sentences, the table of masks, and the figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_depth.results.report import Section, Table
from lit_depth.results.style import COLORS, GREY, new_figure, plain_axes, whole_numbers
from lit_depth.results.table import Cell, format_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADERS = ("blocks", "mask", "accepted", "draft length", "draft step ms", "verification ms", "decoding", "request")
FIGURE = "lossless"


def lossless_section(result: Mapping[str, Any]) -> Section:
    """The section of a result with a ``lossless`` entry."""
    entry = result["lossless"]
    rows: list[list[Cell]] = [
        [
            each["num_active_blocks"],
            each["mask_id"],
            f"{each['acceptance']:.3f}",
            each["num_draft"],
            f"{each['draft_ms']:.2f}",
            f"{each['verify_ms']:.2f}",
            f"{each['decoding_speedup']:.2f}x",
            f"{each['speedup']:.2f}x",
        ]
        for each in entry["candidates"]
    ]
    figures = [FIGURE] if rows else []
    return Section("Drafts for the full model", _text(entry), Table(HEADERS, rows) if rows else None, figures)


def _text(entry: Mapping[str, Any]) -> str:
    best, measured = entry["best"], entry["measured"]
    if best is None:
        return f"No mask drafts for the full model: {entry['reason']}."
    interval = format_interval(measured["speedup_ci"], sign="")
    same = f"{measured['num_same']} of {measured['num_requests']} answers are the full model's, token for token"
    found = (
        f"measured on {measured['num_requests']} other requests: {measured['speedup']:.2f}x {interval} the speed of "
        f"plain decoding ({measured['ms']:.2f} ms, plain {measured['plain_ms']:.2f} ms), {best['speedup']:.2f}x "
        f"expected; {same}."
    )
    which = f"{best['num_active_blocks']} of {len(best['mask_id'])} blocks, {_tokens(best['num_draft'])} at a time"
    if entry["chosen"] is not None:
        first = f"Lossless: {which}, draft for the full model. As {found}"
    else:
        none = "Lossless: no mask is chosen, because none is surely faster than plain decoding."
        first = f"{none} The most promising, {which}, {found}"
    return (
        f"{first}\n\nAn accepted draft is the full model's own token, counted along its answers on "
        f"{entry['num_requests']} calibration requests ({entry['mean_tokens']:.1f} tokens behind the first). What is "
        "expected follows from that share and from the times of a draft step and of a verification (Leviathan et al. "
        "2023), of decoding without an end, and of whole requests with their prompts and their ends."
    )


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def lossless_scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for loggers; none where nothing was measured."""
    entry = result["lossless"]
    if entry["measured"] is None:
        return {}
    low, high = entry["measured"]["speedup_ci"]
    return {
        "lossless/mask_id": entry["best"]["mask_id"],
        "lossless/num_draft": entry["best"]["num_draft"],
        "lossless/chosen": entry["chosen"] is not None,
        "lossless/speedup": entry["measured"]["speedup"],
        "lossless/speedup_low": low,
        "lossless/speedup_high": high,
        "lossless/share_same_answers": entry["measured"]["num_same"] / entry["measured"]["num_requests"],
    }


def lossless_figure(result: Mapping[str, Any]) -> "Figure":
    """Accepted drafts, and expected speed of requests, by the number of blocks that draft; what was measured."""
    entry = result["lossless"]
    figure, (left, right) = new_figure(9.5, 4.2, 1, 2)
    counts = [each["num_active_blocks"] for each in entry["candidates"]]
    for axes in (left, right):
        plain_axes(axes)
        axes.set_xlabel("Active blocks of the draft")
        whole_numbers(axes.xaxis)
    left.plot(counts, [each["acceptance"] for each in entry["candidates"]], "-o", color=COLORS[0], markersize=5)
    left.set_ylim(-0.02, 1.02)
    left.set_ylabel("Share of drafts that are\nthe full model's own token")
    for key, label, mark, color in (
        ("speedup", "expected of a request, at the best length (number)", "-o", COLORS[0]),
        ("decoding_speedup", "expected of decoding alone, without an end", ":^", COLORS[2]),
    ):
        right.plot(counts, [each[key] for each in entry["candidates"]], mark, color=color, markersize=5, label=label)
    for count, each in zip(counts, entry["candidates"]):
        at = (count, each["speedup"])
        right.annotate(str(each["num_draft"]), at, (0, 7), textcoords="offset points", fontsize=8, ha="center")
    measured, best = entry["measured"], entry["best"]
    low, high = measured["speedup_ci"]
    bars = [[measured["speedup"] - low], [high - measured["speedup"]]]
    label = f"measured of a request, {result['confidence']:.0%} interval"
    where = best["num_active_blocks"]
    right.errorbar([where], [measured["speedup"]], yerr=bars, fmt="s", color=COLORS[1], markersize=7, label=label)
    right.axhline(1, color=GREY, linestyle="--", linewidth=1, label="plain decoding")
    right.set_ylabel("Speed, plain decoding = 1")
    figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    title = f"Drafts for the full model, {result['task']}, up to {entry['new_tokens']} new tokens, {result['device']}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
