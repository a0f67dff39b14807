"""Several processes of one run: they meet before anything is written, and what the first one refuses all refuse."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Trainer

_LAUNCHER = "LIT_DEPTH_LAUNCHER"
_MAX_WAIT_SECONDS = 600


class RefusedElsewhere(ValueError):
    """The first process refuses to go on, and says why."""


def meet(trainer: Trainer) -> None:
    """Connect processes that torchrun, SLURM or the user started, so that a refusal reaches all of them.

    Processes that Lightning launches are not there yet: they start once the first one has accepted, in its first loop.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size == 1 or environment is None or os.environ.get(_LAUNCHER) == str(os.getppid()):
        return
    if environment.creates_processes_externally:
        trainer.strategy.setup_environment()
    else:
        os.environ[_LAUNCHER] = str(os.getpid())  # whom the processes to come will find as their parent


def on_first_process(trainer: Trainer, decide: Callable[[], object]) -> None:
    """Call a function on the first process only; every process goes on once it has returned.

    Raises:
        RefusedElsewhere: On the other processes, if the function raised.
    """
    refusal: Exception | None = None
    if trainer.is_global_zero:
        try:
            decide()
        except Exception as error:  # raised below, once the others know
            refusal = error
    refused = trainer.strategy.broadcast(refusal is not None)
    if refusal is not None:
        raise refusal
    if refused:
        raise RefusedElsewhere("the first process refuses to go on")


@contextmanager
def own_error(trainer: Trainer) -> Iterator[None]:
    """Mark an exception as this process's own: it is told with the process's number, as the first one has none."""
    try:
        yield
    except Exception as error:
        error.process = trainer.global_rank  # type: ignore[attr-defined]
        raise


def lost_connection(error: BaseException) -> bool:
    """Whether another process has ended, as the backends of torch.distributed tell it."""
    return isinstance(error, getattr(dist, "DistError", ())) or "gloo/transport" in str(error)


def wait_for(path: Path, what: str) -> None:
    """Wait for a file of the first process; it is there at once, unless nodes were started by hand.

    Raises:
        ValueError: If it does not come.
    """
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while not path.is_file():
        if time.monotonic() > deadline:
            raise ValueError(f"no {path} from the first process in {_MAX_WAIT_SECONDS} s: {what}")
        time.sleep(0.2)
