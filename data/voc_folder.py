"""A folder of VOC XML files: the image of each, and the labelled images of each split."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.convert_options import ReadOptions
from data.errors import DataError, raise_first
from data.image_header import Header
from data.images import SIDEWAYS
from data.label_files import (
    SHOWN,
    TURNED,
    FileIndex,
    choose_split,
    last_part,
    name_key,
    nearest,
    same_split,
    split_of,
)
from data.labelled_images import Findings, LabelledBox, LabelledImage, Split
from data.voc_lists import XmlNames, has_lists, splits_by_lists
from data.voc_xml import VocFile, VocObject, read_voc_xml
from data.walk import files_below, readable_suffixes

OF_MASKS = {"segmentationclass", "segmentationobject"}  # folders whose pictures are no photographs


@dataclass(frozen=True)
class Members:
    """The files of one split."""

    xmls: tuple[Path, ...]
    unlabelled: tuple[Path, ...]  # images without XML


class VocFolder:
    """The XML files below a folder, paired with images, and sorted into splits.

    Args:
        root: absolute path of the folder. If it has lists (`ImageSets`) they make the splits,
            else the names of folders between it and the images.
        options: what to read, and how.
        with_lists: whether there must be lists; None: found out.

    Raises:
        DataError: a list or an XML is missing or malformed, or there is no such split.
    """

    def __init__(self, root: Path, options: ReadOptions, with_lists: bool | None = None) -> None:
        self.root, self.options = root, options
        self.has_lists = has_lists(root) if with_lists is None else with_lists
        above = options.images_root or root
        self.index = FileIndex(_photographs(above))
        self.converted: set[Path] = set()  # XML files whose image has another suffix than they say
        self.splits: dict[str, Members]
        if self.has_lists:
            self.annotations = root / "Annotations"
            xmls = files_below(self.annotations, {".xml"})
            lists = splits_by_lists(root, XmlNames(self.annotations, xmls), options.split)
            self.files = _read_all(xmls, {x for listed in lists.values() for x in listed.xmls})
            self.image_of = self._pair()
            self.splits = {
                name: Members(listed.xmls, self._named(listed.without_xml))
                for name, listed in lists.items()
            }
        else:
            xmls = files_below(root, {".xml"})
            self.files = _read_all(xmls, set(xmls))
            self.image_of = self._pair()
            self.splits = self._by_folders(above)
        self.xml_of = self._owners()

    def images(self) -> Iterator[Path]:
        """Every image whose size is needed."""
        for members in self.splits.values():
            yield from (self.image_of[xml] for xml in members.xmls if xml in self.image_of)
            if self.options.keep_unlabelled:
                yield from members.unlabelled

    def add_to(self, split: Split, headers: Mapping[Path, Header | None], first_pixel: int) -> None:
        """Append this folder's images of a split, and count what is wrong with the others.

        Args:
            split: its name is a key of `splits`.
            headers: of all `images()`.
            first_pixel: what the corners count from, 0 or 1.
        """
        members, findings = self.splits[split.name], split.findings
        taken: set[Path] = set()
        for xml in members.xmls:
            file, image = self.files[xml], self.image_of.get(xml)
            if file is None:
                findings.left_out("XML files without VOC's <annotation>", xml)
            elif image is None:
                findings.left_out("XML files whose image was not found", xml)
            elif self.xml_of[image] != xml:
                findings.left_out("XML files of an image that another XML describes", xml)
            elif image in taken:
                findings.changed("images that are listed twice, taken once", xml)
            else:
                taken.add(image)
                if xml in self.converted:
                    findings.guessed("images with another suffix than the XML says", image)
                size = self._size(file, image, headers[image], findings)
                if size is not None:
                    boxes = tuple(_boxes(file, first_pixel, findings))
                    split.images.append(LabelledImage(image, *size, boxes))
        self._add_unlabelled(members.unlabelled, split, headers)

    def _add_unlabelled(
        self,
        images: Iterable[Path],
        split: Split,
        headers: Mapping[Path, Header | None],
    ) -> None:
        for image in images:
            if not self.options.keep_unlabelled:
                split.findings.note("images without XML, not taken (see --keep-unlabelled)", image)
            elif (header := headers[image]) is None:
                split.findings.left_out("images that cannot be read", image)
            else:
                split.images.append(LabelledImage(image, *header.size(SHOWN), ()))

    def _pair(self) -> dict[Path, Path]:
        """The image of each XML that has one."""
        stems = {name_key(xml.stem) for xml in self.files}
        pairs = {
            xml: self._image_of(file, stems) for xml, file in self.files.items() if file is not None
        }
        return {
            xml: image
            for xml, image in pairs.items()
            if image is not None and same_split(xml, image)
        }

    def _owners(self) -> dict[Path, Path]:
        """The XML that describes each image: the nearest, or the first of those as near."""
        described: dict[Path, list[Path]] = {}
        for xml in dict.fromkeys(x for members in self.splits.values() for x in members.xmls):
            if xml in self.image_of:
                described.setdefault(self.image_of[xml], []).append(xml)
        return {image: nearest(xmls, image) or xmls[0] for image, xmls in described.items()}

    def _image_of(self, file: VocFile, stems: Collection[str]) -> Path | None:
        """The image that the XML names, else the one that is named like the XML.

        What it names may be out of date, after files were renamed: an image that another XML is
        named after belongs to that one.
        """
        xml = file.path
        if not self.index.files:  # nothing to look for: the result says what the files state
            suffix = (_suffix(file.file_names[0]) if file.file_names else "") or ".jpg"
            named = xml.with_name(f"{xml.stem}{suffix}")
            if self.has_lists:
                return self.root / "JPEGImages" / named.relative_to(self.annotations)
            return named
        own = name_key(xml.stem)
        for name in file.file_names:
            stem = name_key(_stem(name))
            if stem == own or stem not in stems:
                image = self.index.image(name, xml)
                if image is not None:
                    return image
        image = self.index.image(xml.stem, xml)
        if image is None and file.file_names:
            stem = _stem(file.file_names[0])  # a.jpg may be a.png by now
            image = self.index.image(stem, xml) if name_key(stem) not in stems else None
        named = {_suffix(name).lower() for name in file.file_names} - {""}
        if image is not None and named and image.suffix.lower() not in named:
            self.converted.add(xml)
        return image

    def _named(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The images of names without XML; a path that does not exist if there is none."""
        folder = self.root / "JPEGImages"
        return tuple(
            self.index.image(name, folder / name) or folder / f"{name}.jpg" for name in names
        )

    def _by_folders(self, images_root: Path) -> dict[str, Members]:
        """Splits by the folders above the images, or, if these say nothing, above the XML."""
        xmls: dict[str, list[Path]] = {}
        for xml in self.files:
            image = self.image_of.get(xml)
            known = image is not None and bool(self.index.files)
            of_image = split_of(image, images_root) if known else ""
            xmls.setdefault(of_image or split_of(xml, self.root), []).append(xml)
        taken = set(self.image_of.values())
        others: dict[str, list[Path]] = {}
        for image in self.index.files:
            if image not in taken:
                others.setdefault(split_of(image, images_root), []).append(image)
        members = {
            name: Members(tuple(xmls.get(name, ())), tuple(others.get(name, ())))
            for name in xmls.keys() | others.keys()
        }
        return choose_split(members, self.options.split, self.root)

    def _size(
        self, file: VocFile, image: Path, header: Header | None, findings: Findings
    ) -> tuple[int, int] | None:
        """Height and width of an image; None if it cannot be used."""
        if header is None and self.index.files:
            findings.left_out("images that cannot be read", image)
            return None
        if header is None and file.size is None:
            findings.left_out(
                "XML files without a size, whose image is not there to tell", file.path
            )
            return None
        if header is None:
            findings.note("images that are not there, named as the XML is", image)
            return file.size
        shown = header.size(SHOWN)
        if file.size is None:
            findings.guessed("sizes that the XML lacks, taken from the image", file.path)
            return shown
        if header.orientation >= SIDEWAYS and file.size == shown:
            findings.note(TURNED, file.path)
        elif file.size not in (shown, (header.height, header.width)):
            findings.note(
                "XML files with another <size> than their image, which training refuses", file.path
            )
        return file.size


