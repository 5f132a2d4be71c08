"""The notebook of the walk-through: made from its script, with outputs that show what it says."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

from docs.make_walkthrough import Cell, make_smaller, read_cells, run, to_notebook
from tests.test_reading import LINK, defined_names

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs/walkthrough.py"
NOTEBOOK = ROOT / "docs/walkthrough.ipynb"
PICTURES = {"image/png", "image/jpeg"}


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def printed(notebook):
    return "".join(out.text for out in outputs(notebook) if out.output_type == "stream")


def test_the_notebook_has_the_cells_of_the_script(notebook):
    """Written back as a script, without what makes the notebook from it."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = [f"# {line}".rstrip() for line in cell.source.splitlines()]
            parts.append("\n".join(["# %% [markdown]", *lines]))
        else:
            parts.append(f"# %%\n{cell.source}")
    script = re.sub(r"\n{3,}# %%", "\n\n# %%", SCRIPT.read_text(encoding="utf-8"))
    assert script == "\n\n".join(parts) + "\n", "run: make walkthrough"


def test_the_notebook_is_valid_and_small(notebook):
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 1.5e6


def test_all_code_has_run_without_errors(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {out.output_type for out in outputs(notebook)}
    assert kinds == {"stream", "display_data"}  # neither errors nor values of expressions
    assert {out.name for out in outputs(notebook) if out.output_type == "stream"} == {"stdout"}


def test_every_cell_that_draws_has_its_picture(notebook):
    drawing = [cell for cell in notebook.cells if "plt.show()" in cell.source]
    assert len(drawing) >= 8
    for cell in drawing:
        shown = [PICTURES & set(out.get("data", {})) for out in cell.outputs]
        assert [len(kinds) for kinds in shown if kinds] == [1], cell.source
        kind = shown[-1].pop()
        content = base64.b64decode(cell.outputs[-1].data[kind])
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 10  # not an empty figure


def test_the_notebook_names_no_place_of_a_machine(notebook):
    texts = [cell.source for cell in notebook.cells]
    for out in outputs(notebook):
        texts += [out.get("text", ""), str(out.get("data", {}).get("text/plain", ""))]
    text = "\n".join(texts)
    assert not re.findall(r"(?<![\w.:/)])/\w+/[^\s\"')]*|[A-Z]:\\\\?\w+|file://", text)
    assert set(notebook.metadata) == {"kernelspec"}
    assert notebook.metadata.kernelspec.name == "python3"


def test_links_lead_to_what_they_name(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [(name, target) for name, target in LINK.findall(text) if "://" not in target]
    assert len(links) > 20
    for name, target in links:
        path = (NOTEBOOK.parent / target.split("#")[0]).resolve()
        assert path.exists(), target
        code = re.fullmatch(r"`([\w.]+)`", name)
        if code and path.suffix == ".py":
            assert code[1] in defined_names(path), f"{code[1]} is not in {target}"


def check_claims(text):
    """What the text beside the outputs says: instances move apart, and objects are found."""
    cosines = re.findall(r"(\w+): mean cosine (-?[\d.]+) for the same instance, (-?[\d.]+)", text)
    gaps = {when: float(same) - float(others) for when, same, others in cosines}
    assert set(gaps) == {"before", "after"}
    assert gaps["after"] > gaps["before"] + 0.1
    assert re.search(r"loaded +\d+ tensors +backbone", text)
    assert re.search(r"dropped +4 tensors +projector", text)
    assert re.search(r"fresh +2 tensors +head.cls_logits", text)
    before, after = map(float, re.search(r"AP50.*: (\d+) before, (\d+) after", text).groups())
    assert after > max(before, 30)


def test_the_outputs_show_what_the_text_says(notebook):
    check_claims(printed(notebook))


def test_the_script_runs_and_shows_what_it_says(tmp_path):
    settings = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    check_claims(done.stdout)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


def test_cells_are_read():
    script = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n\n\ny = 2\n\n# %%\nz = 3\n"
    assert read_cells(script) == [
        Cell("markdown", "# Title\n\ntext"),
        Cell("code", "x = 1\n\n\ny = 2"),
        Cell("code", "z = 3"),
    ]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import x\n# %%\ny\n", "'import x' stands before the first # %%; move it"),
        ("# %% [markdown]\n# text\nx = 1\n", "'x = 1' is in a cell of text"),
    ],
)
def test_lines_in_the_wrong_place_are_named(script, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_cells(script)


def test_a_run_keeps_outputs_but_no_progress_bars():
    source = "import sys\nprint('kept')\nprint('gone', file=sys.stderr)"
    made = to_notebook([Cell("markdown", "text"), Cell("code", source)])
    run(made)
    assert [(out.name, out.text) for out in outputs(made)] == [("stdout", "kept\n")]
    assert set(made.metadata) == {"kernelspec"}
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(to_notebook([Cell("code", "1 / 0")]))


def test_photographs_become_jpegs_and_charts_stay():
    rng = np.random.default_rng(0)
    for pixels, kind in (
        (rng.integers(0, 256, (64, 64, 3)), "image/jpeg"),
        (np.full((64, 64, 3), 255), "image/png"),
    ):
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "figure"}
        make_smaller(data)
        assert set(data) == {kind, "text/plain"}
        assert Image.open(io.BytesIO(base64.b64decode(data[kind]))).size == (64, 64)
    text = {"text/plain": "1"}
    make_smaller(text)
    assert text == {"text/plain": "1"}
