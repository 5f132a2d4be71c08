"""Make `docs/walkthrough.ipynb` from `docs/walkthrough.py` and run it: `make walkthrough`.

The script is in the percent format: a cell starts with `# %%`, one of text with
`# %% [markdown]`, whose lines are comments.
"""

from __future__ import annotations

import io
import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4
from PIL import Image

SCRIPT = Path(__file__).with_suffix("").with_name("walkthrough.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
MARKER = re.compile(r"^# %%(?P<text> \[markdown\])?\n", re.MULTILINE)


class Cell(NamedTuple):
    """A cell of the script."""

    kind: str  # "markdown" or "code"
    source: str  # without the marker, and without blank lines around it


def main() -> None:
    """Convert, run and write."""
    notebook = to_notebook(read_cells(SCRIPT.read_text(encoding="utf-8")))
    run(notebook)
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1e6:.2f} MB")


def read_cells(script: str) -> list[Cell]:
    """The cells of a script in the percent format.

    Raises:
        ValueError: names the first line that belongs to no cell, or that is in a cell of text but
            not a comment.
    """
    start, *parts = MARKER.split(script)
    if start.strip():
        raise ValueError(f"{start.splitlines()[0]!r} stands before the first # %%; move it")
    cells = []
    for marked, part in zip(parts[::2], parts[1::2], strict=True):
        source = part.strip("\n")
        cells.append(Cell("markdown", uncommented(source)) if marked else Cell("code", source))
    return cells


def uncommented(text: str) -> str:
    """Lines without their `# `."""
    lines = text.split("\n")
    bad = next((line for line in lines if line != "#" and not line.startswith("# ")), None)
    if bad is not None:
        raise ValueError(f"{bad!r} is in a cell of text; start it with # or put # %% before it")
    return "\n".join(line[2:] for line in lines)


def to_notebook(cells: list[Cell]) -> NotebookNode:
    """A notebook that has not been run; the ids of its cells are their numbers."""
    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    return v4.new_notebook(
        cells=[make[kind](source, id=f"cell-{n}") for n, (kind, source) in enumerate(cells)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )


def run(notebook: NotebookNode) -> None:
    """Fill in the outputs, but not those that differ from run to run.

    Raises:
        nbclient.exceptions.CellExecutionError: shows the cell that failed, and how.
    """
    metadata = dict(notebook.metadata)
    NotebookClient(notebook, timeout=None, record_timing=False).execute()
    notebook.metadata = NotebookNode(metadata)  # else with Python's version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # What is written to stderr are progress bars.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                make_smaller(output.get("data", {}))


def make_smaller(data: NotebookNode) -> None:
    """Replace a PNG among the forms of an output by a JPEG, if that is smaller: by half or more, of
    figures with photographs."""
    png = data.get("image/png")
    if png is None:
        return
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(b64decode(png))).convert("RGB")
    picture.save(file, "JPEG", quality=80, subsampling=0)  # 0: else coloured lines are smeared
    jpeg = b64encode(file.getvalue()).decode()
    if len(jpeg) < len(png):
        del data["image/png"]
        data["image/jpeg"] = jpeg


if __name__ == "__main__":
    main()
