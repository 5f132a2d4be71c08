"""Image files of every common kind, damaged at random: each is read as the undamaged one, or is
refused by one sentence that names it. Only changed values in formats without checksums give another
picture; a part that is cut off, or taken out of a JPEG, is noticed in all of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import ImageFilter

from data.image_header import read_header
from data.images import BadImage, read_image
from tests.helpers.image_files import encoded, photo, png16, png_chunk, tiff16

SIZE = (99, 67)
PICTURE = photo(*SIZE).filter(ImageFilter.GaussianBlur(1))
DEEP = np.asarray(PICTURE).astype(np.uint16) * 257


def saved(mode="RGB", **options):
    return encoded(PICTURE.convert(mode), **options)


KINDS = {
    "plain.jpg": saved(format="JPEG"),
    "grey.jpg": saved("L", format="JPEG"),
    "cmyk.jpg": saved("CMYK", format="JPEG"),
    "restarts.jpg": saved(format="JPEG", restart_marker_blocks=3),
    "progressive.jpg": saved(format="JPEG", progressive=True),
    "plain.png": saved(format="PNG"),
    "palette.png": saved("P", format="PNG"),
    "alpha.png": saved("RGBA", format="PNG"),
    "bits.png": saved("1", format="PNG"),
    "deep.png": png16(DEEP),
    "deep_grey.png": png16(DEEP[..., 0]),
    "plain.tif": saved(format="TIFF"),
    "deflate.tif": saved(format="TIFF", compression="tiff_adobe_deflate"),
    "lzw.tif": saved(format="TIFF", compression="tiff_lzw"),
    "packbits.tif": saved(format="TIFF", compression="packbits"),
    "deep.tif": tiff16(DEEP),
    "lossy.webp": saved(format="WEBP"),
    "lossless.webp": saved(format="WEBP", lossless=True),
    "plain.bmp": saved(format="BMP"),
    "plain.gif": saved(format="GIF"),
}
CHECKED = {name for name in KINDS if name.endswith(".png")}  # every byte, by checksums
ENDS = {"jpg": b"\xff\xd9", "png": png_chunk(b"IEND", b""), "gif": b"\0;"}


def changes(rng, content, suffix):
    """(what was done, content), drawn at random."""
    end = ENDS.get(suffix, bytes(16))
    for _ in range(4):
        place = rng.randrange(1, int(0.95 * len(content)))
        yield "cut", content[:place]
        yield "cut", content[:place].rstrip(b"\xff") + end
        yield "cut", content[:place].rstrip(b"\xff") + content[-16:]
    for _ in range(10):
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        yield "changed", bytes(changed)
    for size in (8, 50, 200):
        place = rng.randrange(len(content) - size)
        yield "changed", content[:place] + bytes(size) + content[place + size :]
        yield "changed", content[:place] + rng.randbytes(size) + content[place + size :]
        yield "changed", content[:place] + rng.randbytes(size) + content[place:]


def refusal(read, path):
    """Why a file is refused, None if it is not."""
    try:
        read(path)
    except BadImage as error:
        return str(error)
    return None


def outcome(path, whole):
    """What becomes of a file: refused, same, other."""
    for read in (lambda path: read_header(path, whole=True), read_image):
        message = refusal(read, path)
        if message is not None:
            assert message.startswith(f"{path}: image ")
            assert message.isprintable()
            return "refused"
    return "same" if np.array_equal(np.asarray(read_image(path)), whole) else "other"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest sets aside those of data.images
@pytest.mark.parametrize("name", list(KINDS))
def test_damaged_files(tmp_path, name):
    path, rng, content = tmp_path / name, random.Random(f"damage {name}"), KINDS[name]
    path.write_bytes(content)
    whole = np.asarray(read_image(path))
    assert outcome(path, whole) == "same"
    seen = set()
    for what, damaged in changes(rng, content, path.suffix[1:]):
        path.write_bytes(damaged)
        seen.add((what, outcome(path, whole)))
    allowed = {("cut", "refused"), ("changed", "refused"), ("changed", "same")}
    if name not in CHECKED:
        allowed.add(("changed", "other"))
    assert ("cut", "refused") in seen
    assert seen <= allowed


@pytest.mark.parametrize("name", ["plain.jpg", "grey.jpg", "cmyk.jpg"])
def test_a_jpeg_that_lost_its_middle_is_refused(tmp_path, name):
    content, rng = KINDS[name], random.Random(0)
    for _ in range(20):
        place = rng.randrange(int(0.4 * len(content)), int(0.7 * len(content)))
        size = rng.randrange(len(content) // 5, len(content) // 4)
        path = tmp_path / name
        path.write_bytes(content[:place].rstrip(b"\xff") + content[place + size :])
        with pytest.raises(BadImage):
            read_image(path)
