"""``lit-depth tokens``: what each token of a prompt does for the final position of every block."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lit_depth.data import BadSample, DepthDataModule
from lit_depth.data.images import load_image
from lit_depth.functional.prompts import encode_prompt, name_tokens, token_kinds
from lit_depth.functional.tokens import check_prompt, span_masking, token_masking
from lit_depth.models.molmo import MolmoImageProcessor, vision_tokens
from lit_depth.module import DepthModule
from lit_depth.results.report import Section, write_report
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.tables import format_table
from lit_depth.results.token_figures import write_token_figure
from lit_depth.results.token_page import METRICS, CropImage, write_token_page
from lit_depth.results.token_tables import read_token_masking, write_csv, write_token_masking
from lit_depth.studies.run import log_to, open_run

if TYPE_CHECKING:
    from PIL.Image import Image

RESULT, SPANS = "tokens.json", "span_results.csv"
KINDS = ("vision", "text", "generated", "final", "start")
_STRONGEST = 5  # tokens named per layer
_PAGE_PIXELS = 1024  # longest side of the picture in the page
_FORMS = "text, or {prompt: ..., image: ..., name: ...} of which only prompt is required"


class _Prompt(NamedTuple):
    name: str
    text: str
    image: Image | None  # upright RGB
    image_id: str | None  # file, or id in the task
    raw: bool = False


class _Measured(NamedTuple):
    prompt: _Prompt
    kinds: list[str]  # of the prompt's tokens
    tokens: pd.DataFrame
    spans: pd.DataFrame | None
    generated_text: str
    device: str


def tokens(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    prompt: str | None,
    prompt_file: str | None,
    prompts: str | None,
    image: str | None,
    num_samples: int | None,
    num_output_tokens: int,
    spans: bool,
    device: str | None,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Measure; arguments and result as for `lit_depth.DepthTrainer.tokens`."""
    for argument, value in (("num_samples", num_samples), ("num_output_tokens", num_output_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
    if trainer.world_size > 1:
        raise ValueError(f"tokens is run by one process, got {trainer.world_size}: give --trainer.devices 1")
    where = _find_device(device, trainer)
    sources = {"prompt": prompt, "prompt_file": prompt_file, "prompts": prompts, "num_samples": num_samples}
    given = [f"--{source}" for source, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"expected one of --{', --'.join(sources)}, given {' and '.join(given)}")
    if image is not None and prompt is None and prompt_file is None:
        raise ValueError("--image needs --prompt or --prompt_file (of several prompts, each names its own image)")
    options = {"num_output_tokens": num_output_tokens, "blocks": model.hparams["blocks"]}
    bad: list[BadSample] = []
    splits = []
    if prompt is not None:
        chosen = [_with_image("prompt", prompt, image)]
    elif prompt_file is not None:
        chosen = [_with_image("prompt", _read_text("prompt_file", prompt_file), image, raw=True)]
    elif prompts is not None:
        chosen = _read_prompts(prompts)
    else:
        splits = ["validation"]
        chosen, bad = _from_task(model, datamodule, num_samples or 1, options)
    inputs = [_encode(model, each, options) for each in chosen]
    kinds = [token_kinds(model.processor, each["input_ids"][0].tolist(), model.model.config) for each in inputs]
    if spans and not any(map(_spans, kinds)):
        raise ValueError("--spans needs an image, or text between the start token and the final one")
    arguments = {
        "prompts": [[each.name, each.text, each.raw, _fingerprint(each.image)] for each in chosen],
        "num_output_tokens": num_output_tokens,
        "spans": spans,
    }
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "tokens", name) as (folder, identity):
        measured = _measure(model, chosen, inputs, kinds, spans, options, where, folder / "records")
        result = {
            "command": "tokens",
            "num_blocks": model.num_blocks,
            "num_output_tokens": num_output_tokens,
            "device": ", ".join(sorted({each.device for each in measured})),
            "prompts": [_describe(each, len(measured), index) for index, each in enumerate(measured)],
            "averages": _averages(measured),
            "spans": _span_averages(measured),
            "bad_samples": [{"id": each.id, "reason": each.reason} for each in bad],
        }
        paths = _write(folder, result, measured, model.processor, identity)
    log_to(trainer, "log_tokens", result, folder)
    print(_summary(result, paths))
    return result


# ---- prompts


def _find_device(name: str | None, trainer: Trainer) -> torch.device:
    if name is None:
        return trainer.strategy.root_device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected cpu, cuda or cuda:1 as there is one here, given {name!r} ({reason})"
        ) from error
    return device


