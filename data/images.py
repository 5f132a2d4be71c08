"""Read image files, with errors that name the file."""

from __future__ import annotations

import importlib
import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from data import jpeg_scans, png_chunks
from data.errors import DataError
from data.pixel_values import open_rgb
from data.regular_file import require_regular
from data.walk import list_images as list_images  # by this name for programs that are not ours

EXIF = ("stored", "apply")
ON_BAD_IMAGE = ("error", "skip")
# What Pillow itself takes for an attack. A picture of this size takes 360 MB of each process that
# decodes it, and twice that for a moment unless it is stored as RGB.
MAX_PIXELS = 89_478_485
# What Pillow raises for files that are missing, cut off, damaged or not images.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError, struct.error, zlib.error),
    *(TypeError, LookupError, ArithmeticError, EOFError),
)
# Whether a picture can be used is said here, in an error, and broken EXIF blocks do no harm.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
REDUCED = "reduced"  # key of a picture's `info`
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT, SIDEWAYS = 1, 5  # orientations; from 5 on, width and height are exchanged
TO_THE_LEFT, TO_THE_TOP = {2, 3, 6, 7}, {3, 4, 7, 8}  # where the file's last columns and rows go
TURNS = {  # what makes a picture of each orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageReading:
    """How image files are read; boxes refer to pictures that are read in the same way."""

    # stored: pixels as they are in the file; apply: turned as the EXIF orientation says, which is
    # how viewers and many annotation tools show photographs. Pillow always turns TIFFs.
    exif: str = "stored"
    # Values that become black and white, in pictures of more than 8 bits per channel; null: a fixed
    # range for each kind of file, see data/pixel_values.py.
    value_range: tuple[float, ...] | None = None
    # The rest says what is refused, and is no part of how a picture looks.
    max_pixels: int = field(default=MAX_PIXELS, compare=False)  # width x height that is decoded
    on_bad_image: str = field(default="error", compare=False)  # or skip, see data/bad_images.py

    def __post_init__(self) -> None:
        if self.exif not in EXIF:
            raise ValueError(f"exif is {self.exif!r}; set it to stored or apply")
        if self.value_range is not None:
            values = tuple(self.value_range)
            finite = len(values) == 2 and all(map(math.isfinite, values))
            if not finite or values[0] >= values[1]:
                raise ValueError(
                    f"value_range is {list(values)}; it must be two numbers, the lower one first"
                )
            object.__setattr__(self, "value_range", tuple(map(float, values)))
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; it must be at least 1")
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"on_bad_image is {self.on_bad_image!r}; set it to error or skip")

    def look(self) -> dict[str, Any]:
        """What changes the pixels: of pictures that are read with the same, boxes are the same."""
        return {"exif": self.exif, "value_range": self.value_range}


AS_STORED = ImageReading()


class BadFile(NamedTuple):
    """An image file that cannot be used."""

    file: str  # path
    reason: str  # a sentence that names it


class BadImage(DataError):
    """The content of an image file is unusable; files that cannot be reached are a `DataError`."""

    def __init__(self, reason: str, path: str | Path = "") -> None:
        super().__init__(reason)
        self.bad_file = BadFile(str(path), reason)


class Reduced(NamedTuple):
    """How a picture was decoded that is smaller than its file's; `reduced` tells."""

    scale: int  # 2, 4 or 8
    size: tuple[int, int]  # (width, height) of the whole, upright if the picture is
    # (left, top, right, bottom) of the whole in the picture, whose pixels at two sides may reach
    # beyond it.
    part: tuple[float, float, float, float]


def reduced(image: Image.Image) -> Reduced:
    """How much smaller than its file's a picture is, by `least` of `read_image`; 1 without it."""
    return image.info.get(REDUCED) or Reduced(1, image.size, (0, 0, *image.size))


