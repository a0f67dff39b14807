"""What ``lit-depth tokens`` tells of its result."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lit_depth.results.report import Curves, Report, Section, Table
from lit_depth.results.table import Cell
from lit_depth.results.token_tables import METRICS
from lit_depth.studies.tokens.figures import (
    has_distances,
    knockout_charts,
    knockout_figure,
    knockout_rows,
    token_charts,
    token_figure,
)

PROMPT_HEADERS = ("prompt", "tokens", "of the image", "generates", "page")
_EXPLAINED = (
    "Mean distance of a block's residual update (Full) at the final position, unmasked against one token hidden: over "
    "the tokens of a kind, the generation steps, and the prompts. 'final' is the token at that position, 'start' "
    "the one in front of every prompt; 'whole' hides all tokens of the image, or of the text, together."
)
KNOCKOUT = "token_knockout"
_KNOCKED_OUT = (
    "Tokens hidden from a block and all later ones, whose input is not given back: by how many nats per token the "
    "answer that the model generates becomes less likely, by the block that the tokens are hidden from on{of_several}. "
    "Where a row falls to 0, what the answer needs of these tokens was read before that block. Nobody outside of a "
    "span attends to it; its tokens go on to see each other. The pages show how far every later position moves."
)


def report(result: Mapping[str, Any], written: Sequence[str]) -> Report:
    """The report of the content of ``tokens.json``; the figure stands in it where a distance is defined.

    Loggers keep no table as JSON, which is the largest of three forms.
    """
    figures = {"tokens_by_block": partial(token_figure, result)} if has_distances(result) else {}
    knocked_out = "knockouts" in result
    figures |= {KNOCKOUT: partial(knockout_figure, result)} if knocked_out else {}
    l2, cosine = (Table(_headers(result), _rows(result, metric)) for metric in METRICS)
    return Report(
        title="Token masking",
        headline="\n\n".join(_remarks(result)),
        sections=[
            Section("Prompts", table=Table(PROMPT_HEADERS, _prompt_rows(result))),
            Section(
                "L2 distance by block",
                f"L2 distances. {_EXPLAINED}",
                l2,
                [name for name in figures if name != KNOCKOUT],
            ),
            Section("Cosine distance by block", table=cosine, printed=False),
            *([_knockout_section(result)] if knocked_out else []),
        ],
        kind="tokens",
        scalars={"tokens/num_prompts": len(result["prompts"])},
        curves=_curves(result),
        charts=token_charts(result) | (knockout_charts(result) if knocked_out else {}),
        drawn={"tokens/l2_distance": "tokens_by_block", "tokens/knockout": KNOCKOUT},
        figures=figures,
        written=[name for name in written if not name.endswith(".json")],
        unlogged=[name for name in written if name.endswith(".json")],
        pages=[each["page"] for each in result["prompts"]],
        tables={"tokens/by_block": _by_block(result), "tokens/prompts": _prompts(result)}
        | ({"tokens/knockouts": _knockouts(result)} if knocked_out else {}),
        metadata={"num_output_tokens": result["num_output_tokens"]},
    )


def _prompt_rows(result: Mapping[str, Any]) -> list[list[Cell]]:
    return [
        [each["name"], each["num_tokens"], each["num_vision_tokens"], repr(each["generated_text"]), each["page"]]
        for each in result["prompts"]
    ]


def _knockout_section(result: Mapping[str, Any]) -> Section:
    rows, several = knockout_rows(result), len(result["prompts"]) > 1
    last = result["num_blocks"] - 1
    shown = sorted({0, 1, 2, last // 4, last // 2, 3 * last // 4, last} & set(range(last + 1)))
    # a zero of rounding has no sign
    cells: list[list[Cell]] = [
        [name, *(f"{round(row[block], 3) + 0.0:+.3f}" for block in shown)] for name, row in rows.items()
    ]
    of_several = f"; means over spans and {len(result['prompts'])} prompts" if several else ""
    table = Table(("hidden from block", *map(str, shown)), cells)
    return Section("Knockouts", _KNOCKED_OUT.format(of_several=of_several), table, [KNOCKOUT])


def _knockouts(result: Mapping[str, Any]) -> Table:
    """One row per prompt, span and first block, without rounding."""
    rows = [
        [entry["name"], each["span"], each["kind"], len(each["positions"]), block, *values]
        for entry in result["prompts"]
        for each in entry["knockouts"]["spans"]
        for block, values in enumerate(zip(each["drop"], *(each[metric] for metric in METRICS)))
    ]
    return Table(("prompt", "span", "kind", "num_tokens", "from_block", "drop", *METRICS), rows)


def _columns(result: Mapping[str, Any], metric: str) -> dict[str, list[float | None]]:
    """Title of every column of the table by block, and its values."""
    titles = {"averages": "{}", "spans": "whole {}"}
    return {
        titles[group].format(kind): variants["Full"][metric]
        for group in titles
        for kind, variants in result[group].items()
    }


def _headers(result: Mapping[str, Any]) -> list[str]:
    return ["block", *_columns(result, METRICS[0])]


def _rows(result: Mapping[str, Any], metric: str) -> list[list[Cell]]:
    return [
        [block_idx, *(None if value is None else f"{value:.3g}" for value in values)]
        for block_idx, values in enumerate(zip(*_columns(result, metric).values()))
    ]


def _remarks(result: Mapping[str, Any]) -> list[str]:
    steps = result["num_output_tokens"]
    counts = ((len(result["prompts"]), "prompt"), (steps, "generation step"), (result["num_blocks"], "block"))
    remarks = [", ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts) + f", on {result['device']}."]
    if any(each["num_tokens"] == 1 for each in result["prompts"]):
        remarks.append(
            "A prompt of one token: without it nothing is left to attend to, so its distances are undefined."
        )
    remarks += [f"{each['id']} is left out: {each['reason']}" for each in result["bad_samples"]]
    return remarks


def _curves(result: Mapping[str, Any]) -> Curves:
    """Distances along the blocks, by kind of the hidden token; what is not defined is left out."""
    rows: list[dict[str, float]] = [{"block": block} for block in range(result["num_blocks"])]
    for metric in METRICS:
        for title, values in _columns(result, metric).items():
            for row, value in zip(rows, values):
                row |= {} if value is None else {f"{metric}/{title}": value}
    return Curves("block", rows)


def _by_block(result: Mapping[str, Any]) -> Table:
    rows = [
        [kind, group == "spans", variant, block_idx, *distances]
        for group in ("averages", "spans")
        for kind, variants in result[group].items()
        for variant in ("Full", "Attn")
        for block_idx, distances in enumerate(zip(*(variants[variant][metric] for metric in METRICS)))
    ]
    return Table(("kind", "as_a_whole", "variant", "block", *METRICS), rows)


def _prompts(result: Mapping[str, Any]) -> Table:
    keys = ("name", "text", "image", "num_tokens", "num_vision_tokens", "generated_text")
    return Table(keys, [[entry[key] for key in keys] for entry in result["prompts"]])
