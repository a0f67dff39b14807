"""Shares and granularity are checked before anything is measured."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lit_depth.studies.shared.checks import (
    check_one_process,
    check_one_task,
    check_shares,
    check_static,
    check_times_alone,
    check_whole_blocks,
)
from tests.helpers.tiny_models import tiny_model


@pytest.mark.parametrize(("confidence", "share"), [(0.5, 0.0), (0.95, 1.0), (0.9999, 0.01)])
def test_shares_are_taken(confidence, share):
    check_shares(confidence, share)


@pytest.mark.parametrize(
    ("confidence", "share", "message"),
    [
        (1.0, 0.0, "confidence"),
        (0.1, 0.0, "confidence"),
        (0.95, -0.1, "max_bad_samples"),
        (0.95, 1.1, "max_bad_samples"),
    ],
)
def test_what_is_no_share_is_named(confidence, share, message):
    with pytest.raises(ValueError, match=f"expected {message} from"):
        check_shares(confidence, share)


def test_sublayers_are_refused_by_commands_of_whole_blocks():
    check_whole_blocks(SimpleNamespace(hparams={"granularity": "block"}), "compare")
    with pytest.raises(ValueError, match="select takes whole blocks only"):
        check_whole_blocks(SimpleNamespace(hparams={"granularity": "sublayer"}), "select")


def test_several_tasks_and_processes_are_refused_with_the_rule_that_they_break():
    one, two = SimpleNamespace(name="shapes"), SimpleNamespace(name="text")
    check_one_task(SimpleNamespace(tasks=[one]), "search takes one task at a time")
    with pytest.raises(ValueError, match=r"search takes one task at a time, got \['shapes', 'text'\]"):
        check_one_task(SimpleNamespace(tasks=[one, two]), "search takes one task at a time")
    check_one_process(SimpleNamespace(world_size=1), "tokens is run by one process")
    with pytest.raises(ValueError, match="tokens is run by one process, got 2: give --trainer.devices 1"):
        check_one_process(SimpleNamespace(world_size=2), "tokens is run by one process")


def test_a_model_that_several_processes_hold_is_not_timed():
    check_times_alone(SimpleNamespace(is_split=False), "give --num_requests 0")
    with pytest.raises(ValueError, match="none holds the whole model: give --num_requests 0"):
        check_times_alone(SimpleNamespace(is_split=True), "give --num_requests 0")


@pytest.mark.parametrize(
    ("hparams", "precision", "message"),
    [
        ({}, "32-true", None),
        ({"skip_tokens": "image"}, "32-true", "leave out --model.skip_tokens image"),
        ({"phase": "decode"}, "32-true", "leave out --model.phase decode"),
        ({}, "bf16-mixed", "give --model.dtype bfloat16"),
        ({"penalty": 1.3}, "32-true", "has repetition_penalty: leave out --decoding static"),
    ],
)
def test_static_decoding_is_refused_where_it_does_not_serve(hparams, precision, message):
    model = tiny_model("llama")
    model.generation_config.repetition_penalty = hparams.pop("penalty", None)
    module = SimpleNamespace(hparams={"blocks": None, "skip_tokens": "all", "phase": "both"} | hparams, model=model)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_static(module, SimpleNamespace(precision=precision))
