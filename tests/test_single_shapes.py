"""The pictures of single shapes: by kind, varied, and of no kind that the boxes have."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data import single_shapes
from data.errors import DataError
from data.image_folder import images_of_classes
from data.outlines import CLASSES, OTHER_CLASSES, OTHER_OUTLINES


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Local x and y of side x side points over -1.2..1.2."""
    line = np.linspace(-1.2, 1.2, side)
    return line[None, :], line[:, None]


def test_no_kind_is_among_those_with_boxes():
    assert not set(CLASSES) & set(OTHER_CLASSES)


@pytest.mark.parametrize(
    ("kind", "area"),  # worked out by hand, in local units
    [
        ("rectangle", 1.4**2),
        ("hexagon", 2 * 3**0.5 * 0.8**2),
        ("half disc", np.pi * 0.9**2 / 2),
        ("frame", 1.42**2 - 0.78**2),
        ("corner", 1.5**2 - 0.85**2),
        ("flower", np.pi * (0.72**2 + 0.22**2 / 2)),
        # the lens of circles of 1 and 0.9 about centres 0.6 apart is taken from the first
        ("crescent", np.pi - 1.7057),
    ],
)
def test_outlines_have_the_area_of_their_shape(kind, area):
    x, y = grid(601)
    inside = OTHER_OUTLINES[kind](*np.broadcast_arrays(x, y)) < 0
    assert inside.mean() * 2.4**2 == pytest.approx(area, rel=0.02)
    assert not inside[:, 0].any()
    assert not inside[0].any()


def test_folders_are_classes_of_equal_size(tmp_path):
    single_shapes.generate(tmp_path / "set", count=14, size=32)
    files = images_of_classes(tmp_path / "set")
    assert files.classes == tuple(sorted(OTHER_CLASSES))
    assert len(files) == 14
    pictures = []
    for kind in OTHER_CLASSES:
        of_kind = sorted((tmp_path / "set" / kind).iterdir())
        assert len(of_kind) == 2
        for path in of_kind:
            with Image.open(path) as image:
                assert (image.size, image.mode) == ((32, 32), "RGB")
                pictures.append(image.tobytes())
    assert len(set(pictures)) == 14


def test_an_image_depends_on_seed_and_index_alone(tmp_path):
    single_shapes.generate(tmp_path / "small", count=7, size=32)
    single_shapes.generate(tmp_path / "large", count=9, size=32)
    single_shapes.generate(tmp_path / "other", count=7, size=32, seed=1)
    name = f"{OTHER_CLASSES[3]}/000003.jpg"
    small, large, other = (
        (tmp_path / folder / name).read_bytes() for folder in ("small", "large", "other")
    )
    assert small == large != other


def test_same_dataset_is_left_alone_and_another_refused(tmp_path):
    output = tmp_path / "set"
    output.mkdir()  # an empty folder is fine
    single_shapes.generate(output, count=7, size=32)
    file = output / OTHER_CLASSES[0] / "000000.jpg"
    stamp = file.stat().st_mtime_ns
    single_shapes.generate(output, count=7, size=32)
    assert file.stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="other settings"):
        single_shapes.generate(output, count=8, size=32)
    file.unlink()
    with pytest.raises(DataError, match="files are gone"):
        single_shapes.generate(output, count=7, size=32)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not a set of single shapes"):
        single_shapes.generate(tmp_path, count=7, size=32)


def test_command_line(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "set"), "--count", "7", "--size", "32"]
    assert single_shapes.main(arguments) == 0
    assert "7 images of 7 kinds" in capsys.readouterr().out
    assert single_shapes.main([*arguments, "--seed", "5"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert single_shapes.main(["--output", str(tmp_path / "other"), "--count", "6"]) == 1
    assert "count is 6" in capsys.readouterr().err
