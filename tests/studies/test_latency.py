"""``lit-depth latency``: the format that scripts read, and times that fit together."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lit_depth.functional.statistics import holm
from lit_depth.studies.latency.analysis import _ratios
from tests.helpers.commands import run

SMALL = ["--num_samples", "3", "--new_tokens", "4"]
SUMMARY = {"P50", "P95", "P99", "mean", "std", "min", "max"}
SHAPE = {"num_active_blocks", "num_total_blocks", "active_block_indices"}
TIMES = {"T_LLM_prefill", "T_LLM_decode", "T_vision_total", "T_total"}
TOKENS = {"num_input_text_tokens", "num_vision_tokens", "num_output_tokens"}


@pytest.mark.slow
def test_writes_the_format_that_scripts_read(checkpoint, tmp_path, capsys):
    command = ["latency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    command += ["--num_active_blocks", "4", "8", "16", "--policies", "prefix", "uniform"]
    assert run(command) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "latency" / "default"
    result = json.loads((folder / "latency.json").read_text())
    assert set(result) == {"summary", "all_samples"}
    assert [entry["num_active_blocks"] for entry in result["summary"]] == [16, 4, 8, 4, 8]
    for entry in result["summary"]:
        assert set(entry) == SHAPE | {"prefill", "decode"}
        assert len(entry["active_block_indices"]) == entry["num_active_blocks"] and entry["num_total_blocks"] == 16
        for stage in ("prefill", "decode"):
            assert set(entry[stage]) == SUMMARY and entry[stage]["P99"] is None
            assert 0 < entry[stage]["min"] <= entry[stage]["P50"] <= entry[stage]["P95"] <= entry[stage]["max"]
    assert len(result["all_samples"]) == 5 * 3
    for sample in result["all_samples"]:
        assert set(sample) == {"sample_id"} | SHAPE | TIMES | TOKENS
        parts = sample["T_vision_total"] + sample["T_LLM_prefill"] + sample["T_LLM_decode"]
        assert sample["T_total"] == pytest.approx(parts, rel=0.03)
        assert sample["num_output_tokens"] == 4 and sample["num_vision_tokens"] > 0
    details = json.loads((folder / "latency_details.json").read_text())
    assert details["fits"]["total"]["slope"] > 0 and 0 <= details["fits"]["total"]["r2"] <= 1
    full, fewest = details["configurations"][:2]
    assert full["of_full"]["total"] == {  # by definition: nothing is estimated
        "ratio": 1.0,
        **dict.fromkeys(("ci", "simultaneous_ci", "p_value", "p_holm")),
    }
    low, high = fewest["of_full"]["total"]["ci"]
    assert low < fewest["of_full"]["total"]["ratio"] < high
    assert fewest["policies"] == ["prefix"] and fewest["of_full"]["prefill"]["ratio"] < 1
    for name in ("figures/latency_vs_blocks.png", "report.html", "records.parquet", "manifest.json"):
        assert (folder / name).stat().st_size > 0
    assert "per block" in out
    # what is measured stays measured
    before = (folder / "latency.json").read_bytes()
    assert run(command) == 0 and (folder / "latency.json").read_bytes() == before
    assert run([*command, "--new_tokens", "5"]) == 2 and "another new_tokens" in capsys.readouterr().err
    assert run([*command, "--num_samples", "2"]) == 2
    assert "another num_samples: there 3, now 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_time_is_fitted_and_a_plan_predicts_from_it(checkpoint, tmp_path, capsys):
    common = ["latency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--num_active_blocks", "4", "16"]
    plan = [*common, "--plan", "true", "--plan_batches", "1", "6", "--new_tokens", "2"]
    assert run(plan) == 0
    assert "No model of time of this checkpoint on this machine was found" in capsys.readouterr().out
    assert run([*common, "--num_samples", "4", "--new_tokens", "2", "--fit_time_model", "true"]) == 0
    assert "Requests under masks that were left out of the fit" in capsys.readouterr().out
    folder = tmp_path / "latency" / "default"
    model = json.loads((folder / "time_model.json").read_text())
    batches = sorted(path.name.split("_")[1] for path in (folder / "time_model").glob("*.jsonl"))
    assert batches == ["1", "4", "4"] and model["ranges"]["batch_size"] == [1, 4] and model["whole_blocks"]
    low, high = model["ranges"]["prompt_tokens"]
    assert high > 1.5 * low
    assert run(plan) == 0
    assert "nothing was timed now" in capsys.readouterr().out
    plans = json.loads((tmp_path / "plan" / "default" / "plan.json").read_text())["plans"]
    for entry in plans:
        times = entry["predicted_ms"]
        assert times["total"] == pytest.approx(times["vision"] + times["prefill"] + times["decode_per_token"])
        assert entry["extrapolated"] == (entry["batch_size"] == 6)
    capsys.readouterr()
    assert run([*common, "--new_tokens", "1", "--fit_time_model", "true"]) == 2
    assert "expected new_tokens of at least 2 with --fit_time_model true, got 1" in capsys.readouterr().err


@pytest.mark.slow
def test_index_lists_batches_and_a_continued_run(checkpoint, tmp_path):
    command = ["latency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--new_tokens", "1"]
    command += ["--num_samples", "5", "--batch_size", "2"]
    command += ["--active_block_indices", "0", "5", "10", "15", "--active_block_indices", "3"]
    assert run(command) == 0
    folder = tmp_path / "latency" / "default"
    records = folder / "records" / "shapes_vqa" / "validation" / "rank0.jsonl"
    head, *lines = records.read_text().splitlines(keepends=True)
    assert len(lines) == 3 * 2  # the fifth sample alone is no request of two
    details = json.loads((folder / "latency_details.json").read_text())
    assert [entry["num_active_blocks"] for entry in details["configurations"]] == [16, 4, 1]
    assert details["configurations"][1]["latency_ms"]["decode_per_token"] is None
    records.write_text("".join([head, *lines[:4]]))  # killed in its second request
    assert run(command) == 0
    _, *again = records.read_text().splitlines(keepends=True)
    assert run(command) == 0  # what was measured again is not the same to the last digit, which is no error
    assert again[:3] == lines[:3]
    # of the interrupted request nothing but its second, complete measurement counts: masks are compared within it
    measured = json.loads((folder / "latency.json").read_text())["all_samples"]
    times = sorted(row["T_total"] for row in measured)
    assert times == sorted(json.loads(line)["total"] for line in [*lines[:3], *again[-3:]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_active_blocks", "0"], "must lie in 1..16, got [0]"),
        (["--active_block_indices", "16"], "16"),
        (["--active_block_indices", "3", "3"], "3"),
        (["--num_samples", "0"], "expected num_samples of at least 1, got 0"),
        (["--batch_size", "0"], "expected batch_size of at least 1, got 0"),
        (["--new_tokens", "0"], "expected new_tokens from 1 to 1048576, got 0"),
        (["--num_samples", "2", "--batch_size", "4"], "must be at least batch_size (4)"),
        (["--policies", "importance"], "needs --importance file"),
        (["--policies", "importance", "--active_block_indices", "[]"], "must hold at least one list"),
        (["--policies", "nonsense"], "nonsense"),
        (["--data.tasks", "shapes_vqa", "text_vqa"], "requests from one task"),
        (["--trainer.accelerator", "gpu"], "none was found on this machine: leave it out"),
        (["--trainer.accelerator", "cuda"], "none was found on this machine: leave it out"),
        (["--trainer.accelerator", "cpu", "--trainer.devices", "2"], "one process, got 2"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    if "none was found" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert run(["latency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err.lower() and "Traceback" not in err and not list(tmp_path.rglob("latency.json"))


def ratio(mine: np.ndarray, full: np.ndarray, images: list[str]) -> dict:
    return _ratios(pd.DataFrame([mine, full], index=["10", "11"]), "11", images, 0.95)["10"]


def test_ratios_of_times_are_student_limits_of_their_logarithms():
    logs = np.log(0.8) + 0.05 * np.tile([-1.0, 1.0], 10)
    found = ratio(np.exp(logs), np.ones(20), [str(image) for image in range(20)])
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert found["ratio"] == pytest.approx(0.8)
    assert found["ci"] == pytest.approx([np.exp(low), np.exp(high)])
    assert found["simultaneous_ci"] == found["ci"]  # a family of one


def test_equal_ratios_are_not_certain():
    """A coarse clock shows the same ratio for 20 requests: another may take twice as long, as far as these tell."""
    three, four = np.full(20, 3.0), np.full(20, 4.0)
    found = ratio(three, four, [str(image) for image in range(20)])
    margin = (1 - 0.05 ** (1 / 20)) * np.log(2)  # rule of three
    assert found["ci"] == pytest.approx([0.75 * np.exp(-margin), 0.75 * np.exp(margin)])
    nothing = dict.fromkeys(("ci", "simultaneous_ci", "p_value", "p_holm"))
    assert ratio(three, four, ["one"] * 20) == {"ratio": pytest.approx(0.75), **nothing}


@pytest.mark.parametrize("seed", range(5))
def test_ratios_to_the_full_model_are_one_family(seed):
    """A simultaneous interval leaves 1 out exactly where Holm's p-value is below 0.05, also next to 1."""
    generator = np.random.default_rng(seed)
    names = [f"{index:03b}" for index in range(1, 8)]
    times = np.exp(generator.normal(np.linspace(-0.06, 0, 7)[:, None], 0.1, (7, 24)))
    found = _ratios(pd.DataFrame(times, index=names), "111", [str(image) for image in range(24)], 0.95)
    assert found["111"]["ratio"] == 1 and found["111"]["p_holm"] is None
    others = [found[name] for name in names[:-1]]
    assert [each["p_holm"] for each in others] == pytest.approx(holm([each["p_value"] for each in others]).tolist())
    for each in others:
        for key, p in (("ci", "p_value"), ("simultaneous_ci", "p_holm")):
            low, high = each[key]
            assert (low > 1 or high < 1) == (each[p] < 0.05)


