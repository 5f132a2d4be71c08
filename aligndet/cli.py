"""The parts that the scripts' command lines share."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import torch
from tqdm import tqdm

from aligndet import dist
from data import stopping
from data.errors import DataError
from data.plain_text import printable
from data.processes import is_quiet

LATE = 2.0  # seconds that a rank leaves to the one whose end it has noticed


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every training script has."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a log file gets each line when it is printed
        sys.stdout.reconfigure(line_buffering=True)
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--config", required=True, metavar="FILE", help="YAML, see configs/")
    result.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|FILE",
        help="auto (default): resume from output_dir/last.pt if there is one; none: start over",
    )
    result.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config overrides, e.g. optim.lr=0.01"
    )
    return result


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with `error: message` and status 1 on an error that the user can fix, and
    with one line on a signal; of several processes, only the first to end prints it."""
    try:
        with stopping.signals():
            yield
    except kinds as error:
        _end(f"error: {error}", 1, late=isinstance(error, dist.LostRank))
    except stopping.Stopped as stop:
        how = "go on with" if stop.state else "start again with"
        _end(f"{stop}; {how}: {same_command(bool(stop.state))}", stop.status)


def _end(line: str, status: int, late: bool = False) -> NoReturn:
    """Print the last line and end; `late` leaves it to another process if that has something to
    say, too. Not even torchrun, which ends the other ranks when one has failed, cuts it short."""
    with stopping.held():
        if late:
            time.sleep(LATE)
        if dist.first_to_claim("error"):
            # Not into the line of an open progress bar, which may be another process's.
            tqdm.write("\n" * is_quiet() + printable(line), file=sys.stderr)
        raise SystemExit(status) from None


@contextlib.contextmanager
def training_process(device: str) -> Iterator[torch.device]:
    """The device of one process of a training script, and one line for all that can go wrong; it
    is printed before the others are let go, whose own errors would only follow from it."""
    with (
        one_line_errors(dist.DeviceError),
        dist.process_group(device) as chosen,
        one_line_errors(DataError, FloatingPointError, dist.RankError, MemoryError),
        explained_errors(),
    ):
        yield chosen


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Give those errors of PyTorch a cause and a remedy that a run on good data can meet."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_lost_rank(error):
            raise dist.LostRank(
                f"rank {dist.rank()} has lost another one, which has ended, was killed (perhaps "
                "for lack of memory) or did not answer for "
                f"{dist.STEP_TIMEOUT.seconds // 60} minutes; "
                "start the same command again: it goes on from the last checkpoint"
            ) from None
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(
                "out of memory; lower data.batch_size (optim.accumulate keeps the images per "
                "step), data.short_sides or data.max_side"
            ) from None
        raise


def same_command(saved: bool = False) -> str:
    """The command line of this process, to be typed again.

    Args:
        saved: whether its own last.pt is there, from which it should go on.
    """
    words = [word for word in sys.orig_argv[1:] if word != "-u"]  # torchrun puts it there
    for place, word in enumerate(words):
        if words[place - 1] == "--resume" or word.startswith("--resume="):
            given = word.removeprefix("--resume=")
            if saved or given == "none":  # else it would start over, or from another run's step
                words[place] = word.removesuffix(given) + "auto"
    program = "torchrun ..." if os.environ.get("TORCHELASTIC_RUN_ID") else "python"
    return f"{program} {shlex.join(words)}"