def _with_image(name: str, text: str, path: str | Path | None, raw: bool = False) -> _Prompt:
    if path is None:
        return _Prompt(name, text, None, None, raw)
    try:
        return _Prompt(name, text, load_image(Path(path)), str(path), raw)
    except ValueError as error:
        raise ValueError(f"image {path}: {error}") from error


def _read_text(option: str, path: str) -> str:
    """A UTF-8 file as it is, line ends included, without a byte order mark."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{option}: expected UTF-8 text, {path} has the byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read_prompts(path: str) -> list[_Prompt]:
    """Prompts of a YAML file; paths of images count from its folder."""
    try:
        entries = yaml.safe_load(_read_text("prompts", path))
    except yaml.YAMLError as error:
        raise ValueError(f"prompts: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"prompts: expected a list of prompts in {path}, given {_short(entries)}")
    found = []
    for index, entry in enumerate(entries):
        fields = {"prompt": entry} if isinstance(entry, str) else entry
        if (
            not isinstance(fields, dict)
            or "prompt" not in fields
            or not fields.keys() <= {"prompt", "image", "name"}
            or not all(isinstance(value, str) for value in fields.values())
        ):
            raise ValueError(f"prompts: expected {_FORMS}; entry {index} of {path} is {_short(entry)}")
        image = None if "image" not in fields else Path(path).parent / fields["image"]
        found.append(_with_image(fields.get("name", f"prompt {index}"), fields["prompt"], image))
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ValueError(f"prompts: expected distinct names in {path}, given {_short(names)}")
    return found


def _from_task(
    model: DepthModule, datamodule: DepthDataModule, num_samples: int, options: dict[str, Any]
) -> tuple[list[_Prompt], list[BadSample]]:
    """Questions of the validation split, and those that cannot be read or do not fit the model's context."""
    if len(datamodule.tasks) > 1:
        raise ValueError(f"tokens takes its questions from one task, got {[task.name for task in datamodule.tasks]}")
    datamodule.take("validation", num_samples)
    dataset = datamodule.eval_dataset("validation")
    found, bad = [], []
    for sample in (dataset[position] for position in range(len(dataset))):
        if isinstance(sample, BadSample):
            bad.append(sample)
            continue
        prompt = _Prompt(sample.id, datamodule.task.prompt(sample), sample.image, sample.image_id)
        try:
            _encode(model, prompt, options)
        except ValueError as error:
            bad.append(BadSample(sample.id, str(error)))
            continue
        found.append(prompt)
    if not found:
        reason = f" ({bad[0].id}: {bad[0].reason})" if bad else ""
        raise ValueError(f"validation split of {datamodule.task.name}: no question can be analysed{reason}")
    return found, bad


