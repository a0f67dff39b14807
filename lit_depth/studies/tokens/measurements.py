"""What ``lit-depth tokens`` measures, prompt by prompt; what the run's folder holds already is not measured again."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lit_depth.callbacks.mask_sweep import located
from lit_depth.functional.token_masking.distances import span_masking, token_masking
from lit_depth.functional.token_masking.knockout import span_knockout
from lit_depth.functional.token_masking.prompt import name_tokens
from lit_depth.module import DepthModule
from lit_depth.results.store import read_of_run, write_of_run, write_parquet
from lit_depth.results.token_tables import read_token_masking
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.tokens.analysis import Measured
from lit_depth.studies.tokens.knockout_results import KnockedOut
from lit_depth.studies.tokens.knockout_spans import Span
from lit_depth.studies.tokens.prompts import Prompt

_KNOCKOUT_TABLES = ("answers", "positions")


def find_device(name: str | None, trainer: Trainer) -> torch.device:
    if name is None:
        return trainer.strategy.root_device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected cpu, cuda or cuda:1 as there is one here, got {name!r} ({reason})"
        ) from error
    return device


def spans_of(kinds: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the image as a whole and of the text as a whole; the start and the final token belong to neither.

    >>> spans_of(["start", "vision", "vision", "text", "text"])
    {'image': [1, 2], 'text': [3]}
    """
    positions = {
        span: [position for position, each in enumerate(kinds[:-1]) if each == kind]
        for span, kind in (("image", "vision"), ("text", "text"))
    }
    return {span: found for span, found in positions.items() if found}


def measure(
    run: Run,
    prompts: Sequence[Prompt],
    inputs: Sequence[dict[str, Tensor]],
    kinds: Sequence[list[str]],
    spans: bool,
    options: dict[str, Any],
    device: torch.device,
    hidden: Sequence[list[Span]] | None = None,
) -> list[Measured]:
    """Tables of every prompt; what the folder holds already is not measured again.

    Args:
        hidden: Spans of each prompt for knockouts; None = no knockouts.
    """
    found, model = [], run.model
    with tqdm(total=len(prompts), desc="tokens", unit="prompt", file=sys.stderr) as progress:
        for index, (prompt, mine, of_prompt) in enumerate(zip(prompts, inputs, kinds)):
            names = (f"records/{index:04d}{end}" for end in (".json", ".parquet", "_spans.parquet"))
            generated, rows, whole = (run.folder / name for name in names)
            of_knockouts = [run.folder / f"records/{index:04d}_knockout_{what}.parquet" for what in _KNOCKOUT_TABLES]
            wanted = spans_of(of_prompt) if spans else {}
            if not generated.is_file():
                started = time.perf_counter()
                model.to(device)
                on_device = {name: value.to(device) for name, value in mine.items()}
                with located(f"prompt {prompt.name}", model, run.trainer.precision):
                    distances = token_masking(model.model, on_device, **options)
                frame = name_tokens(distances, model.processor)
                write_parquet(rows, frame)
                if wanted:
                    write_parquet(whole, span_masking(model.model, on_device, wanted, **options))
                if hidden is not None:
                    told = _knock_out(model, on_device, hidden[index], frame.attrs, of_knockouts)
                    frame.attrs["answer_logprob"] = told
                # last: whoever sees it may rely on the tables
                write_of_run(generated, {**frame.attrs, "device": str(device)})
                run.effort.add("distances", len(frame), time.perf_counter() - started)
            wants = {} if hidden is None else {"answer_logprob": float}
            answer = read_of_run(generated, generated_text=str, device=str, **wants)
            try:
                table, frame = pd.read_parquet(whole) if wanted else None, read_token_masking(rows)
                knocked = [] if hidden is None else [pd.read_parquet(path) for path in of_knockouts]
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"a table beside {generated} is damaged ({error}): delete the run's folder to start over, or give "
                    "another --name"
                ) from error
            last = len(of_prompt) - 1
            knockouts = None
            if hidden is not None:
                knockouts = KnockedOut(hidden[index], answer["answer_logprob"], knocked[0], knocked[1], last)
            made = (answer["generated_text"], answer["device"], knockouts)
            found.append(Measured(prompt, of_prompt, frame, table, *made))
            progress.update()
    model.cpu()
    return found


def _knock_out(
    model: DepthModule,
    inputs: dict[str, Tensor],
    spans: Sequence[Span],
    generated: dict[Any, Any],
    paths: Sequence[Path],
) -> float:
    """Write the two tables of knockouts; returns the log-probability of the answer, which is what the model generates.

    Raises:
        ValueError: A model that generates nothing.
    """
    if generated["next_id"] is None:
        raise ValueError(f"expected a model that generates, for --knockout, got {type(model.model).__name__}")
    answer = torch.tensor([[*generated["generated_ids"], generated["next_id"]]], device=inputs["input_ids"].device)
    positions = {span.name: span.positions for span in spans}
    found = span_knockout(model.model, inputs, positions, answer, blocks=model.hparams["blocks"])
    for path, frame in zip(paths, (found.answers, found.positions)):
        write_parquet(path, frame)
    return found.answer_logprob
