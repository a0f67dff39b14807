"""How far a sweep has come, from its folder alone: what it was to record, what it recorded, and when."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lit_depth.results.reading import read_object
from lit_depth.results.records import BAD, record_lines
from lit_depth.results.store import run_of, write_of_run

PLAN = "sweep.json"
_MASK = re.compile("[01]+")


class Progress(NamedTuple):
    """What the records of one folder tell.

    Args:
        done: Records of a mask and a sample, each counted once.
        expected: How many there will be; None where no sweep said so, as of latencies.
        num_files: Files that they are in: one of each process.
        records_per_second: Of the latest process that was started; None before its first record.
        seconds_left: At that speed; None where it is not known.
        last: When something was last written, in seconds since 1970.
    """

    done: int
    expected: int | None
    num_files: int
    records_per_second: float | None
    seconds_left: float | None
    last: float


def write_plan(folder: Path, masks: Collection[str], num_samples: int) -> None:
    """Say what a sweep is about to record; the file's time says when it began.

    Args:
        folder: Of its records.
        masks: Ids of all masks that are asked for, done or not.
        num_samples: That each of them is to answer.
    """
    answered, _ = _read(folder)
    asked = sum(mask in masks for mask, _ in answered)
    plan = {"masks": len(masks), "samples": num_samples, "recorded": asked, "others": len(answered) - asked}
    write_of_run(folder / PLAN, plan)


def read_progress(folder: Path) -> Progress:
    """How far the sweep, or the timing, of a folder of records has come.

    A last line without line feed is one that is being written.

    Raises:
        ValueError: If a file is damaged or another run's.
    """
    files = sorted(folder.glob("*.jsonl"))
    answered, bad = _read(folder)
    plan = folder / PLAN
    last = max((path.stat().st_mtime for path in [*files, plan] if path.is_file()), default=0.0)
    if not plan.is_file():
        return Progress(len(answered), None, len(files), None, None, last)
    content = read_object(plan)
    try:
        masks, samples, recorded, others = (int(content[key]) for key in ("masks", "samples", "recorded", "others"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{plan}: expected numbers of masks and samples: delete the file") from error
    expected = others + masks * max(samples - bad, 0)
    new, seconds = len(answered) - others - recorded, last - plan.stat().st_mtime
    speed = new / seconds if new > 0 and seconds > 0 else None
    missing = max(expected - len(answered), 0)
    left = 0.0 if not missing else None if speed is None else missing / speed
    return Progress(len(answered), expected, len(files), speed, left, last)


def _read(folder: Path) -> tuple[set[tuple[str, str]], int]:
    """Masks and samples of all answers in a folder, and how many samples were bad and stayed so."""
    answered, bad = set(), set()
    for path in sorted(folder.glob("*.jsonl")):
        for _, record in record_lines(path, run_of(path)):
            if _MASK.fullmatch(record["mask"]):
                answered.add((record["mask"], record["sample"]))
            elif record["mask"] == BAD:
                bad.add(record["sample"])
    return answered, len(bad - {sample for _, sample in answered})
