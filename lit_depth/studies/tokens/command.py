"""``lit-depth tokens``: what each token of a prompt does for the final position of every block."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lit_depth.data import BadSample, DepthDataModule
from lit_depth.functional.arguments import check_least, checked
from lit_depth.functional.token_masking.distances import span_masking, token_masking
from lit_depth.functional.token_masking.prompt import name_tokens, token_kinds
from lit_depth.module import DepthModule
from lit_depth.results.store import read_of_run, write_of_run, write_parquet
from lit_depth.results.token_tables import read_token_masking
from lit_depth.studies.shared.old_log import log_to
from lit_depth.studies.shared.run_folder import open_run
from lit_depth.studies.tokens.prompts import (
    Prompt,
    encode,
    fingerprint,
    prompts_of_task,
    read_prompts,
    read_text,
    with_image,
)
from lit_depth.studies.tokens.report import (
    Measured,
    describe_prompt,
    kind_averages,
    span_averages,
    summary_text,
    write_results,
)


@checked
def tokens(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    prompt: str | None = None,
    prompt_file: str | None = None,
    prompts: str | None = None,
    image: str | None = None,
    num_samples: int | None = None,
    num_output_tokens: int = 1,
    after_end: bool = False,
    spans: bool = False,
    device: str | None = None,
    output_dir: str = "results",
    name: str = "default",
) -> dict[str, Any]:
    """Hide one token at a time from one block's attention: how far does the block's residual update change?

    Measured at the final position of the prompt, for every block: the update as a whole (Full), the attention's
    output (Attn) and that of each head (Head_N), as L2 and cosine distance from the unmasked model.

    Args:
        trainer: Runs the loops.
        model: Holds the model.
        datamodule: Gives the questions where no prompt is given, from the validation split.
        prompt: A question or text, which the model's processor wraps as it wraps every question.
        prompt_file: UTF-8 file that is the prompt as a whole, special tokens included: nothing is wrapped around
            it, and its last line feed counts.
        prompts: YAML file of many prompts: a list of texts, or of {prompt: ..., image: ..., name: ...}; images are
            looked up from the file's folder. Averages over them are written too.
        image: Image file that goes with --prompt or --prompt_file.
        num_samples: Questions of the task to take, instead of prompts; null = the first one.
        num_output_tokens: 1 analyses the prompt; N also the prompt with each of the first N - 1 tokens that the
            model generates behind it, up to an end token.
        after_end: Go on after an end token.
        spans: Also hide the image as a whole, and the text as a whole (but for the start and the final token).
        device: Where to compute: cpu, cuda, cuda:1; null = the trainer's device.
        output_dir: Results go to ``<output_dir>/tokens/<name>/``.
        name: Name of the run. A run of that name with the same arguments is continued where it was; with other
            arguments it is refused.

    Returns:
        The content of ``tokens.json``. Beside it stand ``masking_results.csv``, ``.json`` and ``.parquet`` with one
        row per generation step, block, hidden token and variant, and one page per prompt.

    Raises:
        ValueError: If several sources of prompts are given, or a prompt is empty, too long for the model, or its
            file or image cannot be read.
    """
    check_least(1, num_samples=num_samples, num_output_tokens=num_output_tokens)
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
        chosen = [with_image("prompt", prompt, image)]
    elif prompt_file is not None:
        chosen = [with_image("prompt", read_text("prompt_file", prompt_file), image, raw=True)]
    elif prompts is not None:
        chosen = read_prompts(prompts)
    else:
        splits = ["validation"]
        datamodule = datamodule.take("validation", num_samples or 1)
        chosen, bad = prompts_of_task(model, datamodule, options)
    inputs = [encode(model, each, options) for each in chosen]
    kinds = [token_kinds(model.processor, each["input_ids"][0].tolist(), model.model.config) for each in inputs]
    if spans and not any(map(_spans, kinds)):
        raise ValueError("--spans needs an image, or text between the start token and the final one")
    arguments = {
        "prompts": [[each.name, each.text, each.raw, fingerprint(each.image)] for each in chosen],
        "num_output_tokens": num_output_tokens,
        "after_end": after_end,
        "spans": spans,
    }
    options |= {"after_end": after_end, "end_tokens": model.end_token_ids}
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "tokens", name) as (folder, identity):
        measured = _measure(model, chosen, inputs, kinds, spans, options, where, folder / "records")
        result = {
            "command": "tokens",
            "num_blocks": model.num_blocks,
            "num_output_tokens": max(each.num_steps for each in measured),
            "device": ", ".join(sorted({each.device for each in measured})),
            "prompts": [describe_prompt(each, len(measured), index) for index, each in enumerate(measured)],
            "averages": kind_averages(measured),
            "spans": span_averages(measured),
            "bad_samples": [{"id": each.id, "reason": each.reason} for each in bad],
        }
        paths = write_results(folder, result, measured, model.prompter, identity)
    log_to(trainer, "log_tokens", result, folder)
    print(summary_text(result, paths))
    return result


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
    prompts: Sequence[Prompt],
    inputs: Sequence[dict[str, Tensor]],
    kinds: Sequence[list[str]],
    spans: bool,
    options: dict[str, Any],
    device: torch.device,
    folder: Path,
) -> list[Measured]:
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
                write_of_run(generated, {**frame.attrs, "device": str(device)})
            run = read_of_run(generated, generated_text=str, device=str)
            try:
                table, frame = pd.read_parquet(whole) if wanted else None, read_token_masking(rows)
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"a table beside {generated} is damaged ({error}): delete the run's folder to start over, or give "
                    "another --name"
                ) from error
            found.append(Measured(prompt, of_prompt, frame, table, run["generated_text"], run["device"]))
            progress.update()
    model.cpu()
    return found
