"""Told to end, a command does: one line, in two seconds, whatever it is doing, and what it started ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_depth import interrupts
from lit_depth.interrupts import ANEW, MESSAGE, guarded

LINE = MESSAGE + "\n"
# what a command may be doing
BUSY = {
    "computing": "while True: sum(range(1000))",
    "sleeping": "time.sleep(60)",
    "swallowing exceptions": """
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass""",
    "inside a library": """
import ctypes
mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
library.pthread_mutex_lock(mutex)
library.pthread_mutex_lock(mutex)  # waits for itself""",
    "cleaning up": """
try:
    raise ValueError
finally:
    time.sleep(60)""",
    "waiting for a reader": """
for number in (1, 2):
    read, write = os.pipe()
    os.set_inheritable(read, True)
    os.dup2(write, number)
while True: print("x" * 10_000, file=sys.stderr)""",
    "waiting for a worker": """
import multiprocessing
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
worker.start()
worker.join()""",
}


def start(body: str, tmp_path: Path, guard: str = "", **environment: str) -> subprocess.Popen:
    indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, subprocess, sys, time\nfrom lit_depth import interrupts\n"
        f"with interrupts.guarded({guard}):\n    print('begun', flush=True)\n{indented}\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    return process


def left_in_session(leader: int) -> dict[int, str]:
    """State by process id of what a process has started and left behind, zombies included."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # ended meanwhile
            continue
        if int(session) == leader:
            found[int(status.parent.name)] = state
    return found


@pytest.mark.parametrize("body", BUSY.values(), ids=BUSY)
def test_sigterm_ends_whatever_is_done(body, tmp_path):
    process = start(body, tmp_path)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "" if body is BUSY["waiting for a reader"] else LINE)
    assert left_in_session(process.pid) == {}


def test_the_time_to_end_leaves_some_of_two_seconds():
    assert interrupts._GRACE_SECONDS <= 1.5


def test_ctrl_c_ends_with_code_2_and_the_same_line(tmp_path):
    process = start(BUSY["sleeping"], tmp_path)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[1], process.returncode) == (LINE, 2)


def test_what_cannot_be_continued_does_not_say_so(tmp_path):
    process = start("interrupts.end_with_us(tuple, resumable=False)\ntime.sleep(60)", tmp_path)
    process.terminate()
    assert (process.communicate(timeout=30)[1], process.returncode) == ("interrupted\n", 143)


@pytest.mark.parametrize("when", ["before the command is loaded", "afterwards"])
def test_what_is_done_in_one_piece_begins_anew_and_says_so(tmp_path, when):
    before = "interrupts.continues(['export']), anew=interrupts.begins_anew(['export'])"
    guard, body = (
        (before, "") if when == "before the command is loaded" else ("", "interrupts.end_with_us(tuple, False, True)\n")
    )
    process = start(body + BUSY["sleeping"], tmp_path, guard=guard)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[1], process.returncode) == (ANEW + "\n", 2)


def test_a_second_signal_changes_nothing(tmp_path):
    process = start("try:\n    time.sleep(60)\nfinally:\n    time.sleep(0.5)", tmp_path)
    for _ in range(5):
        process.terminate()
        time.sleep(0.05)
    assert (process.communicate(timeout=30)[1], process.returncode) == (LINE, 143)


@pytest.mark.parametrize("seconds", [0.01, 0.4])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_end_as_one(tmp_path, first, second, seconds):
    """Whenever the second one comes: while the command cleans up, or while the interpreter ends."""
    cleanup = "import atexit\natexit.register(lambda: time.sleep(1))\ntry:\n    time.sleep(60)\n"
    process = start(cleanup + "finally:\n    time.sleep(0.2)", tmp_path, guard="exits=True")
    process.send_signal(first)
    time.sleep(seconds)
    process.send_signal(second)
    code, err = process.wait(timeout=30), process.communicate()[1]
    assert (code, err) == (143 if signal.SIGTERM in (first, second) else 2, LINE)


def test_what_libraries_write_at_the_end_is_written(tmp_path):
    body = "import atexit\natexit.register(print, 'written', flush=True)\ntime.sleep(60)"
    process = start(body, tmp_path, guard="exits=True")
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=30), process.returncode) == ("written\n", LINE, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_launched_ends_too(tmp_path, number):
    """Even a process that takes no notice of SIGTERM, and none stays as a zombie."""
    process = start(
        """
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
launched = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
interrupts.end_with_us(lambda: launched)
for each in launched:
    each.stdout.readline()
print("launched", flush=True)
time.sleep(60)""",
        tmp_path,
    )
    assert process.stdout is not None and process.stdout.readline() == "launched\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert err == LINE and left_in_session(process.pid) == {}


@pytest.mark.parametrize(("end", "code", "num_left"), [("interrupts.stop('error: no')", 2, 0), ("pass", 0, 1)])
def test_what_was_launched_ends_with_an_error_but_not_with_success(tmp_path, end, code, num_left):
    process = start(
        f"""
