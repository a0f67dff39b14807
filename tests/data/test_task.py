"""What a task and a sample say by themselves."""

from __future__ import annotations

import pytest

from lit_depth.data.task import SPLITS, BadSample, Sample, Task, check_split, task_names
from lit_depth.data.tasks import TASKS


def test_roles_are_three():
    assert [check_split(split) for split in SPLITS] == ["train", "calibration", "validation"]
    with pytest.raises(ValueError, match="split must be one of train, calibration, validation, got 'test'"):
        check_split("test")


def test_a_task_says_what_it_cannot_do():
    class Mine(Task):
        name, metric, max_new_tokens = "mine_only", "ExactMatch", 4

    assert (Mine().answer_kind, Mine().needs_image, Mine().streaming) == ("short", False, False)
    with pytest.raises(ValueError, match="mine_only cannot be streamed"):
        Mine().stream("validation", 3)
    with pytest.raises(ValueError, match="expected a task that can be trained on.*mine_only is for evaluation only"):
        Mine().training_set(3, 0)
    # another task's folder may be anybody's
    assert {"mine_only", *(kind.name for kind in TASKS)} <= task_names()


def test_samples_stay_where_they_are_when_a_batch_moves():
    for held in (Sample("1", "1", None, "?", ("x",)), BadSample("1", "unread")):
        assert held.to("cuda:7", non_blocking=True) is held


def test_a_sample_with_several_prompts_is_one_piece_for_each():
    known = {"id": "1", "image_id": "1", "image": None, "question": "", "references": ("A",)}
    sample = Sample(**known, continuations=("a", "b", "a", "c"), prompts=("p", "p", "", "q"), target=2)
    pieces = [(piece.prompt, piece.continuations, piece.prompts, piece.target) for piece in sample.pieces()]
    assert pieces == [("p", ("a", "b"), (), 0), ("", ("a",), (), 0), ("q", ("c",), (), 0)]
    one = Sample(**known, continuations=("a", "b"), prompt="p", target=1)
    assert one.pieces() == [one]
    with pytest.raises(ValueError):
        Sample(**known, continuations=("a",), prompts=("p", "q")).pieces()