def read_image(
    path: str | Path, reading: ImageReading = AS_STORED, least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an image file as 8-bit RGB, whatever it was (grey, palette, RGBA, CMYK, 16 bits).

    `data.pixel_values` states the rule. By default the EXIF orientation is not applied: COCO's
    boxes refer to the stored pixels.

    Args:
        path: of the file.
        reading: how it is read.
        least: (width, height) that are enough. A JPEG that is at least twice as wide and as high is
            decoded at a half, a quarter or an eighth, no smaller than this, by leaving out its high
            frequencies; `reduced` tells. Its boxes refer to the whole.

    Raises:
        BadImage: the file is truncated, damaged, too large or not an image. The top of
            `data/jpeg_scans.py` says what damage cannot be noticed.
        DataError: the file is missing or cannot be read.
    """
    require_regular(path)
    try:
        with open(path, "rb") as file:
            return _decode(file, path, reading, least)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None


def read_listed(
    path: str | Path,
    size: tuple[int | None, int | None],
    listed_in: str | Path,
    reading: ImageReading = AS_STORED,
    least: tuple[int, int] | None = None,
) -> Image.Image:
    """`read_image` of a file whose (width, height) another file states, or None for unknown ones.

    Raises:
        DataError: the file is unreadable, or has another size.
    """
    image = read_image(path, reading, least)
    width, height = reduced(image).size
    if None not in size and (width, height) != size:
        raise DataError(
            f"{path}: has {width} x {height} pixels, but {listed_in} says "
            f"{size[0]} x {size[1]}; correct its entry"
        )
    return image


def read_bytes(path: str | Path) -> bytes:
    """An image file as it is on disk, for `decode_image`.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    require_regular(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unusable(path, error) from None


def decode_image(
    content: bytes, path: str | Path, reading: ImageReading = AS_STORED
) -> Image.Image:
    """`read_image` of a file whose bytes have been read already; errors name `path`."""
    return _decode(io.BytesIO(content), path, reading)


def _decode(
    file: BinaryIO,
    path: str | Path,
    reading: ImageReading,
    least: tuple[int, int] | None = None,
) -> Image.Image:
    try:
        source = _checked(file)
        allow_pixels(reading.max_pixels)
        with Image.open(source) as image:
            check_size(path, image, reading.max_pixels)
            smaller = _reduce(image, least, reading) if least is not None else None
            rgb = open_rgb(source, image, reading.value_range)
            if isinstance(source, io.BytesIO) and image.format == "PNG":
                png_chunks.check_rows(image, source.getvalue())
            turn = TURNS.get(orientation(image)) if reading.exif == "apply" else None
            rgb = rgb if turn is None else rgb.transpose(turn)
            if smaller is not None:
                rgb.info[REDUCED] = smaller
            return rgb
    except BadImage:
        raise
    except Image.DecompressionBombError:  # from twice Pillow's own limit on
        raise too_large(path, "", reading.max_pixels) from None
    except UNREADABLE as error:
        raise unusable(path, error) from None


def _reduce(image: Image.Image, least: tuple[int, int], reading: ImageReading) -> Reduced | None:
    """Let an opened JPEG be decoded smaller, but not below `least`; None: it is not large enough,
    or no JPEG."""
    if not isinstance(image, JpegImageFile):
        return None
    turned = orientation(image) if reading.exif == "apply" else UPRIGHT
    order = -1 if turned >= SIDEWAYS else 1
    whole = image.size
    done = image.draft(None, least[::order])  # and the part that is the whole
    scale = 1 if done is None else round(whole[0] / done[1][2])
    if scale == 1:
        return None
    whole, decoded = whole[::order], image.size[::order]
    width, height = whole[0] / scale, whole[1] / scale
    left = decoded[0] - width if turned in TO_THE_LEFT else 0.0
    top = decoded[1] - height if turned in TO_THE_TOP else 0.0
    return Reduced(scale, whole, (left, top, left + width, top + height))


def _checked(file: BinaryIO) -> BinaryIO:
    """The file or the same in memory; damage that Pillow would pass over is an error, now or when
    it is decoded."""
    start = file.read(len(png_chunks.SIGNATURE))
    file.seek(0)
    if start.startswith(jpeg_scans.START):
        return io.BytesIO(jpeg_scans.guard_scans(file.read()))
    if start == png_chunks.SIGNATURE:
        content = file.read()
        png_chunks.check_chunks(content)
        return io.BytesIO(content)
    return file


def allow_pixels(most: int) -> None:
    """Let Pillow open pictures of so many pixels, which is more than it may do by itself."""
    if Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most


def check_size(path: str | Path, image: Image.Image, most: int) -> None:
    """Refuse an opened image that claims more pixels, by a BadImage; nothing is decoded yet."""
    if image.width * image.height > most:
        raise too_large(path, f"{image.width:,} x {image.height:,} pixels, ", most)


def too_large(path: str | Path, size: str, most: int) -> BadImage:
    """The error to raise for a file that claims more than `most` pixels."""
    return BadImage(
        f"{path}: image claims {size}more than the {most:,} pixels of data.max_pixels "
        "(--max-pixels of the commands); raise it, or replace the image or remove its entry",
        path,
    )


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened image, 1 (upright) if it has none or the block is broken.

    A TIFF is upright: Pillow turns it when it decodes it, and exchanges its sides before that.
    """
    if image.format == "TIFF":
        return UPRIGHT
    try:
        # PNG's own method would decode the picture, to see if a block follows it.
        value = Image.Image.getexif(image).get(ORIENTATION, UPRIGHT)
    except UNREADABLE:  # the block says nothing about the picture
        return UPRIGHT
    return value if isinstance(value, int) and value in TURNS else UPRIGHT


def unusable(path: str | Path, error: Exception) -> DataError:
    """The error to raise for a file that could not be read because of `error`."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: image is missing; restore it or remove its entry")
    # Pillow's own message names the stream, not the file, when it was given bytes.
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else one_line(error)
    sentence = (
        f"{path}: image is truncated or unreadable ({reason}); replace it or remove its entry"
    )
    # The system's errors have a number; Pillow's do not.
    of_system = getattr(error, "errno", None) is not None
    return DataError(sentence) if of_system else BadImage(sentence, path)


def one_line(error: Exception) -> str:
    """The message of an error, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def __getattr__(name: str) -> Any:
    """`check_images` by this module's name too, for programs that are not ours."""
    if name == "check_images":  # found when it is asked for, as its file imports this one
        return importlib.import_module("data.image_check").check_images
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
