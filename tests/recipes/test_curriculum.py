"""Phases come one after another, ask their own questions, and set their own rates."""

import math

import pytest

from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesTrainingSet
from lit_depth.recipes.curriculum import ShapesCurriculum, TrainingPhase, find_phase
from tests.data.tasks.test_easy_vqa import site_packages  # noqa: F401  (a fixture)

COUNTS = {"color": 0.2, "count": 0.8}
HOPS = {"place": 0.5, "hop": 0.5}
PHASES = [TrainingPhase(3, COUNTS), TrainingPhase(2, HOPS, easy_vqa=0.5)]


def test_steps_fall_into_their_phases():
    found = [find_phase(PHASES, step) for step in range(6)]
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_rates_rise_in_a_line_and_fall_in_half_a_cosine():
    phase = TrainingPhase(10, COUNTS, rate=(0.8, 0.2), warmup_steps=4)
    by_hand = [(0.2 + 0.6 * 0.5 * (1 + math.cos(math.pi * step / 10))) * min(1, (step + 1) / 4) for step in range(10)]
    assert [phase.rate_at(step) for step in range(10)] == pytest.approx(by_hand)
    assert [TrainingPhase(4, COUNTS, dropout=(0.0, 0.4)).peak_at(step) for step in range(4)] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3]
    )


def test_every_phase_asks_its_own_questions(site_packages):  # noqa: F811
    phases = [TrainingPhase(2, COUNTS), TrainingPhase(10, HOPS, easy_vqa=0.5), TrainingPhase(2, HOPS)]
    items = ShapesCurriculum(phases, str(site_packages / "easy_vqa" / "data")).training_set(14 * 4, 7)
    assert len(items) == 56
    ours = [bool(items[index].grid[0]) for index in range(56)]
    assert all(ours[:8]) and all(ours[48:])
    # 40 draws of a half: 0.5 +- 4 standard errors
    assert 0.18 < sum(ours[8:48]) / 40 < 0.82
    for weights, places in ((COUNTS, range(8)), (HOPS, range(8, 56))):
        alone = ShapesTrainingSet(56, 7, weights)
        for index in places:
            if ours[index]:
                assert items[index].questions == alone[index].questions
    again = ShapesCurriculum(phases, str(site_packages / "easy_vqa" / "data")).training_set(14 * 4, 7)
    assert [items[index].questions for index in range(56)] == [again[index].questions for index in range(56)]


def test_batches_come_in_the_order_of_the_phases(prompter):
    phases = [TrainingPhase(2, COUNTS), TrainingPhase(2, HOPS)]
    data = DepthDataModule(prompter, task=ShapesCurriculum(phases), train_batch_size=2, train_images=8, seed=3)
    kinds = [prompter.tokenizer.decode(batch["input_ids"][0]) for batch in data.train_dataloader()]
    assert ["How many" in kind for kind in kinds] == [True, True, False, False]
    assert ["Which" in kind for kind in kinds] == [False, False, True, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TrainingPhase(0, COUNTS), "steps"),
        (lambda: TrainingPhase(1, {"color": 0.5}), "sum to 1"),
        (lambda: TrainingPhase(1, COUNTS, easy_vqa=1.5), "1.5"),
        (lambda: TrainingPhase(1, COUNTS, dropout=(0.0, -0.1)), "-0.1"),
        (lambda: TrainingPhase(1, COUNTS, rate=(1.0, -1.0)), "rate"),
        (lambda: ShapesCurriculum([]), "at least one phase"),
        (lambda: ShapesCurriculum([TrainingPhase(3, COUNTS)]).training_set(7, 0), "multiple of the phases' 3 steps"),
    ],
)
def test_mistakes_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
