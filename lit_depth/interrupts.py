"""A command that is told to end does: with one line, within two seconds, whatever it is doing.

Every record is on disk when it is written, so a command may end anywhere. First the usual way is tried, an exception in
the main thread. A main thread that waits inside a library sees no exception: a thread of ours then ends the process.
Only the standard library is imported, so that this works while the rest is being imported.
"""

import atexit
import multiprocessing
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from lit_depth.commands import begun_anew, continued

USER_ERROR = 2
TERMINATED = 128 + signal.SIGTERM  # as shells tell it
MESSAGE = "interrupted: no result was written; the same command continues where it was"
ANEW = "interrupted: no result was written; the same command begins anew"
_REPEAT_SECONDS = 3.0
_GRACE_SECONDS = 1.4
_REQUEUE_SECONDS = 10.0
# of a process in a launched group; all are 0, or unset, in the first one
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which libraries then treat as they treat Ctrl-C."""


def is_first_process() -> bool:
    """Whether this is the first of the processes that were launched together, as far as the environment tells."""
    return all(os.environ.get(key, "0") == "0" for key in _RANKS)


def _is_first_of_another_node() -> bool:
    nodes = (os.environ.get(key, "0") for key in ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID"))
    places = (os.environ.get(key, "0") for key in ("LOCAL_RANK", "SLURM_LOCALID"))
    return any(node != "0" for node in nodes) and all(place == "0" for place in places)


class _Guard:
    """What is known of the running command; there is one per process."""

    def __init__(self) -> None:
        self.active = False
        self.interrupted = False
        self.terminated = False
        self.closing = False  # the command has ended, by an exception: signals raise no more
        self.loading = False  # libraries are being imported: nothing is there yet that an exception would clean up
        self.said = False
        self.resumable = True
        self.anew = False
        self.requeued = ""
        # the processes that this one launched
        self.launched: Callable[[], Iterable[subprocess.Popen]] = tuple

    @property
    def message(self) -> str:
        return MESSAGE if self.resumable else ANEW if self.anew else MESSAGE.partition(":")[0]

    def say(self, message: str, process: int = 0) -> None:
        """Print the one line: of the first process; of another one, where it has its number and its own reason.

        What is the same for all processes of a node, such as a wrong argument, only the first of them says.
        """
        # torch may be half imported
        connected = getattr(sys.modules.get("torch.distributed"), "is_initialized", bool)()
        other_node = _is_first_of_another_node() and not connected
        if not self.said and (process or is_first_process() or other_node):
            who = f"process {process}: " if process else "" if is_first_process() else f"{platform.node()}: "
            _print(who + message + self.requeued)
        self.said = self.active  # outside of a command every message is a new one

    def end_launched(self, seconds: float = 0.2) -> None:
        """End the processes that this one launched, and wait for them: none is left as a zombie."""
        alive = [process for process in self.launched() if process.poll() is None]
        for process in alive:
            process.kill()
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)

    # in a thread of its own

    def watch(self, signals: socket.socket) -> None:
        """Act on every signal as it arrives, even while the main thread is inside a library."""
        while number := signals.recv(1)[0]:
            if number == signal.SIGUSR1:
                self.requeue()
            elif number == signal.SIGTERM:
                for process in self.launched():
                    process.terminate()
                time.sleep(_GRACE_SECONDS)
                self.end_now()

    def end_now(self, code: int = TERMINATED) -> NoReturn:
        """End without taking the interpreter apart, which may take longer than there is time."""
        self.say(self.message)
        self.end_launched()
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join(0.1)
        os._exit(code)

    def requeue(self) -> None:
        """Ask SLURM to start the job again, then end: the new job continues from the records."""
        if not is_first_process():
            return
        job = slurm_job()
        if not self.resumable:
            names = ", ".join(sorted(continued()))
            _print(f"SLURM job {job} was not requeued, the run goes on: only {names} continue where they were")
            return
        try:
            command = ["scontrol", "requeue", job]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_REQUEUE_SECONDS)
            failure = done.returncode and (done.stderr.strip() or f"exit code {done.returncode}")
        except (OSError, subprocess.SubprocessError) as error:
            failure = str(error)
        if failure:
            _print(f"SLURM job {job} was not requeued, the run goes on: scontrol: {failure}")
            return
        self.requeued = f" (SLURM job {job} was requeued)"
        os.kill(os.getpid(), signal.SIGTERM)

    # in the main thread

    def interrupt(self, *_: object) -> None:
        if self.closing:
            return
        if self.loading:  # an exception inside C++ that calls Python to initialise itself aborts the process
            self.end_now(USER_ERROR)
        # one that hits a bare `except` of a library is lost, so it is repeated
        signal.setitimer(signal.ITIMER_REAL, _REPEAT_SECONDS)
        self.interrupted = True
        raise KeyboardInterrupt

    def terminate(self, *_: object) -> None:
        if not self.terminated:
            self.terminated = True
            if not self.closing:
                raise Terminated

    def handlers(self) -> dict[int, Callable[..., None]]:
        found: dict[int, Callable[..., None]] = {
            signal.SIGINT: self.interrupt,
            signal.SIGALRM: self.interrupt,
            signal.SIGTERM: self.terminate,
        }
        if slurm_job():
            found[signal.SIGUSR1] = lambda *_: None  # the thread acts on it
        return found


def _print(message: str) -> None:
    """Print to the standard error, unless the main thread waits there for a reader: that would be for ever."""
    if threading.current_thread() is threading.main_thread():
        print(message, file=sys.stderr, flush=True)
        return
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"{message}\n".encode(errors="replace"))


_guard = _Guard()


def slurm_job() -> str:
    """Id of the SLURM job that runs this process, as ``scontrol requeue`` takes it; empty outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _command(arguments: Iterable[str]) -> str:
    return next((argument for argument in arguments if argument != "--debug"), "")


