"""What tasks of harnesses share; their laws stand beside each harness."""

from __future__ import annotations

import pytest

from lit_depth.integrations import harness
from lit_depth.integrations.harness import HarnessMetric, data_folder, split_name


@pytest.mark.parametrize("scores", [{"rouge": 40.0}, {"acc": 1.0}, {}])
def test_a_metric_that_is_no_share_is_refused(scores):
    metric = HarnessMetric()
    metric.chosen = "rouge"
    with pytest.raises(ValueError, match="'rouge' between 0 and 1"):
        metric._recorded("A", scores)


def test_a_folder_called_as_the_task_is_taken(tmp_path):
    (tmp_path / "piqa").mkdir()
    assert data_folder(str(tmp_path), "piqa") == str(tmp_path / "piqa")
    assert data_folder(str(tmp_path), "other") == str(tmp_path) and data_folder(None, "piqa") is None
    with pytest.raises(ValueError, match="expected a folder"):
        data_folder(str(tmp_path / "none"), "piqa")


def test_names_are_tasks_and_metrics():
    assert split_name("a", "h") == ("a", None) and split_name("a:b,c", "h") == ("a", "b,c")
    with pytest.raises(ValueError, match="expected h:NAME"):
        split_name(":b", "h")
    with pytest.raises(AttributeError):
        _ = harness.never_a_metric


def test_definitions_are_found_by_the_name_in_their_files(tmp_path):
    for room, name, line in (
        ("a", "plain", "task: one"),
        ("a", "quoted", "'task': \"two\""),
        ("b", "again", "group: all\ntask: one\n"),
        ("b", "listed", "task:\n  - one\n  - two\n"),
        ("b", "indented", "metric:\n  task: three\n"),
    ):
        (tmp_path / room).mkdir(exist_ok=True)
        (tmp_path / room / f"{name}.yaml").write_text(line)
    found = {name: sorted(folders) for name, folders in harness.definition_folders(tmp_path).items()}
    assert found == {"one": [tmp_path / "a", tmp_path / "b"], "two": [tmp_path / "a"]}


def test_files_are_splits_by_the_names_that_the_definition_has(tmp_path):
    definition = {"test_split": "test", "fewshot_split": "dev", "validation_split": None}
    for name in ("test.jsonl", "dev-00000-of-00002.jsonl", "dev-00001-of-00002.jsonl", "README.md"):
        (tmp_path / name).write_text("{}")
    assert harness.split_files(str(tmp_path), definition) == {
        "dev": ["dev-00000-of-00002.jsonl", "dev-00001-of-00002.jsonl"],
        "test": ["test.jsonl"],
    }
    (tmp_path / "test.jsonl").unlink()  # which may lie below, or be called otherwise
    assert harness.split_files(str(tmp_path), definition) is None
