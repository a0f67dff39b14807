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
