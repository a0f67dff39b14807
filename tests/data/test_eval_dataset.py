"""Chosen rows as samples: the same everywhere, a broken one costs itself, images are read when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lit_depth.data import BadSample, DepthDataModule, Sample, ShapesVQA
from lit_depth.data.eval_dataset import BatchShards, choose_rows
from tests.helpers.own_tasks import Pairs, RepeatedTask


@pytest.mark.parametrize("num_rows", [10, 1000])
def test_fewer_rows_are_a_subset_of_more(num_rows):
    choices = [choose_rows(num_rows, n, "0/validation") for n in (1, 5, 10, None)]
    for fewer, more in zip(choices, choices[1:]):
        assert set(fewer) <= set(more) and fewer == sorted(fewer)
    assert choices[-1] == list(range(num_rows))
    assert choose_rows(1000, 10, "0/validation") != choose_rows(1000, 10, "1/validation")


@pytest.mark.slow
def test_chosen_samples_are_the_same_in_every_process():
    code = "from lit_depth.data.eval_dataset import choose_rows; print(choose_rows(2000, 30, '0/validation'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == str(choose_rows(2000, 30, "0/validation"))


def test_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="gives only 1 to the 3 chosen samples"):
        DepthDataModule(task=RepeatedTask("same")).eval_dataset("validation").ids()


def test_unreadable_rows_become_bad_samples():
    good, broken, unanswered = DepthDataModule(task=RepeatedTask()).eval_dataset("validation")
    assert isinstance(good, Sample) and good.image.size == (56, 56)
    assert isinstance(broken, BadSample) and broken.id == "repeated/validation/1" and "Error" in broken.reason
    assert unanswered == BadSample("2", "ValueError: no reference answer")


def test_unreadable_samples_are_known_by_their_place():
    class Damaged(ShapesVQA):
        def sample(self, row, split, index):
            if index == 3:
                raise OSError("damaged")
            return super().sample(row, split, index)

    dataset = DepthDataModule(None, Damaged(num_images=2), num_samples=None).eval_dataset("validation")
    recorded = dataset.recorded_ids()
    assert recorded[3] == ("shapes_vqa/validation/3", "shapes_vqa/validation/3") and dataset[3].id == recorded[3][0]
    assert [pair for place, pair in enumerate(recorded) if place != 3] == dataset.ids()


def test_a_question_may_have_several_images():
    task = Pairs()
    task.load = lambda split, path=None: Pairs.load(task, split).select([0, 2])
    dataset = DepthDataModule(None, task, num_samples=None).eval_dataset("validation")
    first, second = (dataset[position] for position in range(2))
    assert [(image.mode, image.size) for image in first.images] == [("RGB", (56, 56)), ("RGB", (8, 4))]
    assert first.images == (first.image, *first.more_images) and first.more_images[0].getpixel((0, 0)) == (255, 0, 0)
    assert isinstance(second, BadSample) and "the image cannot be decoded" in second.reason
    # the further picture is a part of what is asked
    before, task.second = dataset.fingerprint(), ("black", "blue", "green")
    changed = DepthDataModule(None, task, num_samples=None).eval_dataset("validation")
    assert changed.fingerprint() != before


def test_images_are_dropped_unread():
    whole = DepthDataModule(None, RepeatedTask(), num_samples=2)
    dropped = DepthDataModule(None, RepeatedTask(), num_samples=2, drop_images=True)
    samples = [[data.eval_dataset("validation")[position] for position in range(2)] for data in (whole, dropped)]
    assert isinstance(samples[0][1], BadSample)  # its image is damaged
    assert [sample.images for sample in samples[1]] == [(), ()]
    assert samples[1][0].question == samples[0][0].question and samples[1][0].id == samples[0][0].id
    assert whole.eval_dataset("validation").fingerprint() != dropped.eval_dataset("validation").fingerprint()
    several = DepthDataModule(None, Pairs(), num_samples=None, drop_images=True)
    assert not any(several.eval_dataset("validation")[position].images for position in range(3))


@pytest.mark.parametrize(("size", "batch_size", "world"), [(10, 3, 2), (12, 4, 3), (5, 8, 2), (1, 1, 4)])
def test_every_batch_goes_to_one_process_whole(size, batch_size, world):
    shards = [list(BatchShards(range(size), batch_size, rank, world)) for rank in range(world)]
    positions = sorted(position for shard in shards for position in shard if position is not None)
    assert positions == list(range(size)) and all(shards)
    owner = {position: rank for rank, shard in enumerate(shards) for position in shard}
    batches = [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
    assert all(len({owner[position] for position in batch}) == 1 for batch in batches)
