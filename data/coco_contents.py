"""What a COCO dataset holds, what was left out of it and what was corrected, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from data.counting import count, listing, names
from data.plain_text import printable

MANY = 0.25  # of the boxes; where so many are left out or look wrong, it is a warning


@dataclass(frozen=True)
class Contents:
    """Counts of a `CocoDataset`."""

    images: int  # that are used
    boxes: int  # that are used
    classes: int
    masks: int | None = None  # boxes that have one; None: nobody asked for them
    empty_images: int = 0  # without a box that is used; left out if `skip_empty`
    skip_empty: bool = False
    # Left out.
    crowds: int = 0  # boxes with `iscrowd` or `ignore`
    bad_boxes: int = 0  # without area or outside their image
    flat_polygons: int = 0  # of fewer than three points, with masks
    # Corrected.
    areas: int = 0  # missing or unusable, taken from the box
    polygons: int = 0  # boxes that were missing, taken from the polygon
    sizes: int = 0  # of images, missing or unusable, taken from the file's header
    clipped: int = 0  # boxes that stick out of their image by more than rounding, clipped to it
    kept_crowds: int = 0  # crowd boxes taken as ordinary ones
    repeated_entries: int = 0  # images and categories listed again with the same id
    annotation_ids: int = 0  # numbered anew, as they were missing or not unique
    renamed: int = 0  # `file_name` entries that mean a file of another name
    example: tuple[str, str] = ("", "")  # of them: the name, the file
    # Worth a look.
    shared_files: int = 0  # files that several images are
    repeated_boxes: int = 0  # with the image, class and place of another
    corners: int = 0  # boxes far outside their image, but inside it if they are two corners
    unused: tuple[str, ...] = ()  # names of classes without a box
    same_names: tuple[str, ...] = ()  # names that several classes have

    @property
    def left_out(self) -> int:
        """Boxes of the file that are not used."""
        return self.crowds + self.bad_boxes

    def lines(self) -> list[str]:
        """Short sentences: what there is first, then what was left out, corrected or is odd."""
        counts = (
            count(self.images, "image"),
            count(self.boxes, "box"),
            count(self.classes, "class"),
        )
        lines = [", ".join(counts), *self._left_out(), *self._corrected(), *self._odd()]
        return list(map(printable, lines))  # they quote names from files

    def unused_boxes(self) -> list[tuple[int, str, str]]:
        """Boxes of the file that are not used, by kind, for `listing`."""
        return [
            (self.crowds, "crowd box", "crowd boxes"),
            (
                self.bad_boxes,
                "box without area or outside the image",
                "boxes without area or outside their image",
            ),
        ]

    def _left_out(self) -> list[str]:
        parts = self.unused_boxes()
        flat = "of fewer than three points"
        parts.append((self.flat_polygons, f"polygon {flat}", f"polygons {flat}"))
        if self.skip_empty:
            parts.append((self.empty_images, "image without a box", "images without a box"))
        lines = []
        total = self.boxes + self.left_out
        if self.left_out > MANY * total:
            lines.append(
                f"WARNING: {self.left_out:,} of {total:,} boxes are left out"
                + ("; data.crowd=keep uses crowd boxes like any other" if self.crowds else "")
            )
        if any(number for number, *_ in parts):
            lines.append(f"left out: {listing(parts)}")
        return lines

    def _corrected(self) -> list[str]:
        parts = [
            (self.areas, "area (from the box)", "areas (from the boxes)"),
            (self.polygons, "box (from the polygon)", "boxes (from the polygons)"),
            (self.sizes, "image size (from the file)", "image sizes (from the files)"),
            (
                self.clipped,
                "box that sticks out of its image (clipped)",
                "boxes that stick out of their image (clipped)",
            ),
            (
                self.kept_crowds,
                "crowd box (now an ordinary one)",
                "crowd boxes (now ordinary ones)",
            ),
            (self.repeated_entries, "entry listed twice", "entries listed twice"),
            (self.annotation_ids, "annotation id", "annotation ids (numbered anew)"),
            (
                self.renamed,
                "file name ({} is {})".format(*self.example),
                "file names ({} is {})".format(*self.example),
            ),
        ]
        return [f"corrected: {listing(parts)}"] if any(number for number, *_ in parts) else []

    def _odd(self) -> list[str]:
        lines = []
        if self.masks is not None and self.masks < self.boxes:
            missing = count(self.boxes - self.masks, "box", "boxes")
            lines.append(f"without a mask: {missing}, of which no mask is learned")
        if not self.skip_empty and self.empty_images:
            lines.append(f"without a box: {count(self.empty_images, 'image')}")
        if self.unused:
            lines.append(
                f"without a box: {count(len(self.unused), 'class', 'classes')}, "
                f"{names(self.unused)}"
            )
        if self.same_names:
            lines.append(
                f"WARNING: several classes are called {names(self.same_names)}; each is "
                "learned as a class of its own"
            )
        if self.shared_files:
            lines.append(
                f"WARNING: {count(self.shared_files, 'file')} listed as several images; "
                "each of them has only its own boxes"
            )
        if self.repeated_boxes:
            lines.append(
                f"WARNING: {count(self.repeated_boxes, 'box', 'boxes')} listed again "
                "with the same image, class and place"
            )
        if self.corners > MANY * self.boxes:
            lines.append(
                f"WARNING: {self.corners:,} of {self.boxes:,} boxes reach far out of their image; "
                "'bbox' must be [x, y, width, height], not the corners [x1, y1, x2, y2]"
            )
        return lines
