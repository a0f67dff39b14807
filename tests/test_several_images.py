"""Questions about no image, about one and about two stand in one batch of a command, and are answered as each alone."""

from __future__ import annotations

import pytest

from tests.helpers.commands import run
from tests.helpers.families import FAMILIES, NUM_BLOCKS
from tests.helpers.family_commands import COMMANDS, asked, check, check_answers
from tests.helpers.own_tasks import NoneToTwoImages

NUM_SAMPLES = 6


@pytest.mark.parametrize("name", ["Qwen2.5-VL", pytest.param("Idefics3", marks=pytest.mark.slow)])
def test_a_batch_of_questions_about_no_image_one_and_two_is_answered_as_each_alone(name, tmp_path):
    family, task, checkpoint = FAMILIES[name], NoneToTwoImages(), tmp_path / "checkpoint"
    checkpoint.mkdir()
    family.write(checkpoint)
    _, _, samples = asked(family, checkpoint, task, NUM_SAMPLES)
    assert sorted(len(sample.images) for sample in samples.values()) == [0, 0, 1, 1, 2, 2]
    given = ("--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--trainer.accelerator", "cpu")
    data = ("--data.task", "tests.helpers.own_tasks.NoneToTwoImages", "--data.calibration_samples", NUM_SAMPLES)
    one_batch = ("--data.num_samples", NUM_SAMPLES, "--data.batch_size", NUM_SAMPLES)
    assert run(["compare", *COMMANDS["compare"], *given, *data, *one_batch]) == 0
    folder = tmp_path / "compare" / "default"
    check("compare", folder, NUM_BLOCKS, NUM_SAMPLES)
    check_answers(family, checkpoint, folder, task, NUM_SAMPLES)