def _encode(model: DepthModule, prompt: _Prompt, options: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        inputs = encode_prompt(model.processor, prompt.text, prompt.image, raw=prompt.raw)
        check_prompt(model.model, inputs, **options)
    except ValueError as error:
        raise ValueError(f"{prompt.name}: {error}") from error
    return inputs


def _fingerprint(image: Image | None) -> str | None:
    if image is None:
        return None
    return f"{image.width} x {image.height}, {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- measurement


def _spans(kinds: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the image as a whole and of the text as a whole; the start and the final token belong to neither.

    >>> _spans(["start", "vision", "vision", "text", "text"])
    {'image': [1, 2], 'text': [3]}
    """
    positions = {
        span: [position for position, each in enumerate(kinds[:-1]) if each == kind]
        for span, kind in (("image", "vision"), ("text", "text"))
    }
    return {span: found for span, found in positions.items() if found}


def _measure(
    model: DepthModule,
    prompts: Sequence[_Prompt],
    inputs: Sequence[dict[str, Tensor]],
    kinds: Sequence[list[str]],
    spans: bool,
    options: dict[str, Any],
    device: torch.device,
    folder: Path,
) -> list[_Measured]:
    """Tables of every prompt; what the folder holds already is not measured again."""
    found = []
    with tqdm(total=len(prompts), desc="tokens", unit="prompt", file=sys.stderr) as progress:
        for index, (prompt, mine, of_prompt) in enumerate(zip(prompts, inputs, kinds)):
            generated, rows, whole = (folder / f"{index:04d}{end}" for end in (".json", ".parquet", "_spans.parquet"))
            wanted = _spans(of_prompt) if spans else {}
            if not generated.is_file():
                model.to(device)
                on_device = {name: value.to(device) for name, value in mine.items()}
                frame = name_tokens(token_masking(model.model, on_device, **options), model.processor)
                write_parquet(rows, frame)
                if wanted:
                    write_parquet(whole, span_masking(model.model, on_device, wanted, **options))
                # last: whoever sees it may rely on the tables
                write_json(generated, {**frame.attrs, "device": str(device)})
            run = json.loads(generated.read_text(encoding="utf-8"))
            table = pd.read_parquet(whole) if wanted else None
            found.append(
                _Measured(prompt, of_prompt, read_token_masking(rows), table, run["generated_text"], run["device"])
            )
            progress.update()
    model.cpu()
    return found


# ---- result


def _kinds_of_rows(measured: _Measured) -> np.ndarray:
    """Kind of the hidden token of every row; the one at the final position of its step is ``final``."""
    positions, steps = (measured.tokens[name].to_numpy() for name in ("token_position", "generation_step"))
    length = len(measured.kinds)
    names = np.array([*measured.kinds, *["generated"] * (int(steps.max()) + 1)], dtype=object)[positions]
    names[positions == length - 1 + steps] = "final"
    return names


def _averages(measured: Sequence[_Measured]) -> dict[str, Any]:
    """``{kind: {Full | Attn: {metric: [per layer]}}}``: over tokens and steps of a prompt, then over prompts."""
    means = []
    for each in measured:
        rows = each.tokens.assign(group=_kinds_of_rows(each))
        means.append(_mean_by_layer(rows))
    return _over_prompts(means, KINDS)


def _span_averages(measured: Sequence[_Measured]) -> dict[str, Any]:
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


def _describe(measured: _Measured, num_prompts: int, index: int) -> dict[str, Any]:
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


def _write(
    folder: Path, result: dict[str, Any], measured: Sequence[_Measured], processor: Any, identity: dict[str, Any]
) -> list[Path]:
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
        title = f"Token masking: {_short(entry['text'])}"
        images = _page_images(each.prompt.image, processor)
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


def _page_images(image: Image | None, processor: Any) -> list[CropImage]:
    """The picture and where its tokens lie, for processors that tell."""
    parts = getattr(processor, "image_processor", None)
    if image is None or not isinstance(parts, MolmoImageProcessor):
        return []
    shown = image.copy()
    shown.thumbnail((_PAGE_PIXELS, _PAGE_PIXELS))
    file = io.BytesIO()
    shown.save(file, format="png")
    return [CropImage(file.getvalue(), image.width, image.height, vision_tokens(parts, image.height, image.width))]


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


def _summary(result: dict[str, Any], paths: Sequence[Path]) -> str:
    lines = ["", *_remarks(result), "", format_table(_prompt_rows(result), PROMPT_HEADERS), ""]
    lines += [f"L2 distances. {_EXPLAINED}", "", format_table(_rows(result, METRICS[0]), _headers(result)), ""]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
