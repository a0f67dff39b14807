"""One process holds a lock, on every file system, and whoever finds it held is told by whom."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_depth.results.locks import hold, is_held

HOLDER = """
import errno, fcntl, signal, sys
from pathlib import Path
from lit_depth.results.locks import hold
code = int(sys.argv[2])
def refuse(*_):
    raise OSError(code, "no locks here")
if code:
    fcntl.flock = refuse
folder = Path(sys.argv[1])
held = hold(folder / ".lock", folder)
print("held", flush=True)
signal.pause()
"""
WITHOUT_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture(params=[0, *WITHOUT_LOCKS], ids=lambda code: errno.errorcode.get(code, "flock"))
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """What the file system answers to flock; 0 = it has locks."""

    def refuse(*_: Any) -> None:
        raise OSError(request.param, "no locks here")

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def start_holder(folder: Path, code: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder, str(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path: Path, code: int) -> None:
    holder = start_holder(tmp_path, code)
    with pytest.raises(ValueError) as error:
        hold(tmp_path / ".lock", tmp_path)
    assert f"{tmp_path} is in use by " in str(error.value)
    if code:
        who = f"process {holder.pid} on {platform.node()}"
        assert who in str(error.value) and f"delete {tmp_path / '.lock.held'}" in str(error.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    hold(tmp_path / ".lock", tmp_path).release()  # nothing of it is left
    hold(tmp_path / ".lock", tmp_path).release()


def test_a_process_of_another_host_may_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    (tmp_path / ".lock.held").write_text(f"{os.getpid()}\nnode7\n")
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on node7: wait for it.*\.lock\.held"):
        hold(tmp_path / ".lock", tmp_path)


def test_one_that_stays_empty_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process was killed between making the file and writing its name."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    (tmp_path / ".lock.held").touch()
    lock = hold(tmp_path / ".lock", tmp_path)
    assert (tmp_path / ".lock.held").read_text().startswith(f"{os.getpid()}\n")
    lock.release()


def test_what_the_lock_file_holds_stays(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("here")
    hold(tmp_path / ".lock", tmp_path).release()
    assert (tmp_path / ".lock").read_text() == "here"


def test_other_errors_are_not_taken_for_a_lack_of_locks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OSError, match="Not a directory|exists"):
        hold(tmp_path / "file" / ".lock", tmp_path)


def test_whether_it_is_held_is_told_without_holding_it(tmp_path: Path, code: int) -> None:
    path = tmp_path / ".lock"
    assert is_held(path) is False and not path.exists()
    lock = hold(path, tmp_path)
    assert is_held(path) is True
    lock.release()
    assert is_held(path) is False
    hold(path, tmp_path).release()
