"""Several processes of one run: what ends one of them ends all, soon, and one line says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from lit_depth.interrupts import MESSAGE
from lit_depth.results.store import locked_folder, prepare_folder
from lit_depth.studies.shared import processes as processes
from lit_depth.studies.shared.processes import RefusedElsewhere, lost_connection, on_first_process, wait_for

DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
WAYS = ["launcher", "torchrun", "slurm"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Job:
    """A command in two processes, started in one of the ways that there are."""

    def __init__(self, way: str, arguments: list[str]) -> None:
        python, environ = [sys.executable, "-m"], {**os.environ, "OMP_NUM_THREADS": "1"}
        if way == "torchrun":
            python += ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m"]
        environments = [environ]
        if way == "slurm":
            shared = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "j", "SLURM_JOB_ID": "17", "SLURM_NODEID": "0"}
            shared |= {"SLURM_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2"}
            shared |= {"MASTER_PORT": str(free_port())}
            ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
            environments = [environ | shared | rank for rank in ranks]
        self.processes = [
            subprocess.Popen(
                [*python, "lit_depth", *arguments, *DDP],
                env=each,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for each in environments
        ]
        self.ended: dict[int, float] = {}
        self._errors = [""] * len(self.processes)
        self._readers = [threading.Thread(target=self._read, args=(index,)) for index in range(len(self.processes))]
        for reader in self._readers:
            reader.start()

    def _read(self, index: int) -> None:
        stream = self.processes[index].stderr
        assert stream is not None
        for line in stream:
            self._errors[index] += line
        self.processes[index].wait()
        self.ended[index] = time.monotonic()

    def wait_for_records(self, folder: Path, count: int) -> None:
        while not sum(path.read_text().count("\n") for path in folder.rglob("rank*.jsonl")) > count:
            assert all(process.poll() is None for process in self.processes), self.lines()
            time.sleep(0.05)

    def finish(self) -> list[int]:
        for reader in self._readers:
            reader.join(300)
        return [process.returncode for process in self.processes]

    def lines(self) -> list[str]:
        """What our processes said, without progress bars and torchrun's own report."""
        said = "\n".join(self._errors).replace("\r", "\n").splitlines()
        assert not any("/lit_depth/" in line for line in said), said  # no traceback of ours
        return [line for line in said if line.startswith(("error:", "process ", "interrupted:"))]

    def left(self) -> list[str]:
        """States of the processes that are still there, zombies included."""
        sessions, found = {process.pid for process in self.processes}, []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            found += [state] if int(session) in sessions else []
        return found


@pytest.fixture
def common(small_checkpoint, tmp_path) -> list[str]:
    arguments = ["importance", "--model.checkpoint", str(small_checkpoint), "--output_dir", str(tmp_path)]
    return [*arguments, "--num_samples", "200", "--data.batch_size", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_folder_in_use_is_refused_by_all_with_one_line(common, tmp_path, way):
    """Only the first process looks at the lock; the other one would wait for it for half an hour."""
    with locked_folder(prepare_folder(tmp_path / "importance" / "default")):
        job = Job(way, common)
        codes = job.finish()
    assert all(codes) and (way == "torchrun" or set(codes) == {2})
    (line,) = job.lines()
    assert "in use by another run" in line
    assert job.left() == [] and max(job.ended.values()) - min(job.ended.values()) < 5


@pytest.mark.slow
@pytest.mark.parametrize(("way", "workers"), [*((way, "0") for way in WAYS), ("launcher", "2")])
def test_sigterm_in_the_loop_ends_all_processes(common, tmp_path, way, workers):
    job = Job(way, [*common, "--data.num_workers", workers])
    job.wait_for_records(tmp_path, 20)
    for process in job.processes:
        process.terminate()
    codes = job.finish()
    assert codes == ([1] if way == "torchrun" else [143] * len(codes))  # torchrun has a code of its own
    assert job.lines() == [MESSAGE]
    deadline = time.monotonic() + 10  # a worker whose process is gone looks around every 5 s
    while job.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["launcher", "slurm"])