launched = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])]
interrupts.end_with_us(lambda: launched)
{end}""",
        tmp_path,
    )
    process.wait(timeout=30)
    left = left_in_session(process.pid)
    for each in left:
        os.kill(each, signal.SIGKILL)
    assert process.returncode == code and len(left) == num_left


def test_a_forked_process_takes_signals_as_usual(tmp_path):
    """A loader ends its workers by SIGTERM: neither they nor the command may take it for theirs."""
    process = start(
        """
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGTERM, status
time.sleep(2)
print("went on", flush=True)""",
        tmp_path,
    )
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "went on\n", "")


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_one_process_speaks(tmp_path, rank):
    process = start(BUSY["sleeping"], tmp_path, **{rank: "1"})
    process.terminate()
    assert (process.communicate(timeout=30)[1], process.returncode) == ("", 143)


@pytest.mark.parametrize(
    ("call", "said"), [("stop('error: no')", ""), ("stop('error: no', 2, process=1)", "process 1: error: no\n")]
)
def test_another_process_says_what_is_its_own(tmp_path, call, said):
    process = start(f"interrupts.{call}", tmp_path, RANK="1", LOCAL_RANK="1")
    assert (process.communicate(timeout=30)[1], process.returncode) == (said, 2)


def test_the_first_process_of_another_node_speaks_for_its_node(tmp_path):
    place = {"SLURM_PROCID": "4", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
    process = start("interrupts.stop('error: no such file')", tmp_path, **place)
    assert process.communicate(timeout=30)[1].endswith(": error: no such file\n")


def test_an_interrupt_that_a_library_swallows_is_repeated(monkeypatch, capsys):
    monkeypatch.setattr(interrupts, "_REPEAT_SECONDS", 0.2)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    with pytest.raises(SystemExit) as stop, guarded():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:
            pass
        time.sleep(5)
        pytest.fail("went on")
    assert stop.value.code == 2 and capsys.readouterr().err == LINE
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
def test_other_exceptions_pass(error):
    with pytest.raises(type(error)) as caught, guarded(), guarded():
        raise error
    assert caught.value is error


# --- SLURM


@pytest.fixture
def scontrol(tmp_path):
    """A scontrol that notes what it is asked, and fails if there is a file ``fails``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ ! -e {tmp_path}/fails ] || {{ echo no >&2; exit 1; }}\n'
    )
    (folder / "scontrol").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}


@pytest.mark.parametrize(
    ("more", "job"), [({}, "17"), ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3")]
)
def test_slurms_signal_requeues_the_job_and_ends(tmp_path, scontrol, more, job):
    process = start(BUSY["inside a library"], tmp_path, **scontrol, **more)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=30)[1] == f"{MESSAGE} (SLURM job {job} was requeued)\n"
    assert process.returncode == 143 and (tmp_path / "asked").read_text() == f"requeue {job}\n"


def test_what_nothing_can_continue_is_not_requeued(tmp_path, scontrol):
    process = start("time.sleep(1.5)\nprint('went on', flush=True)", tmp_path, guard="resumable=False", **scontrol)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "went on\n") and not (tmp_path / "asked").exists()
    assert (
        err.startswith("SLURM job 17 was not requeued, the run goes on: only answers, compare, ")
        and err.count("\n") == 1
    )


@pytest.mark.parametrize(("command", "line"), [("fit", "interrupted\n"), ("importance", LINE)])
def test_a_command_that_is_still_being_imported_says_whether_it_continues(command, line):
    process = subprocess.Popen([sys.executable, "-m", "lit_depth", command], stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[1], process.returncode) == (line, 2)


def test_no_exception_is_raised_inside_what_is_being_imported(tmp_path):
    body = "try:\n    with interrupts.loading():\n        time.sleep(5)\nexcept BaseException:\n    print(1)"
    process = start(body, tmp_path)
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=30), process.returncode) == ("", LINE, 2)


def test_an_error_that_came_of_an_interrupt_is_the_interrupt(tmp_path):
    body = "try:\n    time.sleep(5)\nexcept KeyboardInterrupt:\n    pass\nraise ImportError('cannot load module twice')"
    process = start(body, tmp_path)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[1], process.returncode) == (LINE, 2)


def test_an_error_without_an_interrupt_is_raised(tmp_path):
    process = start("raise ImportError('cannot load module twice')", tmp_path)
    assert "ImportError: cannot load module twice" in process.communicate(timeout=30)[1] and process.returncode == 1


def test_a_job_that_cannot_be_requeued_goes_on(tmp_path, scontrol):
    (tmp_path / "fails").touch()
    process = start("time.sleep(1.5)\nprint('went on', flush=True)", tmp_path, **scontrol)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "went on\n")
    assert err == "SLURM job 17 was not requeued, the run goes on: scontrol: no\n"


def test_only_the_first_process_requeues(tmp_path, scontrol):
    process = start("time.sleep(1.5)\nprint('went on', flush=True)", tmp_path, **scontrol, SLURM_PROCID="1")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "went on\n", "") and not (tmp_path / "asked").exists()


def test_outside_of_slurm_its_signal_is_left_alone(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    with guarded():
        assert signal.getsignal(signal.SIGUSR1) is before
