"""Two agents of torchrun, as on two machines, give the result of one agent with two processes.

One of them is killed with its process, as if its machine had gone, and both are started again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Both stages in one process: to start processes takes longer than to train here.
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import finetune, pretrain
for script, arguments in (
    (pretrain, ["pretrain.py", "--config", {box!r}]),
    (finetune, ["finetune.py", "--config", {labels!r}]),
):
    sys.argv = arguments
    script.main()
"""


@pytest.fixture
def script(tmp_path, write_config):
    """Write the program of a pre-training and a fine-tuning to `FOLDER/run.py`."""

    def write(folder):
        folder.mkdir()
        common = {"data__batch_size": 1, "loop__checkpoint_every": 2, "loop__log_every": 1}
        box = write_config(folder / "box", schedule__iterations=10, **common)
        labels = write_config(folder / "labels", schedule__iterations=2, **common)
        path = folder / "run.py"
        path.write_text(SCRIPT.format(root=str(ROOT), box=str(box), labels=str(labels)))
        return path

    return write


def agent(path, *options):
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", *options, str(path)],
        cwd=path.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_agents(path):
    """Rank 0 is that of the first one, which is there before the second one comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}")
    first = agent(path, *options)
    while first.poll() is None:
        with socket.socket() as peer:
            if peer.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    return first, agent(path, *options)


def lines_in(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def values_in(run):
    lines = [json.loads(line) for line in lines_in(run)]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_agents_give_the_result_of_one(tmp_path, script):
    path = script(tmp_path / "two")
    first, second = two_agents(path)
    while len(lines_in(path.parent / "box")) < 3 and first.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
    for pid in (second.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    errors = first.communicate()[1]
    second.communicate()
    assert first.returncode == 1
    assert errors.count("error: rank 0 has lost another one") == 1, errors

    one = script(tmp_path / "one")
    processes = *two_agents(path), agent(one, "--standalone", "--nproc-per-node=2")
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "is another folder" not in out
    for run in ("box", "labels"):
        ours, theirs = path.parent / run, one.parent / run
        assert values_in(ours) == values_in(theirs)
        ours, theirs = (torch.load(r / "weights.pt", weights_only=True) for r in (ours, theirs))
        for name, tensor in theirs["model"].items():
            assert torch.equal(ours["model"][name], tensor), name
    found = [(p.parent / "labels" / "detections.json").read_text() for p in (path, one)]
    assert found[0] == found[1]
    assert len(json.loads(found[0])) > 10
