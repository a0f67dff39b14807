"""What is kept of a run for its page is what the page shows, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_depth.data.task import BadSample
from lit_depth.results.page import PAGE, write_parts
from lit_depth.results.run_records import scored_records
from lit_depth.results.shown_samples import read_kept
from lit_depth.studies.overview.folders import read_stored
from lit_depth.studies.shared.run_page import find_run_changes, keep_samples, run_part
from tests.helpers.result_folders import EVIL, edit_json, samples, write_comparison


class Dataset(list):
    """Samples of a split, one of which cannot be read any more."""

    def recorded_ids(self) -> list[tuple[str, str]]:
        return [(each.id, each.id) for each in self]


def run_of(folder: Path, answer: str) -> Any:
    asked: list[Any] = samples(answer)
    asked[-1] = BadSample(asked[-1].id, "gone")
    task = SimpleNamespace(
        task=SimpleNamespace(name="shapes"), eval_dataset=lambda split: Dataset(asked if split == "validation" else [])
    )
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        folder=folder,
        trainer=SimpleNamespace(strategy=strategy),
        for_each_task=lambda: [SimpleNamespace(datamodule=task)],
    )


def test_samples_that_some_mask_changes_are_kept_and_no_others(tmp_path: Path, comparison: dict[str, Any]) -> None:
    folder = write_comparison(tmp_path, comparison, right=0.6, answer=EVIL, with_samples=False)
    changes = find_run_changes(folder, {"data.tasks": ["shapes"]})
    split, masks = changes["shapes"]
    wanted = {change.sample for mask in masks for change in mask.shown}
    keep_samples(run_of(folder, EVIL), changes)
    kept = read_kept(folder)
    frame = scored_records(folder, {})["shapes"]
    right = frame[frame["mask"] == "1" * 16].set_index("sample")["score"]
    assert split == "validation" and set(kept.tasks["shapes"].samples) == wanted and len(wanted) < len(right)
    assert all(right[sample] == 1.0 for sample in wanted)  # fewer blocks answer nothing that more do not
    assert all(EVIL in each.question for each in kept.tasks["shapes"].samples.values())
    assert kept.device is not None and kept.device.startswith("cpu") and (kept.finished or "").endswith("+00:00")


def test_the_same_command_again_ended_when_it_first_did(tmp_path: Path, comparison: dict[str, Any]) -> None:
    folder = write_comparison(tmp_path, comparison)
    keep_samples(run_of(folder, "a cat"), {})
    assert read_kept(folder).finished == "2026-01-01T00:00:00+00:00"
    (folder / "page.json").write_text("{")
    keep_samples(run_of(folder, "a cat"), {})
    assert (read_kept(folder).finished or "") > "2026-01-01T00:00:00+00:00"


def test_facts_are_those_of_the_manifest_and_nothing_is_made_up(tmp_path: Path, comparison: dict[str, Any]) -> None:
    folder = write_comparison(tmp_path / "compare" / "a", comparison, "tiny", ("shapes", "charts"))
    stored = read_stored(folder)
    part = run_part(folder, stored.report, {}, stored.result)
    assert part.facts["model"] == "tiny" and part.facts["run"] == "compare/a" and part.facts["samples"] == "256, 256"
    assert part.facts["versions"] == "lit_depth 0.1.0, torch 2.13.0" and part.facts["finished"].startswith("2026-01-01")
    assert set(part.changes) == set(part.splits) == {"shapes", "charts"}
    (folder / "page.json").unlink()
    edit_json(folder / "manifest.json", versions=None)
    bare = run_part(folder, stored.report, {}, stored.result)
    assert {bare.facts[name] for name in ("versions", "device", "finished")} == {"not recorded"}


@pytest.mark.parametrize("most", [0, 3])
def test_the_page_shows_as_many_samples_as_asked_for(tmp_path: Path, comparison: dict[str, Any], most: int) -> None:
    folder = write_comparison(tmp_path, comparison, right=1.0, answer=EVIL)
    stored = read_stored(folder)
    part = run_part(folder, stored.report, {}, stored.result, most)
    bare = stored.report.__class__("t", "h", [], "test", masks=stored.report.masks)
    page = write_parts(tmp_path / PAGE, bare, [part.__class__(bare, {}, {}, changes=part.changes, kept=part.kept)])
    text = page.read_text(encoding="utf-8")
    data = json.loads(text.partition('id="page-data">')[2].partition("</script>")[0])
    (task,) = data["runs"][0]["tasks"]
    assert max(len(each["shown"]) for each in task["changes"].values()) == most
    shown = {change[0] for each in task["changes"].values() for change in each["shown"]}
    assert set(task["samples"]) == shown and EVIL not in text and (EVIL in str(task)) == bool(most)
