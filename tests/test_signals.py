"""Runs that are told to end: in every stage, and on two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# By the stage: the script, its options, the signal and the number of ranks.
RUNS = {
    "box": ("pretrain.py", (), signal.SIGINT, 1),
    "image": ("pretrain.py", ("--stage", "image"), signal.SIGUSR1, 1),
    "finetune": ("finetune.py", (), signal.SIGTERM, 2),
}


def start(stage, config, *of_torchrun):
    script, options, _, ranks = RUNS[stage]
    torchrun = (*TORCHRUN, *of_torchrun) if ranks == 2 else ()
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    return subprocess.Popen(
        [sys.executable, *torchrun, script, "--config", config, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test runner in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def steps_in(run):
    path = run / "metrics.jsonl"
    return (
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


@pytest.mark.parametrize("stage", RUNS)
def test_a_signal_ends_a_run_between_two_steps(tmp_path, write_config, stage):
    number, ranks = RUNS[stage][2:]
    run = tmp_path / "run"
    settings = {"data__batch_size": 1} if ranks == 2 else {"data__workers": 2}
    config = write_config(
        run,
        schedule__iterations=100_000,
        loop__log_every=1,
        loop__checkpoint_every=100_000,
        image={"crop_size": 32, "norm_groups": 1, "moco": {"queue": 8}},
        **settings,
    )
    process = start(stage, str(config))
    while len(steps_in(run)) < 3 and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    if number == signal.SIGINT:  # the terminal sends it to all of the group
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    out, err = process.communicate()
    if ranks == 1:  # torchrun prints one, of itself
        assert "Traceback" not in err
    said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("stopped by")]
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    done = steps_in(run)[-1]
    assert said == [
        f"stopped by {name}; saved {done:,} steps in {run / 'last.pt'}; go on with: "
        + ("torchrun ... " if ranks == 2 else "python ")
        + " ".join([RUNS[stage][0], "--config", str(config), *RUNS[stage][1]])
    ], err
    assert torch.load(run / "last.pt", weights_only=True)["step"] == done  # nothing is lost
    if ranks == 1:
        assert process.returncode == 128 + number


def test_before_the_first_step_there_is_nothing_to_save(tmp_path, write_config):
    run = tmp_path / "run"
    config = write_config(run)
    code = (
        "import os, signal, finetune\n"
        "finetune.build_detector = lambda *a: os.kill(os.getpid(), signal.SIGTERM)\n"
        "finetune.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--config", str(config), "--resume", "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 143
    assert done.stderr.startswith("stopped by SIGTERM; start again with: python ")
    assert "--resume auto" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (run / "last.pt").exists()


def children(pid):
    """The processes that a process has started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_torchrun_restarts_the_ranks_when_one_is_killed(tmp_path, write_config):
    """The store in which they met has the addresses of the first ones."""
    run = tmp_path / "run"
    config = write_config(
        run,
        schedule__iterations=12,
        loop__log_every=1,
        loop__checkpoint_every=2,
        data__batch_size=1,
    )
    process = start("finetune", str(config), "--max-restarts=1")
    while len(steps_in(run)) < 5 and process.poll() is None:
        time.sleep(0.02)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert steps_in(run) == list(range(1, 13))