def continues(arguments: Iterable[str]) -> bool:
    """Whether the command of a command line continues where it was, when it is given again.

    >>> continues(["--debug", "search", "--name", "fit"]), continues(["export"]), continues(["fit"]), continues([])
    (True, False, False, False)
    """
    return _command(arguments) in continued()


def begins_anew(arguments: Iterable[str]) -> bool:
    """Whether the command of a command line begins anew, when it is given again.

    >>> begins_anew(["export"]), begins_anew(["search"]), begins_anew(["fit"])
    (True, False, False)
    """
    return _command(arguments) in begun_anew()


@contextmanager
def guarded(resumable: bool = True, exits: bool = False, anew: bool = False) -> Iterator[None]:
    """Inside the ``with`` statement, end on Ctrl-C with exit code 2, and on SIGTERM with 143 within two seconds.

    Under SLURM, SIGUSR1 requeues the job and ends likewise. Does nothing inside itself, or outside the main thread.

    Args:
        resumable: Whether the command continues where it was, when it is given again; no other one is requeued.
        exits: Whether a signal ends the process at once. Otherwise signals are the interpreter's again before it ends.
        anew: Whether a command that does not continue can be given again as it is, and begins anew.

    Raises:
        SystemExit: After a signal, whatever else was raised because of it.
    """
    global _guard
    if _guard.active or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    _guard = _Guard()
    _guard.active = True
    _guard.resumable, _guard.anew = resumable, anew
    ours, signals = socket.socketpair()
    ours.setblocking(False)
    before = {number: signal.signal(number, handler) for number, handler in _guard.handlers().items()}
    wakeup = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_guard.watch, args=(signals,), daemon=True, name="lit_depth signals")
    thread.start()
    try:
        yield
    except BaseException as error:
        _guard.closing = True
        _guard.end_launched()
        # C code that was being imported may lose the interrupt, and another error comes of it
        of_signal = _guard.terminated or (_guard.interrupted and isinstance(error, Exception))
        if not of_signal and not _is_interrupt(error):
            raise
        _guard.say(_guard.message)
        if exits:
            _end_process()
        raise SystemExit(TERMINATED if _guard.terminated else USER_ERROR) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not _guard.terminated:  # else the thread ends what the interpreter does not
            signal.set_wakeup_fd(wakeup)
            ours.send(b"\0")
            thread.join()
            ours.close()
            signals.close()
            for number, handler in before.items():
                signal.signal(number, handler)
            _guard = _Guard()  # the next command has said nothing yet
        _guard.active = False


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a library made of it: Lightning turns it into exit code 1 inside its loops."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )


@contextmanager
def loading() -> Iterator[None]:
    """Inside the ``with`` statement, which imports libraries, Ctrl-C ends a guarded process at once."""
    _guard.loading = True
    try:
        yield
    finally:
        _guard.loading = False


def retake() -> None:
    """Put our handler of SIGTERM back in the place of another library's."""
    if _guard.active:
        signal.signal(signal.SIGTERM, _guard.terminate)


def end_with_us(launched: Callable[[], Iterable[subprocess.Popen]], resumable: bool = True, anew: bool = False) -> None:
    """Name the processes that this one launches, which end when it does; say what the same command does again."""
    _guard.launched = launched
    _guard.resumable, _guard.anew = resumable, anew


def stop(message: str, code: int = USER_ERROR, process: int = 0) -> NoReturn:
    """End with one line; a signal that came before says its own.

    Args:
        process: Number of the process, if no other has the same to say.
    """
    if not _guard.terminated:
        _guard.say(message, process)
    raise SystemExit(code)


def _end_process() -> NoReturn:
    """End a process after a signal, once it has cleaned up: no further signal may find it without our handlers."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if not _guard.terminated:  # there is time for what libraries still have to write
        atexit._run_exitfuncs()
    _guard.end_now(TERMINATED if _guard.terminated else USER_ERROR)


def _forget() -> None:
    """A forked process, such as a worker of a loader, takes signals as any other process does."""
    global _guard
    if _guard.active:
        signal.set_wakeup_fd(-1)
        for number in _guard.handlers():
            # SLURM sends its signal to all processes, of which the first one acts on it
            signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR1 else signal.SIG_DFL)
        _guard = _Guard()


os.register_at_fork(after_in_child=_forget)
