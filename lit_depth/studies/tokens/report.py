"""What ``lit-depth tokens`` makes of the tables that it measured: averages, files, pages and the summary."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from lit_depth.models.prompting import Prompter
from lit_depth.results.old_page import Section, write_report
from lit_depth.results.store import write_json
from lit_depth.results.table import format_table
from lit_depth.results.token_tables import METRICS, write_csv, write_token_masking
from lit_depth.studies.tokens.figures import write_token_figure
from lit_depth.studies.tokens.prompts import Prompt, shorten
from lit_depth.studies.tokens.token_page import CropImage, write_token_page

if TYPE_CHECKING:
    from PIL.Image import Image

RESULT, SPANS = "tokens.json", "span_results.csv"
KINDS = ("vision", "text", "generated", "final", "start")
_STRONGEST = 5  # tokens named per layer
_PAGE_PIXELS = 1024  # longest side of the picture in the page


class Measured(NamedTuple):
    """One prompt and its tables."""

    prompt: Prompt
    kinds: list[str]  # of the prompt's tokens
    tokens: pd.DataFrame
    spans: pd.DataFrame | None
    generated_text: str
    device: str

    @property
    def num_steps(self) -> int:
        """Generation steps that were analysed, the prompt's own included."""
        return int(self.tokens["generation_step"].max()) + 1


# ---- result


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
    }


# ---- files


def write_results(
    folder: Path, result: dict[str, Any], measured: Sequence[Measured], prompter: Prompter, identity: dict[str, Any]
) -> list[Path]:
    """Write tables, pages, figure and report into the run's folder, the result last; all their paths."""
    tables = [each.tokens for each in measured]
    spans = [(each.prompt.name, each.spans) for each in measured if each.spans is not None]
    if len(measured) > 1:
        tables = [_named(each.prompt.name, each.tokens) for each in measured]
        spans = [(name, _named(name, frame)) for name, frame in spans]
    paths = write_token_masking(folder, pd.concat(tables, ignore_index=True))
    if spans:
        paths.append(folder / SPANS)
        write_csv(paths[-1], pd.concat([frame for _, frame in spans], ignore_index=True))
    for each, entry in zip(measured, result["prompts"]):
        title = f"Token masking: {shorten(entry['text'])}"
        images = _page_images(each.prompt.image, prompter)
        paths.append(write_token_page(folder / entry["page"], each.tokens, title=title, images=images))
    figure = write_token_figure(result, folder / "figures")
    figures = [] if figure is None else [figure]
    sections = [
        Section("Prompts", text="\n\n".join(_remarks(result)), headers=PROMPT_HEADERS, rows=_prompt_rows(result)),
        Section("L2 distance by block", _EXPLAINED, _headers(result), _rows(result, METRICS[0]), figures),
        Section("Cosine distance by block", headers=_headers(result), rows=_rows(result, METRICS[1])),
        Section("Arguments", code=json.dumps(identity, indent=2, default=str)),
    ]
    report = write_report(folder, "Token masking", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)
    return [folder / RESULT, *paths, *figures, report]


def _named(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    named = frame.copy()
    named.insert(0, "prompt", name)
    return named


def _page_images(image: Image | None, prompter: Prompter) -> list[CropImage]:
    """The picture and where its tokens lie, for families that tell."""
    places = [] if image is None else prompter.image_places(image)
    if image is None or not places:
        return []
    shown = image.copy()
    shown.thumbnail((_PAGE_PIXELS, _PAGE_PIXELS))
    file = io.BytesIO()
    shown.save(file, format="png")
    return [CropImage(file.getvalue(), image.width, image.height, places)]


PROMPT_HEADERS = ("prompt", "tokens", "of the image", "generates", "page")
_EXPLAINED = (
    "Mean distance of a block's residual update (Full) at the final position, unmasked against one token hidden: over "
    "the tokens of a kind, the generation steps, and the prompts. 'final' is the token at that position, 'start' "
    "the one in front of every prompt; 'whole' hides all tokens of the image, or of the text, together."
)


def _prompt_rows(result: dict[str, Any]) -> list[list[Any]]:
    return [
        [each["name"], each["num_tokens"], each["num_vision_tokens"], repr(each["generated_text"]), each["page"]]
        for each in result["prompts"]
    ]


def _columns(result: dict[str, Any], metric: str) -> dict[str, list[float | None]]:
    """Title of every column of the table by block, and its values."""
    titles = {"averages": "{}", "spans": "whole {}"}
    return {
        titles[group].format(kind): variants["Full"][metric]
        for group in titles
        for kind, variants in result[group].items()
    }


def _headers(result: dict[str, Any]) -> list[str]:
    return ["block", *_columns(result, METRICS[0])]


def _rows(result: dict[str, Any], metric: str) -> list[list[Any]]:
    return [
        [block_idx, *(None if value is None else f"{value:.3g}" for value in values)]
        for block_idx, values in enumerate(zip(*_columns(result, metric).values()))
    ]


def _remarks(result: dict[str, Any]) -> list[str]:
    steps = result["num_output_tokens"]
    counts = ((len(result["prompts"]), "prompt"), (steps, "generation step"), (result["num_blocks"], "block"))
    remarks = [", ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts) + f", on {result['device']}."]
    if any(each["num_tokens"] == 1 for each in result["prompts"]):
        remarks.append(
            "A prompt of one token: without it nothing is left to attend to, so its distances are undefined."
        )
    remarks += [f"{each['id']} is left out: {each['reason']}" for each in result["bad_samples"]]
    return remarks


def summary_text(result: dict[str, Any], paths: Sequence[Path]) -> str:
    """What the terminal shows at the end."""
    lines = ["", *_remarks(result), "", format_table(_prompt_rows(result), PROMPT_HEADERS), ""]
    lines += [f"L2 distances. {_EXPLAINED}", "", format_table(_rows(result, METRICS[0]), _headers(result)), ""]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
