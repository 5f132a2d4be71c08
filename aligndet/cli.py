"""The parts that the scripts' command lines share."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator

from tqdm import tqdm

from aligndet import dist


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
    """End the program with `error: message` and status 1 on an error that the user can fix; of
    several processes, only the first to fail prints it."""
    try:
        yield
    except kinds as error:
        if dist.first_to_claim("error"):
            tqdm.write(f"error: {error}", file=sys.stderr)  # not into an open progress bar's line
        raise SystemExit(1) from None
