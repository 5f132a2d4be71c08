"""The SLURM script, with stand-ins for SLURM's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "slurm.sh"
# Two machines; what is queued again is noted.
SCONTROL = """#!/bin/bash
case $1 in
    show) printf 'node7\\nnode8\\n' ;;
    requeue) echo "$2" >> requeued ;;
esac
"""
SRUN = """#!/bin/bash
trap 'echo saved > saved; exit 1' TERM
printf '%s\\n' "$@" > arguments.part
mv arguments.part arguments
while [ ! -e result ]; do sleep 0.05; done
exit "$(cat result)"
"""


@pytest.fixture
def job(tmp_path):
    """The script as SLURM starts it, once srun has begun."""
    for name, content in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_RESTART_COUNT": "1",
    }
    command = ["bash", str(SCRIPT), "pretrain.py", "--config", "a b.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while not (tmp_path / "arguments").exists() and process.poll() is None:
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_each_machine_gets_the_same_torchrun(job, tmp_path):
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--kill-on-bad-exit=0",
        "torchrun",
        "--nnodes=2",
        "--nproc-per-node=4",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=node7:23456",
        "--rdzv-id=123456.1",
        "pretrain.py",
        "--config",
        "a b.yaml",
    ]
    (tmp_path / "result").write_text("0")
    assert job.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_saves_and_queues_again(job, tmp_path, number):
    job.send_signal(number)
    job.wait()
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert (tmp_path / "requeued").read_text() == "123456\n"


@pytest.mark.parametrize("status", [0, 1, 143])
def test_a_run_that_ends_is_not_queued_again(job, tmp_path, status):
    (tmp_path / "result").write_text(str(status))
    assert job.wait() == status
    assert not (tmp_path / "requeued").exists()