def test_sigterm_to_the_first_process_alone_ends_the_other(common, tmp_path, way):
    job = Job(way, common)
    job.wait_for_records(tmp_path, 20)
    job.processes[0].terminate()
    codes = job.finish()
    assert codes[0] == 143 and all(codes) and job.left() == []
    assert job.lines() == [MESSAGE]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["launcher", "torchrun"])
def test_ended_and_started_again_is_as_if_nothing_had_been(common, tmp_path, way):
    """SIGTERM twice at different points, then to the end; the bytes are those of one process that nobody stopped."""
    common[common.index("200")] = "30"
    subprocess.run([sys.executable, "-m", "lit_depth", *common, "--name", "one"], check=True, capture_output=True)
    for count in (15, 90):
        job = Job(way, [*common, "--name", "many"])
        job.wait_for_records(tmp_path / "importance" / "many", count)
        for process in job.processes:
            process.send_signal(signal.SIGTERM)
        assert all(job.finish())
    job = Job(way, [*common, "--name", "many"])
    assert not any(job.finish()), job.lines()
    one, many = ((tmp_path / "importance" / name / "importance.json").read_bytes() for name in ("one", "many"))
    assert one == many


@pytest.mark.slow
def test_what_is_wrong_with_one_process_it_says_itself(common, tmp_path):
    """The second process finds another model under the same path, as on another node."""
    script = tmp_path / "lit_depth_rank.py"
    script.write_text(
        "import os, torch\nfrom lit_depth.module import DepthModule\nfrom lit_depth.cli import main\n"
        "made = DepthModule.__init__\n"
        "def other(self, *args, **kwargs):\n"
        "    made(self, *args, **kwargs)\n"
        "    if os.environ.get('LOCAL_RANK') == '1':\n"
        "        self.model.lm_head.weight.data.mul_(2)\n"
        "DepthModule.__init__ = other\nDepthModule.__init__.__wrapped__ = made\nmain()\n"
    )
    command = [sys.executable, str(script), *common, *DDP]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    lines = [line for line in process.stderr.replace("\r", "\n").splitlines() if "error:" in line]
    assert process.returncode != 0 and not list(tmp_path.rglob("importance.json"))
    assert any(line.startswith("process 1: error: ") and "another model.weights" in line for line in lines), lines


# --- the pieces


class Strategy:
    def __init__(self, told: bool) -> None:
        self.told, self.sent = told, None

    def broadcast(self, value: bool) -> bool:
        self.sent = value
        return self.told


class OneOf:
    def __init__(self, first: bool, told: bool = False) -> None:
        self.is_global_zero, self.strategy = first, Strategy(told)


def test_the_first_process_decides_for_all():
    called = []
    on_first_process(first := OneOf(True), lambda: called.append(1))
    assert called == [1] and first.strategy.sent is False
    on_first_process(OneOf(False), lambda: pytest.fail("called"))
    with pytest.raises(KeyError):
        on_first_process(first, lambda: {}["no"])
    assert first.strategy.sent is True
    with pytest.raises(RefusedElsewhere):
        on_first_process(OneOf(False, told=True), lambda: pytest.fail("called"))


def test_a_file_of_the_first_process_that_does_not_come(tmp_path, monkeypatch):
    (tmp_path / "there").touch()
    wait_for(tmp_path / "there", "do this")
    monkeypatch.setattr(processes, "_MAX_WAIT_SECONDS", 0.3)
    with pytest.raises(ValueError, match="no .*absent from the first process in 0.3 s: do this"):
        wait_for(tmp_path / "absent", "do this")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (dist.DistNetworkError("Connection reset by peer"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
    ],
)
def test_a_lost_connection_is_told_from_other_errors(error, lost):
    assert lost_connection(error) is lost
