"""``--model lit_depth`` of lm-evaluation-harness: a model with skipped blocks scores there what `compare` measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_depth.integrations.lm_eval_model import read_mask
from lit_depth.studies.shared.importance_scores import COMPARISON
from tests.helpers.commands import run
from tests.helpers.harness_tasks import Harness, write_model, write_rows


@pytest.mark.slow
def test_the_harness_scores_what_compare_measures(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import lm_eval

    from lit_depth.integrations.lm_eval_model import register

    register()
    checkpoint, data = write_model(tmp_path / "model"), write_rows(tmp_path / "data", "arc_easy")
    options = ["--model.checkpoint", checkpoint, "--data.task", "lm_eval:arc_easy", "--data.path", data]
    options += ["--data.num_samples", "null", "--output_dir", tmp_path, "--name", "x", "--num_requests", "0"]
    active = {"0111": ["1", "2", "3"], "1101": ["0", "1", "3"], "1010": ["0", "2"]}
    lists = [each for indices in active.values() for each in ("--active_block_indices", *indices)]
    assert run(["compare", *options, *lists]) == 0
    found = json.loads((tmp_path / "compare" / "x" / COMPARISON).read_text())
    ours = [each["masks"][0]["quality"] for each in found["strategies"]]
    tasks = [{"group": "local", "task": [{"task": "arc_easy", "dataset_path": str(data), "dataset_name": None}]}]
    known = Harness(checkpoint).tasks
    theirs = []
    for mask in active:
        arguments = f"pretrained={checkpoint},mask={mask},dtype=float32"  # which the harness reads as a number
        settings: dict[str, Any] = {"device": "cpu", "batch_size": 4, "bootstrap_iters": 0, "task_manager": known}
        theirs.append(lm_eval.simple_evaluate("lit_depth", arguments, tasks, **settings)["results"]["arc_easy"])
    assert ours == [pytest.approx(each["acc,none"]) for each in theirs] and len(set(ours)) > 1


def test_generation_and_rolling_log_probabilities_skip_too(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import torch
    from lm_eval.api.instance import Instance

    from lit_depth.functional import masked
    from lit_depth.integrations.lm_eval_model import register

    checkpoint = write_model(tmp_path / "model")
    plain = Harness(checkpoint).lm
    skipping = register()(str(checkpoint), skip="0+2", device="cpu", dtype="float32")
    wanted = torch.tensor([False, True, False, True])
    for kind, arguments in {
        "generate_until": ("What is red?", {"until": ["\n"], "max_gen_toks": 12}),
        "loglikelihood_rolling": ("What is red is not green.",),
        "loglikelihood": ("What is red?", " circle"),
    }.items():
        request = [Instance(kind, {}, arguments, 0, ("task", 0, 1))]
        full = getattr(plain, kind)(request)
        with masked(plain.model, wanted):
            expected = getattr(plain, kind)(request)
        assert getattr(skipping, kind)(request) == expected != full


@pytest.mark.slow
def test_the_harnesses_command_knows_the_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    checkpoint, data = write_model(tmp_path / "model"), write_rows(tmp_path / "data", "piqa")
    definition = f"task: mine\ndataset_path: {data}\noutput_type: multiple_choice\nvalidation_split: validation\n"
    questions = "doc_to_text: goal\ndoc_to_target: label\ndoc_to_choice: '{{[sol1, sol2]}}'\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text(definition + questions)
    command = [sys.executable, "-m", "lit_depth.integrations.lm_eval_model", "--model", "lit_depth", "--device", "cpu"]
    arguments = ["--model_args", f"pretrained={checkpoint},skip=1+2", "--tasks", "mine"]
    done = subprocess.run(
        [*command, *arguments, "--include_path", str(tmp_path / "mine")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "skip" in done.stdout and "|mine " in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "111"}, "4"),
        ({"mask": 0}, "at least one active block"),
        ({"skip": "0+4"}, "numbers of blocks from 0 to 3"),
        ({"skip": "first"}, "numbers of blocks"),
        ({"mask": "1111", "skip": 0}, "mask or skip"),
    ],
)
def test_a_wrong_mask_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mask(4, **given)