def _read_all(xmls: Iterable[Path], needed: Collection[Path]) -> dict[Path, VocFile | None]:
    """Read XML files; of those that are not needed, the unreadable ones are left out.

    Raises:
        DataError: names the first needed one that cannot be read, and says how many there are.
    """
    files: dict[Path, VocFile | None] = {}
    problems: list[DataError] = []
    for xml in tqdm(xmls, "XML", unit="file", leave=False):
        try:
            files[xml] = read_voc_xml(xml)
        except DataError as error:
            problems += [error] if xml in needed else []
    raise_first(problems)
    return files


def _boxes(file: VocFile, first_pixel: int, findings: Findings) -> Iterator[LabelledBox]:
    for entry in file.objects:
        box = _box(entry, file.path, first_pixel, findings)
        if box is not None:
            yield box


def _box(entry: VocObject, path: Path, first_pixel: int, findings: Findings) -> LabelledBox | None:
    if not entry.name:
        findings.left_out("objects without a class name", path)
        return None
    if entry.corners is None:
        findings.left_out("objects without four numbers for a box", path)
        return None
    if entry.swapped:
        findings.changed("boxes with swapped corners, put in order", path)
    if entry.from_polygon:
        findings.changed("polygons and turned boxes, replaced by the box around them", path)
    if entry.difficult is None:
        findings.guessed("<difficult> that is neither yes nor no, taken for no", path)
    xmin, ymin, xmax, ymax = entry.corners
    # With pixels that count from 1, xmax is the last one: its right edge is at xmax from 0.
    corners = (xmin - first_pixel, ymin - first_pixel, xmax, ymax)
    return LabelledBox(entry.name, corners, str(path), bool(entry.difficult))


def _photographs(folder: Path) -> list[Path]:
    """The images below a folder, without VOC's own masks: they are named like their images."""
    return [
        path
        for path in files_below(folder, readable_suffixes())
        if not OF_MASKS & {part.lower() for part in path.relative_to(folder).parts[:-1]}
    ]


def _suffix(name: str) -> str:
    suffix = os.path.splitext(last_part(name))[1]
    return suffix if suffix.lower() in readable_suffixes() else ""


def _stem(name: str) -> str:
    """The name without the folders and without an image's suffix."""
    return last_part(name).removesuffix(_suffix(name))
