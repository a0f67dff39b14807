"""From the tables of every prompt to averages, and to the most influential tokens of each block."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lit_depth.results.token_tables import METRICS
from lit_depth.studies.tokens.knockout_results import KnockedOut, describe_knockouts, knockout_averages
from lit_depth.studies.tokens.prompts import Prompt

KINDS = ("vision", "text", "generated", "final", "start")
_STRONGEST = 5  # tokens named per layer


class Measured(NamedTuple):
    """One prompt and its tables."""

    prompt: Prompt
    kinds: list[str]  # of the prompt's tokens
    tokens: pd.DataFrame
    spans: pd.DataFrame | None
    generated_text: str
    device: str
    knockouts: KnockedOut | None = None

    @property
    def num_steps(self) -> int:
        """Generation steps that were analysed, the prompt's own included."""
        return int(self.tokens["generation_step"].max()) + 1


def _kinds_of_rows(measured: Measured) -> np.ndarray:
    """Kind of the hidden token of every row; the one at the final position of its step is ``final``."""
    positions, steps = (measured.tokens[name].to_numpy() for name in ("token_position", "generation_step"))
    length = len(measured.kinds)
    names = np.array([*measured.kinds, *["generated"] * measured.num_steps], dtype=object)[positions]
    names[positions == length - 1 + steps] = "final"
    return names


def kind_averages(measured: Sequence[Measured]) -> dict[str, Any]:
    """``{kind: {Full | Attn: {metric: [per layer]}}}``: over tokens and steps of a prompt, then over prompts."""
    means = []
    for each in measured:
        rows = each.tokens.assign(group=_kinds_of_rows(each))
        means.append(_mean_by_layer(rows))
    return _over_prompts(means, KINDS)


def span_averages(measured: Sequence[Measured]) -> dict[str, Any]:
    """The same for the image and the text as a whole; empty where no spans were measured."""
    means = [
        _mean_by_layer(each.spans.rename(columns={"span": "group"})) for each in measured if each.spans is not None
    ]
    return _over_prompts(means, ("image", "text")) if means else {}


def _mean_by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows["variant"].isin(["Full", "Attn"])].astype(dict.fromkeys(METRICS, float))
    return rows.groupby(["group", "variant", "layer"])[list(METRICS)].mean()


def _over_prompts(means: Sequence[pd.DataFrame], groups: Iterable[str]) -> dict[str, Any]:
    every = pd.concat(means).groupby(level=["group", "variant", "layer"])
    average, count = every.mean(), every.size()
    present = set(average.index.get_level_values("group"))
    return {
        group: {
            variant: {metric: _plain(average.loc[(group, variant), metric]) for metric in METRICS}
            for variant in ("Full", "Attn")
        }
        | {"num_prompts": int(count.loc[group].max())}
        for group in groups
        if group in present
    }


def _plain(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def describe_prompt(measured: Measured, num_prompts: int, index: int) -> dict[str, Any]:
    """Entry of a prompt in the result: what it is, what follows it, and each layer's most influential tokens."""
    prompt, kinds = measured.prompt, measured.kinds
    first = measured.tokens[(measured.tokens["variant"] == "Full") & (measured.tokens["generation_step"] == 0)]
    defined = first.dropna(subset="l2_distance").sort_values("l2_distance", ascending=False, kind="stable")
    strongest = defined.groupby("layer").head(_STRONGEST)
    columns = ["token_masked", "token_position", *METRICS]
    return {
        "name": prompt.name,
        "text": prompt.text,
        "image": prompt.image_id,
        "generated_text": measured.generated_text,
        "num_tokens": len(kinds),
        "num_vision_tokens": kinds.count("vision"),
        "num_generation_steps": measured.num_steps,
        "page": "tokens.html" if num_prompts == 1 else f"tokens_{index}.html",
        "layers": [
            {
                "layer": int(layer),
                "most_influential": [
                    {column: None if value != value else value for column, value in row.items()}
                    for row in strongest.loc[strongest["layer"] == layer, columns].to_dict("records")
                ],
            }
            for layer in first["layer"].unique()
        ],
        **({} if measured.knockouts is None else {"knockouts": describe_knockouts(measured.knockouts)}),
    }


def describe(measured: Sequence[Measured], num_blocks: int) -> dict[str, Any]:
    """The part of ``tokens.json`` that follows from the tables."""
    prompts = [describe_prompt(each, len(measured), index) for index, each in enumerate(measured)]
    knocked_out = all(each.knockouts is not None for each in measured)
    return {
        "num_blocks": num_blocks,
        "num_output_tokens": max(each.num_steps for each in measured),
        "device": ", ".join(sorted({each.device for each in measured})),
        "prompts": prompts,
        "averages": kind_averages(measured),
        "spans": span_averages(measured),
        **({"knockouts": knockout_averages(prompts)} if knocked_out else {}),
    }