@pytest.mark.slow
def test_static_buffers_are_timed_and_told(checkpoint, tmp_path, capsys):
    command = [
        "latency",
        "--model.checkpoint",
        checkpoint,
        "--output_dir",
        tmp_path,
        *SMALL,
        "--num_active_blocks",
        "4",
    ]
    static = [*command, "--decoding", "static"]
    assert run(static) == 0
    assert "Decoded on static buffers." in capsys.readouterr().out
    folder = tmp_path / "latency" / "default"
    details = json.loads((folder / "latency_details.json").read_text())
    assert details["decoding"] == "static" and details["decoded_on"] == "static buffers"
    for sample in json.loads((folder / "latency.json").read_text())["all_samples"]:
        parts = sample["T_vision_total"] + sample["T_LLM_prefill"] + sample["T_LLM_decode"]
        assert sample["T_total"] == pytest.approx(parts) and sample["num_output_tokens"] == 4
    # times of one kind are not continued by those of the other
    assert run(command) == 2 and 'another decoding: there "static"' in capsys.readouterr().err
    for more, message in (
        (["--plan", "true"], "leave out --decoding static"),
        (["--model.phase", "decode"], "leave out --model.phase decode"),
        (["--model.skip_tokens", "image"], "leave out --model.skip_tokens image"),
        (["--trainer.precision", "bf16-mixed"], "give --model.dtype bfloat16"),
    ):
        assert run([*static, *more]) == 2 and message in capsys.readouterr().err
