"""Answers from a Ray cluster whose nodes come and go: ``--executor ray``.

Ray starts the workers, finds out when one is lost, and starts another one where there is room. What is left to be done
here is to hand the unit of a lost worker to another. Everything else of a run stays in its own process: data, scores,
records.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import ray
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from ray.exceptions import RayActorError, RayTaskError

from lit_depth.functional.fingerprints import weights_sample
from lit_depth.functional.masks import MaskSet
from lit_depth.module import ANSWERED, DepthModule, MaskedPredictions

_AHEAD = 2  # units that a worker is asked for before it is done with the first one
_OPEN = 4  # units for each worker that are read before the first one's answer was taken
_PATIENCE_SECONDS = 60.0
# what a loop sets in the module, and what an answer depends on
_SETTINGS = ("max_new_tokens", "reads_lens", "acceptance")


# of a unit that is recorded already
_NOTHING = MaskedPredictions([], [], [], torch.zeros(0, 0))


class Unit(NamedTuple):
    """What a worker answers at once: a batch under all masks that are wanted of it."""

    batch: dict[str, Any]
    masks: MaskSet
    settings: dict[str, Any]


class Worker:
    """A process of the cluster that holds the model, on a GPU of its own if the cluster has any; a Ray actor."""

    def __init__(self, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.device = torch.device(device)
        self.weights: str | None = None
        self.model: Any = None

    def is_up(self) -> bool:
        """Answered once the process is there."""
        return True

    def answer(self, held: list[Any], weights: str, unit: Unit) -> MaskedPredictions:
        """Predictions of a unit by the model behind the reference in ``held``, which is fetched where it is new."""
        if weights != self.weights:
            self.model = None  # room for the next one
            self.model = ray.get(held[0]).to(self.device).eval()
            if (found := weights_sample(self.model)) != weights:
                raise ValueError(f"expected weights {weights} on every worker, got {found}")
            self.weights = weights
        for name, value in unit.settings.items():
            setattr(self.model, name, value)
        with torch.inference_mode():
            self.model.requested_masks = unit.masks
            batch = self.model.transfer_batch_to_device(unit.batch, self.device, 0)
            found = self.model.predict_step(batch)
        # who asked may have no such device
        return move_data_to_device(found, "cpu")


class Fleet:
    """Workers of the cluster that the environment names (``RAY_ADDRESS``), or else of this machine.

    Args:
        num_workers: How many are asked for; Ray starts them as there is room. None = one for each GPU of the cluster,
            or without any one for each ``num_threads`` of its CPUs.
        num_threads: CPU threads of each. Kernels round otherwise for other numbers, so they are those of this process.
    """

    def __init__(self, num_workers: int | None = None, num_threads: int = 1) -> None:
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        found = ray.cluster_resources()
        gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 1))
        self.num_workers = num_workers or gpus or max(1, cpus // num_threads)
        self._arguments = ("cuda" if gpus else "cpu", num_threads)
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": num_threads}
        self._numbers = count()
        self._workers: dict[int, Any] = {}
        self._loads: Counter[int] = Counter()  # units that each worker that is up was asked for
        self._starting: dict[Any, int] = {}  # what comes when a worker is up -> its number
        self._held: list[Any] = []
        self._weights = ""
        for _ in range(self.num_workers):
            self._start()

    def hold(self, model: DepthModule, weights: str) -> None:
        """Let the workers answer by this model from now on.

        Args:
            model: As it is now; what is changed later the workers do not see.
            weights: Its `lit_depth.functional.fingerprints.weights_sample`.
        """
        if weights != self._weights:
            self._held, self._weights = [ray.put(model)], weights

    def answers(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, MaskedPredictions]]:
        """Units with their predictions, in the order of the units, a few of which are read ahead.

        A unit whose worker is lost goes to another one; nothing is told of it but that it takes longer.

        Raises:
            Exception: What a worker raised.
        """
        self._loads = Counter(dict.fromkeys(self._loads, 0))  # an earlier sweep may have ended with an error
        coming = enumerate(units)
        given: dict[int, Unit] = {}  # by place: read, and its predictions not yet given back
        to_ask: deque[int] = deque()
        asked: dict[Any, tuple[int, int]] = {}  # what is to come -> place, worker
        done: dict[int, MaskedPredictions] = {}
        first, is_read = 0, False
        while not is_read or given:
            if not is_read and not to_ask and len(given) < _OPEN * self.num_workers:
                place, unit = next(coming, (-1, None))
                is_read = unit is None
                if unit is not None:
                    given[place] = unit
                    if len(unit.masks):
                        to_ask.append(place)
                    else:
                        done[place] = _NOTHING
            elif to_ask and (worker := self._free()) is not None:
                place = to_ask.popleft()
                asked[self._ask(worker, given[place])] = place, worker
            elif first in done:
                yield given.pop(first), done.pop(first)
                first += 1
            else:
                to_ask.extendleft(self._wait(asked, done))

    def _wait(self, asked: dict[Any, tuple[int, int]], done: dict[int, MaskedPredictions]) -> list[int]:
        """Take in whatever comes first, an answer or a worker; places of units that have to be asked for again."""
        ready, _ = ray.wait([*asked, *self._starting], timeout=None if self._loads else _PATIENCE_SECONDS)
        if not ready:
            warnings.warn(f"the Ray cluster has no room for a worker ({self._needs}): waiting for a node", stacklevel=2)
            return []
        place, worker = asked.pop(ready[0], (None, self._starting.pop(ready[0], -1)))
        try:
            found = ray.get(ready[0])
        except RayActorError:
            if self._workers.pop(worker, None) is not None:
                del self._loads[worker]
                self._start()
            return [] if place is None else [place]
        except RayTaskError as error:
            raise error.cause from None
        if place is None:
            self._loads[worker] = 0
        else:
            done[place] = found
            self._loads[worker] -= 1
        return []

    def _free(self) -> int | None:
        """The worker with the fewest units; None where each has enough, or none is up."""
        worker = min(self._loads, key=lambda each: self._loads[each], default=None)
        return None if worker is None or self._loads[worker] >= _AHEAD else worker

    def _ask(self, worker: int, unit: Unit) -> Any:
        self._loads[worker] += 1
        return self._workers[worker].answer.remote(self._held, self._weights, unit)

    def _start(self) -> None:
        """Ask Ray for a worker; it is up when there is room."""
        worker = next(self._numbers)
        self._workers[worker] = ray.remote(Worker).options(**self._needs).remote(*self._arguments)
        self._starting[self._workers[worker].is_up.remote()] = worker

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            ray.kill(worker)
        self._workers, self._starting = {}, {}
        self._loads.clear()


class RemoteBatches:
    """The batches of a loader, each with its predictions by a fleet; `DepthModule.predict_step` hands these on.

    Args:
        loader: Of evaluation batches.
        fleet: Which answers.
        model: The module that the loop runs, which the fleet holds a copy of.
        wanted: Masks that a batch is to be answered under.
    """

    def __init__(
        self, loader: Any, fleet: Fleet, model: DepthModule, wanted: Callable[[Mapping[str, Any]], MaskSet]
    ) -> None:
        self.dataset = loader.dataset
        self._loader, self._fleet, self._model, self._wanted = loader, fleet, model, wanted

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for unit, predictions in self._fleet.answers(map(self._unit, self._loader)):
            # without the tensors, which nobody needs here
            kept = {name: unit.batch[name] for name in ("samples", "sample_ids", "bad_samples")}
            yield {**kept, ANSWERED: predictions}

    def _unit(self, batch: dict[str, Any]) -> Unit:
        masks = self._wanted(batch)
        if not batch["sample_ids"]:  # every sample was bad
            masks = masks.take([])
        settings = {name: getattr(self._model, name) for name in _SETTINGS if hasattr(self._model, name)}
        return Unit(batch, masks, settings)
